"""The tiny target and the finished run of the training tests."""

from tests.training.conftest import config_file, copy_of_run, finished_run, run_config

__all__ = ["config_file", "copy_of_run", "finished_run", "run_config"]
