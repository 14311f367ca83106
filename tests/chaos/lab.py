"""Where the rounds happen: folders, environment, an undisturbed run, and the comparison with it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import scipy.io

ROOT = pathlib.Path(__file__).parents[2]
PAGE = 'tests/chaos/page.py'
PATIENCE_S = 600  # more than any of these processes takes; past it, one hangs
TIMING = ('images_per_s',)


class Trouble(Exception):
    """What a round showed to be wrong, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that is over."""

    status: int
    out: str
    err: str

    def expect(self, *statuses: int) -> 'Ended':
        """Itself; Trouble for another exit status, or for a traceback with any."""
        if self.status not in statuses:
            raise Trouble(f'exit status {self.status}, expected {statuses}: {self.err[-600:]}')
        if 'Traceback' in self.err or 'Traceback' in self.out:
            raise Trouble(f'a traceback (exit status {self.status}): {self.err[-1500:]}')
        if self.status == 2 and not self.err.splitlines()[-1].startswith('error: '):
            raise Trouble(f'exit status 2 without a sentence: {self.err[-600:]}')
        return self


@dataclasses.dataclass(frozen=True)
class Reference:
    """An undisturbed run: the digest of its last checkpoint, its metrics, how long it takes."""

    weights: str
    lines: list[dict]
    seconds: float


class Lab:
    """A folder of experiments with a compilation cache of its own.

    Attributes:
      folder: everything happens in it.
      digits, svhn: undisturbed runs of the two variants of the page.
      prepare_s: how long `prepare` takes.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._env = os.environ | {
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla'),
            'TFDS_DATA_DIR': str(folder / 'tfds'),
        }
        self._env.pop('XLA_FLAGS', None)
        write_svhn(folder / 'archives')
        start = time.perf_counter()
        self.wait(self.prepare(folder / 'tfds')).expect(0)
        self.prepare_s = time.perf_counter() - start
        self.digits, self.svhn = self._reference(''), self._reference('svhn')

    def _reference(self, variant: str) -> Reference:
        for i in range(2):  # the first compiles
            workdir = self.folder / f'undisturbed{variant}{i}'
            start = time.perf_counter()
            self.wait(self.train(workdir, variant)).expect(0)
            seconds = time.perf_counter() - start
        return Reference(weights(workdir), metrics(workdir), seconds)

    def train(self, workdir, variant: str = '', **kwargs) -> subprocess.Popen:
        """Starts `experiments.main`; keywords as for `start`."""
        words = (f'--config={PAGE}:{variant}', f'--workdir={workdir}')
        return self.start('experiments.main', *words, **kwargs)

    def prepare(self, data_dir, **kwargs) -> subprocess.Popen:
        """Starts `experiments.prepare` on the made-up archives."""
        words = ('svhn_cropped', f'--archives={self.folder / "archives"}', f'--data_dir={data_dir}')
        return self.start('experiments.prepare', *words, **kwargs)

    def start(self, module: str, *words: str, env: dict | None = None, **kwargs):
        return subprocess.Popen(
            [sys.executable, '-m', module, *words],
            cwd=ROOT,
            env=self._env | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )

    def wait(self, process: subprocess.Popen) -> Ended:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Trouble(f'still running after {PATIENCE_S} s') from None
        return Ended(process.returncode, out, err)

    def finish(self, workdir, variant: str = '', **kwargs) -> None:
        """Runs the same command again to its end; Trouble unless all is as if undisturbed."""
        self.wait(self.train(workdir, variant, **kwargs)).expect(0)
        reference = self.svhn if variant == 'svhn' else self.digits
        if weights(workdir) != reference.weights:
            raise Trouble('the weights differ from those of the undisturbed run')
        if metrics(workdir) != reference.lines:
            raise Trouble('metrics.jsonl differs from that of the undisturbed run')
        if json.loads((workdir / 'summary.json').read_text())['status'] != 'done':
            raise Trouble("summary.json does not say 'done'")


def weights(workdir: pathlib.Path) -> str:
    """The digest of the newest checkpoint's arrays, as kept with it."""
    found = {int(p.parent.parent.name): p for p in workdir.glob('checkpoints/*/meta/metadata')}
    return json.loads(found[max(found)].read_text())['digest']


def metrics(workdir: pathlib.Path) -> list[dict]:
    """All lines of metrics.jsonl, but for what a clock measured."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def write_svhn(folder: pathlib.Path, seed: int = 0) -> None:
    """Made-up archives in SVHN's format: 60, 40 and 30 images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for part, count in (('train', 60), ('extra', 40), ('test', 30)):
        images = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1).reshape(-1, 1)
        scipy.io.savemat(folder / f'{part}_32x32.mat', {'X': images, 'y': labels})


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *words: str) -> Iterator[bool]:
    """Mounts with `mount WORDS FOLDER`; yields whether this user may."""
    folder.mkdir(parents=True)
    done = subprocess.run(['mount', *words, folder], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(['umount', '--lazy', folder], check=True)
