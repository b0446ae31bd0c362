"""TFDS builders of the public data sets, one file per family, all with one schema (see `base`)."""
