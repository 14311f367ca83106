"""Child processes that receive this process's stop signals and do not outlive it."""

import ctypes
import os
import signal
import subprocess
import sys
import time


class ProcessGroup:
    """A context manager that owns child processes and forwards signals to them.

    SIGTERM and SIGINT are forwarded once to every child. The children are in their own process
    groups, so Ctrl-C in a terminal does not reach them directly. On Linux, the children also
    receive SIGTERM if this process dies, so that a run saves and stops instead of continuing
    unnoticed.

    Attributes:
      stop: whether this process has received SIGTERM or SIGINT.
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
        """Starts a child with subprocess.Popen, restricted to the cores `cpus` if given."""
        prepare = tie_to_parent(os.getpid(), cpus) if sys.platform == 'linux' else None
        process = subprocess.Popen(command, process_group=0, preexec_fn=prepare, **options)
        self._alive = [p for p in self._alive if p.poll() is None] + [process]
        if self.stop:  # the signal arrived during Popen
            process.terminate()
        return process

    def end(self) -> None:
        """Stops every child, as if this process had received SIGTERM."""
        self._hand_on(signal.SIGTERM, None)

    def wait(self, seconds: float) -> None:
        """Waits up to `seconds` for all children, then kills the rest."""
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


def exit_status(process: subprocess.Popen) -> int:
    """Waits for a child; returns its exit status, 75 if it was killed, terminated or aborted."""
    status = process.wait()
    if -status in (signal.SIGABRT, signal.SIGKILL, signal.SIGTERM):
        name = signal.Signals(-status).name
        print(f'error: the run was ended by {name}: run the same command again', file=sys.stderr)
        return os.EX_TEMPFAIL
    return status if status >= 0 else 128 - status


def tie_to_parent(parent: int, cpus: set[int] | None):
    """Returns a `preexec_fn` that sets SIGTERM as the parent-death signal, and the CPU affinity."""
    set_death_signal = ctypes.CDLL(None).prctl  # resolved before the fork, not in the child
    PR_SET_PDEATHSIG = 1

    def prepare():
        set_death_signal(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare
