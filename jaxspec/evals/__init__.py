"""Measuring drafters and diffusion language models: benchmarks, exact decoding, reports, plots."""
