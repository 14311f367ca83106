"""Handles SIGTERM and SIGINT: the run saves and stops; a second signal stops it immediately."""

import signal
from types import FrameType


class Interrupt:
    """A context manager; `requested` becomes true on the first signal."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> 'Interrupt':
        self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signum, self._previous[signal.Signals(signum)])
