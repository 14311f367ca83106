"""Two processes of one run, over loopback on the CPU."""

import contextlib
import random
import socket
import subprocess
import time

from tests.helpers import ROOT, command, has_metrics, wait_until


def free_port() -> int:
    """A port below those that the kernel gives to others, as it is bound seconds later."""
    while True:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(('', port))
            return port


@contextlib.contextmanager
def pair(workdir, *flags, late_s: float = 0.0, main: list[str] | None = None):
    """Two processes of one run, process 0 first.

    Args:
      workdir: the run's folder.
      *flags: of experiments.main.
      late_s: seconds after which process 1 starts.
      main: what takes the place of `python -m experiments.main`.
    """
    port, processes = free_port(), []
    try:
        for i in range(2):
            time.sleep(i * late_s)
            words = command(f'--workdir={workdir}', f'--distributed=localhost:{port},2,{i}', *flags)
            process = subprocess.Popen(
                [*main, *words[3:]] if main else words,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
        yield processes
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
                p.wait()


def finish(processes, timeout: float = 300) -> tuple[list[int], list[str], list[str]]:
    """Their statuses, outputs and errors; what gloo itself says is left away."""
    outputs = [p.communicate(timeout=timeout) for p in processes]
    quiet = ['\n'.join(t for t in o.splitlines() if '[Gloo]' not in t) for o, _ in outputs]
    return [p.returncode for p in processes], quiet, [e for _, e in outputs]


def wait_for_lines(workdir, count, processes):
    """Waits until the run has logged `count` steps and evaluations."""
    wait_until(lambda: has_metrics(workdir, count), 300, processes)


def wait_for_checkpoint(workdir, processes):
    """Waits for a complete checkpoint, whose folder Orbax renames to the number of its step."""
    folder = workdir / 'checkpoints'
    wait_until(lambda: any(p.name.isdigit() for p in folder.glob('*')), 300, processes)
