"""Atomic file writes, JSON with a checksum, and file locks."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from nin_jax.errors import CheckpointError

CHECKSUM = 'seal'  # key of the SHA-256 in a JSON object


def user_cache() -> Path:
    """Returns the folder of what can be computed again: $XDG_CACHE_HOME/nin_jax."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'nin_jax'


def with_checksum(value: dict) -> dict:
    """Returns the object with the SHA-256 of its content added."""
    return value | {CHECKSUM: _sha256(value)}


def verify_checksum(value: dict) -> dict:
    """Returns the object without its checksum.

    An object without a checksum is accepted, because version 0.1.0 wrote none.

    Raises:
      ValueError: the content does not match the checksum, or `value` is not an object.
    """
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object')
    rest = {k: v for k, v in value.items() if k != CHECKSUM}
    if value.get(CHECKSUM, _sha256(rest)) != _sha256(rest):
        raise ValueError('it does not match its SHA-256')
    return rest


def _sha256(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: dict) -> None:
    """Atomically writes a JSON object with its checksum."""
    write_text(path, json.dumps(with_checksum(value), indent=2) + '\n')


def write_text(path: Path, text: str) -> None:
    """Atomically writes a text file: a full disk or a kill leaves the previous content."""
    path = path.resolve()  # keeps links
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'w') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict:
    """Reads what `write_json` wrote.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    try:
        return verify_checksum(json.loads(path.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing: is this the --workdir of a run?") from None
    except ValueError as e:
        raise CheckpointError(f"'{path}' is damaged ({e}): restore it from a copy") from None


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://bucket/run, instead of a local path."""
    return re.match(r'[A-Za-z][\w+.-]*:/', os.fspath(path)) is not None


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class LockedError(Exception):
    """Another process holds a lock."""


@contextlib.contextmanager
def lock(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds an exclusive lock on a file; the system releases it when the process dies.

    Raises:
      LockedError: another process still holds it after `wait_s` seconds.
    """
    give_up = time.monotonic() + wait_s
    with path.open('w') as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise LockedError(f"another process holds '{path}'") from None
                time.sleep(0.2)
        yield
