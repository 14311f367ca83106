"""A run's folder: one process at a time, one config for good.

config.json       every key of the run's config
preprocess.npz    fitted preprocessing, so that evaluation never refits
checkpoints/      Orbax checkpoints, by step
metrics.jsonl     one line a call and an evaluation
tensorboard/      the same for TensorBoard
summary.json      how the run ended
"""

import contextlib
import fcntl
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata

import jax
from ml_collections import ConfigDict

from nin_jax.checkpoint import read_json
from nin_jax.config import block, default_config, flatten
from nin_jax.errors import CheckpointError, UserError
from nin_jax.records import write_json


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; the lock dies with the process."""
    if not str(workdir).isprintable():  # bytes that are not UTF-8, too
        raise UserError(
            f'--workdir={str(workdir)!a} is not UTF-8 text, and checkpoints need that: rename it'
        )
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / '.lock', 'w') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is running in '{workdir}': wait for it, or name another --workdir"
            ) from None
        yield


def settle_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json on a run's first start; later, raises unless the config is the same."""
    path, flat = workdir / 'config.json', jsonable(flatten(config))
    if not path.exists():
        write_json(path, flat)
        return
    check_same(workdir, read_json(path), flat)


def check_same(workdir: pathlib.Path, saved: dict, flat: dict, only: str = '') -> None:
    """CheckpointError unless two flat configs are the same in all keys that begin with `only`."""
    different = {k: v for k, v in differences(saved, flat).items() if k.startswith(only)}
    if different:
        key, (one, other) = next(iter(different.items()))
        raise CheckpointError(
            f"'{workdir}' holds a run with {key}={one!r}, this command says {other!r}"
            + (f' (and {len(different) - 1} more keys)' if len(different) > 1 else '')
            + ': repeat its settings, or name another --workdir'
        )


# Where a run computes and what it keeps do not change what it computes.
FREE_TO_CHANGE = ('devices', 'data.dir', 'data.residency', 'checkpoint.', 'eval.batch_size')


def differences(one: dict, other: dict) -> dict[str, tuple[object, object]]:
    """The keys that make two flat configs those of different runs, with both values.

    A config from before a key was there has the key's default.
    """
    defaults = flatten(default_config())
    row = block(features=(), kernel=1)

    def value(flat: dict, key: str) -> object:
        if key.startswith('model.blocks.'):  # of any number of rows, but all of the same fields
            return flat.get(key, row.get(key.rpartition('.')[2]))
        return flat.get(key, defaults.get(key))

    pairs = {k: (value(one, k), value(other, k)) for k in {**one, **other}}
    return {
        k: (a, b)
        for k, (a, b) in pairs.items()
        if jsonable({k: a}) != jsonable({k: b}) and not k.startswith(FREE_TO_CHANGE)
    }


def jsonable(flat: dict) -> dict:
    """Tuples as the lists that JSON makes of them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}


def environment() -> dict:
    """Commit, versions and hardware, for the record."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    device = jax.devices()[0]
    return {
        'commit': commit(),
        'versions': {
            'python': platform.python_version(),
            **{p: metadata.version(p) for p in packages},
        },
        'device': {
            'kind': device.device_kind,
            'platform': device.platform,
            'count': len(jax.devices()),
            'processes': jax.process_count(),
            'cpus': os.cpu_count(),
            'machine': platform.machine(),
        },
    }


def commit() -> str:
    """The source's git commit, with '+' if files differ from it; NIN_COMMIT outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', *words],
            cwd=pathlib.Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.SubprocessError):
        return os.environ.get('NIN_COMMIT', '')  # images carry no .git; launch/Dockerfile sets it
