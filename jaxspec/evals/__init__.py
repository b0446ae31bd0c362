"""Measuring drafters: benchmarks, exact decoding, accepted length, reports and plots."""
