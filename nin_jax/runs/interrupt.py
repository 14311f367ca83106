"""SIGTERM and SIGINT ask a run to save and stop; a second one stops it at once."""

import signal

RESUME_ME = 75  # exit status EX_TEMPFAIL of sysexits.h: run the same command again


class Interrupt:
    """Context manager; `requested` turns true when the process was asked to stop."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _handle(self, signum, _frame):
        self.requested = True
        signal.signal(signum, self._previous[signum])
