"""Errors that a user can act on. The message of each states the bad value and the fix.

Exit statuses of all entry points:

    0    done
    1    the run diverged; in launch.preflight, it does not fit; in launch.sweep, points failed; or,
         with a traceback, a bug
    2    the command, the config or the files must change before it can work
    75   os.EX_TEMPFAIL: the same command can succeed later: the run was stopped and saved, the disk
         is full, another process of the run was lost or late, a database is unreachable
    130  interrupted from the keyboard
    141  the reader of the output has exited
"""

import difflib
import errno
import os
from collections.abc import Iterable

EXIT_USAGE = 2


class UserError(Exception):
    """Bad input, missing data or an unusable machine; entry points print it without a traceback."""

    exit_status = EXIT_USAGE


class RetryError(UserError):
    """A temporary failure; rerunning the same command can succeed."""

    exit_status = os.EX_TEMPFAIL


class ConfigError(UserError):
    """A config key or value that cannot be used."""


class DataError(UserError):
    """A dataset that is missing, damaged or different from its description."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class SaveError(CheckpointError, RetryError):
    """A checkpoint that could not be written."""


# Temporary errors of a disk or file server.
_PASSING = {
    getattr(errno, name)
    for name in ('ENOSPC', 'EDQUOT', 'EFBIG', 'EIO', 'ESTALE', 'ETIMEDOUT', 'EAGAIN', 'EBUSY')
}


def from_os_error(e: OSError) -> UserError:
    """Converts an OSError, such as a full disk, to a UserError with one sentence."""
    where = f" '{e.filename}'" if e.filename else ''
    kind = RetryError if e.errno in _PASSING else UserError
    return kind(
        f'{e.strerror or e}{where}: check the path, its permissions and the space left on its disk'
    )


def from_runtime_error(e: RuntimeError) -> UserError | None:
    """Converts XLA's error of a full device memory to one sentence; None if it is another error.

    cuDNN needs a workspace to try its algorithms. If none fits beside what JAX has reserved, the
    error says that no algorithm was found, and not that memory is missing.
    """
    text = str(e)
    if 'RESOURCE_EXHAUSTED' in text:
        cure = 'choose a smaller train.microbatch or train.batch_size, or use more devices'
    elif 'best cudnn convolution algorithm' in text:
        cure = (
            'cuDNN has probably no memory left: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.6, which '
            'leaves it more than the default of 0.75, or choose a smaller train.microbatch'
        )
    else:
        return None
    return UserError(f'the device is out of memory ({one_line(e)}): {cure}')


def status_of(cause: BaseException) -> int:
    """Returns the exit status of a failure with this cause: 75 if it is temporary, else 2."""
    return from_os_error(cause).exit_status if isinstance(cause, OSError) else EXIT_USAGE


def one_line(e: BaseException) -> str:
    """Returns the first line of another library's error, up to 300 characters."""
    return (str(e).strip() or repr(e)).splitlines()[0][:300]


def did_you_mean(name: str, known: Iterable[str], prefix: str = '') -> str:
    """Returns ', did you mean ...?' with the closest known name, or a list of all names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f", did you mean '{prefix}{close[0]}'?"
    return ': choose from ' + ', '.join(prefix + k for k in known)
