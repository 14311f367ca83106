"""Which accelerators this machine has, and how to give a process one of them, or a share."""

import os
import pathlib
import re
import sys

from nin_jax.errors import UserError


def found() -> tuple[str, list[str]]:
    """('cuda', ['0', '1']), ('tpu', [...]) or ('cpu', []), without starting JAX.

    JAX_PLATFORMS and CUDA_VISIBLE_DEVICES are respected.
    """
    wanted = os.environ.get('JAX_PLATFORMS', '')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    cards = sorted(p.name[6:] for p in pathlib.Path('/dev').glob('nvidia[0-9]*'))
    chips = sorted(p.name for p in pathlib.Path('/dev').glob('accel[0-9]*'))
    chips = chips or sorted(p.name for p in pathlib.Path('/dev/vfio').glob('[0-9]*'))
    if visible is not None:
        cards = [word for word in visible.split(',') if word.strip()]
    if cards and (not wanted or re.search('cuda|gpu', wanted)):
        return 'cuda', cards
    if chips and (not wanted or 'tpu' in wanted):
        return 'tpu', [str(i) for i in range(len(chips))]
    return 'cpu', []


def environments(workers: int | None, chosen: str | None) -> list[dict[str, str]]:
    """What to add to the environment of each of the workers; as many as accelerators if None.

    Args:
      workers: how many.
      chosen: accelerators to use, such as '0,1'; 'cpu' for none; None for all that there are.

    Raises:
      UserError: for accelerators that are not there, or TPU chips that several are to share.
    """
    kind, there = found()
    names = there if chosen is None else [w for w in chosen.split(',') if w]
    if chosen == 'cpu':
        kind, names = 'cpu', []
    if missing := [n for n in names if n not in there]:
        have = ', '.join(there) or 'none'
        raise UserError(f"--devices: no accelerator '{missing[0]}' here, there are: {have}")
    count = workers or max(1, len(names))
    if kind == 'cpu':
        return [{'JAX_PLATFORMS': 'cpu'} if chosen == 'cpu' else {} for _ in range(count)]
    if kind == 'tpu':
        if count > len(names):
            raise UserError(f'--workers={count}: a TPU chip serves one process, there are {names}')
        one = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
        return [one | {'TPU_VISIBLE_CHIPS': name} for name in names[:count]]
    share = -(-count // len(names))  # processes on the fullest card
    fraction = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / share:.3f}'} if share > 1 else {}
    return [{'CUDA_VISIBLE_DEVICES': names[i % len(names)]} | fraction for i in range(count)]


def cores(index: int, workers: int) -> set[int] | None:
    """The worker's share of the CPU cores; None where that cannot be said or they are too few."""
    if sys.platform != 'linux':
        return None
    mine = sorted(os.sched_getaffinity(0))[index::workers]
    return set(mine) or None
