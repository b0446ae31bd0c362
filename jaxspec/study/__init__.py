"""Studies: a declared grid of trainings and evaluations, and how two of them differ."""
