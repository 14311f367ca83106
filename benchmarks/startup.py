"""Measures the time to --help, to the first step of a run, and to load the data.

Each measurement is the median over several separate processes, timed from outside.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
FIRST_STEP = {  # name -> config; all except the quickstart need prepared data
    'quickstart': 'quickstart.py',
    'CIFAR-10, 512 images': 'cifar10.py:smoke',
    'CIFAR-10': 'cifar10.py',
}


def measure(repeats: int, limit: float) -> list[dict]:
    """Returns rows {'what', 'seconds': [...], 'median_s'} or {'what', 'failed'}.

    A measurement that takes more than `limit` seconds fails.
    """
    rows = [row('--help', [seconds_of_help() for _ in range(repeats)])]
    for name, config in FIRST_STEP.items():
        cold, warm = [], []
        try:
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as folder:
                    cache = pathlib.Path(folder) / 'cache'
                    for name_of, seconds in (('cold', cold), ('warm', warm)):
                        workdir = pathlib.Path(folder) / name_of
                        seconds.append(seconds_to_first_step(config, workdir, cache, limit))
        except RuntimeError as e:
            rows.append({'what': f'{name}: first step', 'failed': str(e)})
            continue
        rows.append(row(f'{name}: first step, nothing compiled yet', cold))
        rows.append(row(f'{name}: first step, second start', warm))
    rows += data_rows(repeats, limit)
    return rows


def row(what: str, seconds: list[float]) -> dict:
    return {'what': what, 'seconds': seconds, 'median_s': statistics.median(seconds)}


def seconds_of_help() -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, '-m', 'experiments.main', '--help'], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def seconds_to_first_step(
    config: str, workdir: pathlib.Path, cache: pathlib.Path, limit: float
) -> float:
    """Returns seconds from the command to the first line of metrics, at one step per call.

    Raises:
      RuntimeError: the run ends without a step, or has none after `limit` seconds.
    """
    command = [
        *(sys.executable, '-m', 'experiments.main'),
        f'--config=experiments/configs/{config}',
        f'--workdir={workdir}',
        '--config.train.duration=2steps',
        '--config.train.steps_per_call=1',
    ]
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}
    metrics, start = workdir / 'metrics.jsonl', time.perf_counter()
    with (
        tempfile.TemporaryFile('w+') as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        try:
            while not (metrics.exists() and '"train"' in metrics.read_text()):
                if process.poll() is not None:
                    errors.seek(0)
                    raise RuntimeError(errors.read().strip() or 'the run ended without a step')
                if time.perf_counter() - start > limit:
                    raise RuntimeError(f'no step in {limit:.0f} s')
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()


_LOAD = """
import sys, time
from nin_jax.data import datasets
start = time.perf_counter()
images = datasets.load_arrays('cifar10', 'train+valid').images
checksum = images[::1000].sum()  # reads the memory-mapped file
print(time.perf_counter() - start, len(images))
"""
_DECODE = """
import os, time
import tensorflow_datasets as tfds
start = time.perf_counter()
source = tfds.data_source('cifar10', split='train[:2000]', data_dir=os.environ.get('TFDS_DATA_DIR'))
images = [example['image'] for example in source]
print(time.perf_counter() - start, len(images))
"""


def data_rows(repeats: int, limit: float) -> list[dict]:
    """Measures loading of CIFAR-10's training images from the cache, and one by one from TFDS."""
    rows = []
    for what, program in (('from the cache', _LOAD), ('by tfds.data_source', _DECODE)):
        what = f'CIFAR-10 images {what}'
        try:
            results = [
                subprocess.run(
                    [sys.executable, '-c', program],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=limit,
                    check=True,
                )
                for _ in range(repeats)
            ]
        except subprocess.TimeoutExpired:
            rows.append({'what': what, 'failed': f'no answer in {limit:.0f} s'})
            continue
        except subprocess.CalledProcessError as e:
            rows.append({'what': what, 'failed': last_line(e.stderr) or f'status {e.returncode}'})
            continue
        seconds, counts = zip(*(map(json.loads, r.stdout.split()) for r in results), strict=True)
        done = row(f'{counts[0]:,} {what}', list(seconds))
        rows.append(done | {'images_per_s': counts[0] / done['median_s']})
    return rows


def last_line(text: str) -> str:
    return text.strip().rpartition('\n')[2]
