"""Describes the conditions of a benchmark: command, commit, versions, hardware."""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time

from nin_jax.runs.environment import commit, usable_cpus


def environment() -> dict:
    """Returns command, commit, versions and hardware of this process."""
    words = [re.sub('=/.*/', '=', word) for word in sys.argv[1:]]  # no paths of this machine
    return {
        'command': shlex.join(['python', '-m', 'benchmarks', *words]),
        'commit': commit(),
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'versions': {
            'python': platform.python_version(),
            **{package: version(package) for package in ('jax', 'jaxlib', 'flax', 'torch')},
        },
        'cpu': cpu(),
        'cpu_count': usable_cpus(),
        'load_average_before': os.getloadavg(),
        'gpu': gpu(),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'


def cpu() -> str:
    info = pathlib.Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def gpu() -> str:
    """Returns name and driver version of each GPU; '' if there are none."""
    query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return '; '.join(done.stdout.split('\n')).strip('; ') if done.returncode == 0 else ''


def positive(text: str) -> int:
    """Parses a command-line argument that is a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)
