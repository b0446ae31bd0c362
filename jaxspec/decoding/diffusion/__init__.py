"""Decoding with diffusion language models, block by block, and lossless drafting for them."""
