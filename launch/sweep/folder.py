"""Reads a run's folder for the driver, and locks it against a second run."""

import contextlib
import fcntl
import pathlib
from typing import IO

from nin_jax.errors import CheckpointError
from nin_jax.files import read_json


def evaluations(metrics: list[dict]) -> dict[int, float]:
    """Returns top-1 error by epoch, from the first evaluation at or after each whole epoch."""
    first: dict[int, float] = {}
    for line in metrics:
        if line['kind'] == 'eval' and line['attempt'] == metrics[-1]['attempt']:
            first.setdefault(int(line['epoch']), line['error'])
    return {epoch: error for epoch, error in first.items() if epoch > 0}


def step(metrics: list[dict]) -> int:
    """Returns the last step in the metrics."""
    return metrics[-1]['step'] if metrics else 0


def ending(folder: pathlib.Path) -> dict:
    """Returns the run's summary.json; {'status': ''} if there is none, or a damaged one."""
    try:
        return read_json(folder / 'summary.json')
    except CheckpointError:
        return {'status': ''}


def try_lock(file: IO) -> bool:
    """Locks the file until this process and all that inherit it end; False if it is locked."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def last_line(log: str) -> str:
    """Returns the last line of a log, without 'error: '."""
    return (log.strip().splitlines() or ['no output'])[-1].removeprefix('error: ')
