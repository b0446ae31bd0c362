"""A tiny run for the command line of training, and what the tests of regenerate share."""

from tests.cli.regenerating import ask, target
from tests.training.conftest import config_file

__all__ = ["ask", "config_file", "target"]
