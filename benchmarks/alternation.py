"""Times backends in alternation.

Each backend has its own process, and so its own peak memory and thread pool. In every round, each
backend is timed while the others sleep, so other load on the machine affects all of them alike.
The first call, with compilation and warm-up, is timed separately.
"""

import multiprocessing
import os
from collections.abc import Callable

from benchmarks.backends import Backend


def measure(
    builders: dict[str, Callable[[], Backend]], modes: list[str], *, rounds: int, limit: float
) -> list[dict]:
    """Returns one row per variant and mode.

    Args:
      builders: variant -> function that builds the backend, in its own process.
      modes: keys of `Backend.seconds`.
      rounds: number of measurements of each.
      limit: timeout per measurement in seconds.

    Returns:
      Rows with 'variant', 'mode', 'compile_and_first_s', 'rounds_s' and 'peak_memory_bytes', and
      with the reason in 'failed' if there is no result.
    """
    context = multiprocessing.get_context('spawn')
    processes, pipes, rows = {}, {}, {}
    for variant, build in builders.items():
        pipes[variant], theirs = context.Pipe()
        processes[variant] = context.Process(target=serve, daemon=True, args=(theirs, build))
        processes[variant].start()
        theirs.close()  # so that `recv` ends if the process dies
        failure = ''
        for mode in modes:  # sequentially, because compilation is timed
            warm_up = failure or ask(pipes[variant], mode, limit)
            row = dict(variant=variant, mode=mode, compile_and_first_s=warm_up, rounds_s=[])
            rows[variant, mode] = row
            if isinstance(warm_up, str):
                row['failed'] = failure = warm_up
                processes[variant].kill()  # a late answer would disturb the others
    for _ in range(rounds):
        for mode in modes:
            for variant in builders:
                row = rows[variant, mode]
                if 'failed' in row:
                    continue
                seconds = ask(pipes[variant], mode, limit)
                if isinstance(seconds, str):  # a late answer would be taken for the next one
                    processes[variant].kill()
                    for other in modes:
                        rows[variant, other].setdefault('failed', seconds)
                else:
                    row['rounds_s'].append(seconds)
    for variant, process in processes.items():
        peak = ask(pipes[variant], 'stop', 30)
        process.join(10)
        if process.is_alive():
            process.kill()
        for mode in modes:
            rows[variant, mode]['peak_memory_bytes'] = None if isinstance(peak, str) else peak
    return list(rows.values())


def serve(pipe, build: Callable[[], Backend]) -> None:
    """The process of a backend: for each mode received, sends the seconds, until 'stop'."""
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the backends share the GPU's memory
    try:
        backend = build()
        while (mode := pipe.recv()) != 'stop':
            pipe.send(backend.seconds[mode]())
        pipe.send(backend.peak_memory())
    except Exception as e:
        # A variant that cannot run (no C++ compiler for torch.compile, ...) becomes a row.
        pipe.send(f'{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ""}')


def ask(pipe, question: str, seconds: float) -> float | str:
    """Returns the answer, or a reason if there is none."""
    try:
        pipe.send(question)
        return pipe.recv() if pipe.poll(seconds) else f'no answer in {seconds:.0f} s'
    except (EOFError, OSError):
        return 'its process died'
