"""Every network, as Flax Linen modules with explicit caches."""
