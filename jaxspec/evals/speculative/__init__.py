"""Evaluation of drafters: accepted length and speed of speculative decoding."""
