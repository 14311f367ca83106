"""Measures training and forward throughput of this code base and PyTorch.

Each backend has its own process, and so its own peak memory and thread pool. The backends alternate
in every round while the others sleep, so other load on the machine affects all of them alike. The
median round is reported. Compilation and warm-up are timed separately. The peak is a product of two
large matrices in the same dtype, with the faster of the two libraries.
"""

import multiprocessing
import os
import statistics
from functools import partial

from benchmarks import backends

VARIANTS = {  # name -> (dtype, build function)
    'ours': ('float32', backends.ours),
    'torch': ('float32', partial(backends.pytorch, channels_last=False, compiled=False)),
    'torch nhwc': ('float32', partial(backends.pytorch, channels_last=True, compiled=False)),
    'torch compile': ('float32', partial(backends.pytorch, channels_last=True, compiled=True)),
    'ours mixed': ('mixed', backends.ours),
    'ours bf16': ('bfloat16', backends.ours),
    'torch nhwc bf16': (
        'bfloat16',
        partial(backends.pytorch, channels_last=True, compiled=False),
    ),
    'torch compile bf16': (
        'bfloat16',
        partial(backends.pytorch, channels_last=True, compiled=True),
    ),
}
MODES = {'train': 6, 'forward': 2}  # FLOPs per multiply-add of the forward pass


def serve(pipe, variant: str, network: str, batch_size: int, steps: int) -> None:
    """The process of a backend: for each mode received, sends the seconds, until 'stop'."""
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the backends share the GPU's memory
    dtype, build = VARIANTS[variant]
    try:
        backend = build(network, dtype, batch_size, steps)
        while (mode := pipe.recv()) != 'stop':
            pipe.send(getattr(backend, mode)())
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


def measure(
    network: str, batch_size: int, variants: list[str], *, steps: int, rounds: int, limit: float
) -> list[dict]:
    """Returns one row per variant and mode; `limit` is the timeout per measurement in seconds."""
    context = multiprocessing.get_context('spawn')
    processes, pipes, rows = {}, {}, {}
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        processes[variant] = context.Process(
            target=serve, daemon=True, args=(theirs, variant, network, batch_size, steps)
        )
        processes[variant].start()
        theirs.close()  # so that `recv` ends if the process dies
        failure = ''
        for mode in MODES:  # sequentially, because compilation is timed
            warm_up = failure or ask(pipes[variant], mode, limit)
            rows[variant, mode] = dict(
                network=network,
                batch_size=batch_size,
                variant=variant,
                mode=mode,
                dtype=VARIANTS[variant][0],
                compile_and_first_s=warm_up,
                rounds_s=[],
            )
            if isinstance(warm_up, str):
                rows[variant, mode]['failed'] = failure = warm_up
                processes[variant].kill()  # a late answer would disturb the others
    for _ in range(rounds):
        for mode in MODES:
            for variant in variants:
                row = rows[variant, mode]
                if 'failed' in row:
                    continue
                seconds = ask(pipes[variant], mode, limit)
                if isinstance(seconds, str):
                    row['failed'] = seconds
                else:
                    row['rounds_s'].append(seconds)
    for variant, process in processes.items():
        peak = ask(pipes[variant], 'stop', 30)
        process.join(10)
        if process.is_alive():
            process.kill()
        for mode in MODES:
            rows[variant, mode]['peak_memory_bytes'] = peak
    return finish(list(rows.values()), network, batch_size, steps)


def finish(rows: list[dict], network: str, batch_size: int, steps: int) -> list[dict]:
    """Adds images/s, FLOP/s and the ratios to the best PyTorch rows of the same mode.

    'flop_per_s' counts direct convolutions, 'made_flop_per_s' the products that ours makes.
    """
    macs = backends.macs_per_image(network)
    good = [row for row in rows if 'failed' not in row]
    for row in good:
        row['images_per_s'] = batch_size * steps / statistics.median(row['rounds_s'])
        row['flop_per_s'] = row['images_per_s'] * macs * MODES[row['mode']]
        if not row['variant'].startswith('torch'):
            made = 2 * backends.macs_made(network, row['mode'])
            row['made_flop_per_s'] = row['images_per_s'] * made
    for row in good:
        rivals = [r for r in good if r['variant'].startswith('torch') and r['mode'] == row['mode']]
        same = [r for r in rivals if r['dtype'] == row['dtype']]
        for name, others in (('ratio_to_best_torch', same), ('ratio_to_any_torch', rivals)):
            if others:
                row[name] = row['images_per_s'] / max(r['images_per_s'] for r in others)
    return rows
