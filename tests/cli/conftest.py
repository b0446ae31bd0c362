"""A tiny run for the command line of training."""

from tests.training.conftest import config_file

__all__ = ["config_file"]
