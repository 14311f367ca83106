"""Errors that a user can fix. Each is one sentence that states the bad value and the fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, missing data or an unusable machine; entry points print it without a traceback."""


class ConfigError(UserError):
    """A config key or value that cannot be used."""


class DataError(UserError):
    """A dataset that is missing, damaged or not what it says it is."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to another run."""


def os_sentence(e: OSError) -> str:
    """A full disk, a folder that cannot be written, ... in a sentence."""
    where = f" '{e.filename}'" if e.filename else ''
    return (
        f'{e.strerror or e}{where}: check the path, its permissions and the space left on its disk'
    )


def one_line(e: BaseException) -> str:
    """The first line of another library's error, cut to 150 characters."""
    return (str(e).strip() or repr(e)).splitlines()[0][:150]


def did_you_mean(name: str, known: Iterable[str], prefix: str = '') -> str:
    """', did you mean ...?' with the closest known name, or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f", did you mean '{prefix}{close[0]}'?"
    return ': choose from ' + ', '.join(prefix + k for k in known)
