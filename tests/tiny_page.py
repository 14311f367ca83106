"""A tiny config for tests that start processes."""

from tests.helpers import tiny_config


def get_config(arg: str = ''):
    return tiny_config()
