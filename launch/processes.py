"""Processes that are told to stop when we are, and that do not outlive us."""

import ctypes
import os
import signal
import subprocess
import sys
import time


class Family:
    """The processes started here; `stop` says whether we were asked to end.

    SIGTERM and SIGINT are handed on to each of them, once (they are in process groups of their
    own, which Ctrl-C in a terminal does not reach). On Linux they get SIGTERM as well if this
    process dies without a word, so that a run saves and stops instead of going on unnoticed.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.stop = False
        self._alive: list[subprocess.Popen] = []

    def __enter__(self):
        self._previous = {s: signal.signal(s, self._hand_on) for s in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for process in self._alive:
            if process.poll() is None:
                process.terminate()
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def start(
        self, command: list[str], cpus: set[int] | None = None, **options
    ) -> subprocess.Popen:
        """subprocess.Popen(command, **options), made one of the family; on these cores only."""
        prepare = tie_to_parent(os.getpid(), cpus) if sys.platform == 'linux' else None
        process = subprocess.Popen(command, process_group=0, preexec_fn=prepare, **options)
        self._alive = [p for p in self._alive if p.poll() is None] + [process]
        if self.stop:  # asked while it was being made
            process.terminate()
        return process

    def end(self) -> None:
        """Asks every process to stop, as if we had been asked to."""
        self._hand_on(signal.SIGTERM, None)

    def wait(self, seconds: float) -> None:
        """Waits for every process; kills those that take longer."""
        until = time.monotonic() + seconds
        for process in self._alive:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _hand_on(self, signum: int, _frame: object) -> None:
        self.stop = True
        for process in self._alive:
            process.send_signal(signum)


def tie_to_parent(parent: int, cpus: set[int] | None):
    """A function that, run in a new process, has the kernel send it SIGTERM when `parent` dies,
    and keeps it to some cores."""
    set_death_signal = ctypes.CDLL(None).prctl  # looked up here: a fork should do next to nothing
    PR_SET_PDEATHSIG = 1

    def prepare():
        set_death_signal(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare
