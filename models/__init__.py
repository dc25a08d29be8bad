"""Plain networks: modules that import nothing but torch, hold no global state, choose no device."""
