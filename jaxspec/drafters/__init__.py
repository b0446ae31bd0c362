"""Drafters: small models that propose the tokens which a target verifies."""
