"""Ends a process that makes no progress: a collective, a device or a disk that hangs."""

import contextlib
import threading
from collections.abc import Iterator

from nin_jax.distributed import give_up
from nin_jax.runs.metrics import Stopwatch

LOOKS = 20  # per timeout


@contextlib.contextmanager
def watchdog(clock: Stopwatch, timeout_s: float) -> Iterator[None]:
    """Ends the process with status 75 if no part of the run starts or ends for `timeout_s` seconds.

    A part is one call of training steps, one dispatch of an evaluation, a compilation, a batch of
    data, or a checkpoint. Time for which the process itself is stopped, as by Ctrl-Z, does not
    count.

    Args:
      clock: stopwatch of the run.
      timeout_s: seconds without progress; 0 for no limit.
    """
    if not timeout_s:
        yield
        return
    over = threading.Event()

    def look() -> None:
        seen, unchanged = clock.changes, 0
        while not over.wait(timeout_s / LOOKS):
            unchanged = unchanged + 1 if clock.changes == seen else 0
            seen = clock.changes
            if unchanged == LOOKS:
                give_up(
                    f'no progress for {timeout_s:,g} s during {clock.part!r}: a device, the disk '
                    'or another process hangs; run the same command again to continue from the '
                    'last checkpoint, with a larger train.stall_timeout if it was only slow'
                )

    thread = threading.Thread(target=look, name='watchdog', daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
