"""A config page for tests that start processes of their own."""

from tests.helpers import tiny_config


def get_config(arg: str = ''):
    return tiny_config()
