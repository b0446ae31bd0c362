"""Commands: config files and overrides, and the `jaxspec` console script."""
