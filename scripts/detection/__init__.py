"""Is a set poisoned? Probes of a suspicious set, beside what they score on clean ones."""
