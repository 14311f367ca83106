"""Measures training and forward throughput of this code base and PyTorch.

The median round is reported. The peak is a product of two large matrices in the same dtype, with
the faster of the two libraries.
"""

import statistics
from functools import partial

from benchmarks import alternation, backends

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


def measure(
    network: str, batch_size: int, variants: list[str], *, steps: int, rounds: int, limit: float
) -> list[dict]:
    """Returns one row per variant and mode; `limit` is the timeout per measurement in seconds."""
    rows = alternation.measure(
        builders(network, batch_size, variants, steps), list(MODES), rounds=rounds, limit=limit
    )
    for row in rows:
        row |= dict(network=network, batch_size=batch_size, dtype=VARIANTS[row['variant']][0])
    return finish(rows, network, batch_size, steps)


def builders(network: str, batch_size: int, variants: list[str], steps: int) -> dict[str, partial]:
    """Returns a function per variant that builds its backend."""
    return {
        name: partial(build, network, dtype, batch_size, steps)
        for name in variants
        for dtype, build in [VARIANTS[name]]
    }


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
