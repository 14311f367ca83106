"""Finds this machine's accelerators and assigns them, or shares of them, to processes."""

import itertools
import os
import pathlib
import re
import sys

from nin_jax.errors import UserError

TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}  # libtpu's shape of a process's chips


def found() -> tuple[str, list[str]]:
    """Returns ('cuda', ['0', '1']), ('tpu', [...]) or ('cpu', []) without initializing JAX.

    Respects JAX_PLATFORMS and CUDA_VISIBLE_DEVICES.
    """
    wanted = os.environ.get('JAX_PLATFORMS', '')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    cards = sorted(p.name[6:] for p in pathlib.Path('/dev').glob('nvidia[0-9]*'))
    chips = sorted(p.name for p in pathlib.Path('/dev').glob('accel[0-9]*'))
    chips = chips or sorted(p.name for p in pathlib.Path('/dev/vfio').glob('[0-9]*'))
    if visible is not None:
        listed = [word.strip() for word in visible.split(',')]
        # As in CUDA, the first invalid entry, such as -1, ends the list.
        cards = list(itertools.takewhile(lambda word: word and not word.startswith('-'), listed))
    if cards and (not wanted or re.search('cuda|gpu', wanted)):
        return 'cuda', cards
    if chips and (not wanted or 'tpu' in wanted):
        return 'tpu', [str(i) for i in range(len(chips))]
    return 'cpu', []


def environments(workers: int | None, chosen: str | None, each: int = 1) -> list[dict[str, str]]:
    """Returns the environment variables to set for each worker.

    Args:
      workers: number of workers; None for one per accelerator (or group of `each`).
      chosen: accelerators to use, such as '0,1'; 'cpu' for none; None for all.
      each: accelerators per worker; on a CPU, the number of JAX devices per worker.

    Raises:
      UserError: an accelerator does not exist, or several workers would share a TPU chip.
    """
    kind, there = found()
    names = there if chosen is None else [w for w in chosen.split(',') if w]
    if chosen == 'cpu':
        kind, names = 'cpu', []
    if missing := [n for n in names if n not in there]:
        have = ', '.join(there) or 'none'
        raise UserError(f"--devices: no accelerator '{missing[0]}' here, there are: {have}")
    if kind == 'cpu':
        one = {'JAX_PLATFORMS': 'cpu'} if chosen == 'cpu' else {}
        split = {'JAX_NUM_CPU_DEVICES': str(each)} if each > 1 else {}
        return [one | split for _ in range(workers or 1)]
    groups = [','.join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]
    count = workers or len(groups)
    if not groups:
        raise UserError(f'--devices_per_trial={each}: only {len(names)} accelerators are available')
    if kind == 'tpu':
        if each not in TPU_BOUNDS:
            raise UserError(f'--devices_per_trial={each}: use 1, 2, 4 or 8 TPU chips')
        if count > len(groups):
            raise UserError(
                f'--workers={count}: a TPU chip serves one process, and there are {len(names)}'
            )
        one = {'TPU_CHIPS_PER_PROCESS_BOUNDS': TPU_BOUNDS[each], 'TPU_PROCESS_BOUNDS': '1,1,1'}
        return [one | {'TPU_VISIBLE_CHIPS': group} for group in groups[:count]]
    share = -(-count // len(groups))  # processes on the most loaded GPU
    fraction = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / share:.3f}'} if share > 1 else {}
    return [{'CUDA_VISIBLE_DEVICES': groups[i % len(groups)]} | fraction for i in range(count)]


def cores(index: int, workers: int) -> set[int] | None:
    """Returns a worker's share of the CPU cores; None if there are too few, or not on Linux."""
    if sys.platform != 'linux':
        return None
    mine = sorted(os.sched_getaffinity(0))[index::workers]
    return set(mine) or None
