"""The corpus in the package: its generator, its tokenizer and a small target for it."""
