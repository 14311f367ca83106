"""What the driver reads of a run's folder, and the lock that keeps a second run out of it."""

import contextlib
import fcntl
import json
import pathlib
from typing import IO


def lines(folder: pathlib.Path) -> list[dict]:
    """The run's metrics so far."""
    found = []
    with contextlib.suppress(FileNotFoundError), open(folder / 'metrics.jsonl') as f:
        for text in f:
            with contextlib.suppress(ValueError):  # a line that is just being written
                found.append(json.loads(text))
    return found


def evaluations(metrics: list[dict]) -> dict[int, float]:
    """Epoch -> top-1 error: of the run's evaluations, the first at or past each whole epoch."""
    first: dict[int, float] = {}
    for line in metrics:
        if line['kind'] == 'eval' and line['attempt'] == metrics[-1]['attempt']:
            first.setdefault(int(line['epoch']), line['error'])
    return {epoch: error for epoch, error in first.items() if epoch > 0}


def step(metrics: list[dict]) -> int:
    """The last step of the run."""
    return metrics[-1]['step'] if metrics else 0


def ending(folder: pathlib.Path) -> dict:
    """The run's summary.json; {'status': ''} if it has none."""
    try:
        return json.loads((folder / 'summary.json').read_text())
    except (FileNotFoundError, ValueError):
        return {'status': ''}


def try_lock(file: IO) -> bool:
    """Locks the file for this process and those that inherit it, until the last of them ends."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def last_line(log: str) -> str:
    """The last thing that the run printed, without 'error: '."""
    return (log.strip().splitlines() or ['no output'])[-1].removeprefix('error: ')
