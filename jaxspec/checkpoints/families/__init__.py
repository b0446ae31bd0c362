"""Families of models on the Hugging Face Hub, one file each, and their registry."""
