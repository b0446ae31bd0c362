"""Checks that a drafter computes the same everywhere, and what its training computed."""
