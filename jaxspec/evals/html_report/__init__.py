"""Result files as one static HTML page: tables, plots, and an answer decoded round by round."""

GENERATOR = '<meta name="generator" content="jaxspec '
"""Stands in the first lines of every page."""
