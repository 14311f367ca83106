"""Measures the training steps of a whole run of the fast recipe, and the same steps in PyTorch.

The run has stages: smaller images first, and a frozen first mlpconv layer in the end. A step is
timed in each of them, and multiplied by the number of steps of the stage. A step includes random
crops and flips, batch normalization, the gradients of its microbatches, and Muon. Compilation,
evaluation and checkpoints are not counted.
"""

import statistics

from benchmarks import alternation, backends
from benchmarks.throughput import VARIANTS, builders


def measure(
    network: str, variants: list[str], *, steps: int, rounds: int, limit: float
) -> list[dict]:
    """Returns one row per variant; `limit` is the timeout per measurement in seconds."""
    batch_size = backends.config(network).train.batch_size
    modes = [backends.train_mode(stage) for stage, _ in backends.stages(network)]
    measured = alternation.measure(
        builders(network, batch_size, variants, steps), modes, rounds=rounds, limit=limit
    )
    return finish(measured, network, batch_size, steps)


def finish(measured: list[dict], network: str, batch_size: int, steps: int) -> list[dict]:
    """Returns a row per variant with the minutes of a run, from those of `alternation.measure`."""
    stages = backends.stages(network)
    rows = []
    for variant in dict.fromkeys(row['variant'] for row in measured):
        of_mode = {row['mode']: row for row in measured if row['variant'] == variant}
        row = dict(
            network=network,
            batch_size=batch_size,
            images=batch_size * sum(count for _, count in stages),
            variant=variant,
            dtype=VARIANTS[variant][0],
            stages={},
        )
        rows.append(row)
        if failures := [stage['failed'] for stage in of_mode.values() if 'failed' in stage]:
            row['failed'] = failures[0]
            continue
        seconds = 0.0
        for stage, count in stages:
            mode = backends.train_mode(stage)
            step_s = statistics.median(of_mode[mode]['rounds_s']) / steps
            row['stages'][mode] = dict(steps=count, images_per_s=batch_size / step_s)
            seconds += count * step_s
        row['minutes'] = seconds / 60
    rivals = [r['minutes'] for r in rows if 'minutes' in r and r['variant'].startswith('torch')]
    for row in rows:
        if rivals and 'minutes' in row:
            row['ratio_to_any_torch'] = min(rivals) / row['minutes']
    return rows
