"""jaxspec: diffusion drafters for speculative decoding, trained and measured in JAX."""

__version__ = "0.1.0"
