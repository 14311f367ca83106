"""Records commit, versions and hardware of the process."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata

import jax


def environment() -> dict:
    """Returns commit, versions and hardware of the process."""
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
            'cpus': usable_cpus(),
            'machine': platform.machine(),
        },
    }


def usable_cpus() -> int | None:
    """Returns the number of CPUs that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def commit() -> str:
    """Returns the git commit, with '+' if files were changed; NIN_COMMIT outside a checkout."""

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
        return os.environ.get('NIN_COMMIT', '')  # set by launch/Dockerfile
