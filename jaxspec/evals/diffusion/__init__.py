"""Evaluation of diffusion language models: forward passes and speed of their decoders."""
