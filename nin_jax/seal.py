"""A digest inside a JSON object, so that a flipped byte in it does not pass for a number."""

import hashlib
import json

KEY = 'seal'


def seal(value: dict) -> dict:
    """The object with a SHA-256 of everything else in it."""
    return value | {KEY: _digest(value)}


def unseal(value: dict) -> dict:
    """The object without its seal; ValueError if it is not what was sealed.

    One without a seal passes: older ones have none, and damage that hits just the seal's name
    has left the rest alone.
    """
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object')
    rest = {k: v for k, v in value.items() if k != KEY}
    if value.get(KEY, _digest(rest)) != _digest(rest):
        raise ValueError('it does not match its SHA-256')
    return rest


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
