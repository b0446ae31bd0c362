"""TFDS builders of the public data sets, one file a family, all of one schema (see `base`)."""
