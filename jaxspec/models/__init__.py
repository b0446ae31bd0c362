"""Targets: causal transformers as Flax Linen modules with explicit caches."""
