"""The closest name."""

from jaxspec.names import did_you_mean


def test_the_closest_name_is_offered():
    assert did_you_mean("tokn", ["greedy", "token"]) == " Did you mean 'token'?"
    assert did_you_mean("xyz", ["greedy", "token"]) == ""
