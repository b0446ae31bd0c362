"""Meshes, logical axis rules, and the three ways to spread a step over devices."""
