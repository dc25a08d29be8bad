"""A table: spec reads its YAML, plan makes artefacts of it, schedule makes what is missing,
measure and render say what came out."""
