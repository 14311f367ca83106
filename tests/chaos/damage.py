"""Damaged files: noticed and said, or harmless; never a wrong number without a word.

    python -m tests.chaos.damage --files=400 --seed=0

Every file of the newest checkpoint, of the run's folder, of the data cache and of the TFDS folder
is deleted, cut short, emptied, filled with zeros, has bits flipped, or becomes another run's.
Then a run is resumed (`resume`), a finished one is started again, evaluated, looked at and reported
(`read`), or the data are loaded (`cache`, `tfds`), and everything that comes out is compared with
what comes of whole files. Most do so in this process, as the commands' own functions; every
--every'th as a process of its own.
"""

import argparse
import collections
import contextlib
import gc
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np

from experiments import cli
from nin_jax.errors import UserError
from tests.chaos import page
from tests.chaos.lab import PAGE, Lab, Trouble, metrics, weights, write_svhn

SVHN = pathlib.Path('svhn_cropped/3.1.0')


# ---- kinds of damage: bytes, another file's bytes, random numbers -> bytes, or None to delete ----


def flip(data: bytes, bits: int, rng: np.random.Generator) -> bytes:
    array = bytearray(data)
    for bit in rng.integers(0, 8 * len(data), bits):
        array[bit // 8] ^= 1 << bit % 8
    return bytes(array)


def zeros(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data) + 1, 2))
    return data[:start] + bytes(end - start) + data[end:]


KINDS = {
    'delete': lambda data, other, rng: None,
    'truncate': lambda data, other, rng: data[: rng.integers(0, len(data))],
    'empty': lambda data, other, rng: b'',
    'zero-fill': lambda data, other, rng: bytes(len(data)),
    'zero a part': lambda data, other, rng: zeros(data, rng),
    'flip a bit': lambda data, other, rng: flip(data, 1, rng),
    'flip 1 % of the bytes': lambda data, other, rng: flip(data, len(data) // 100 + 2, rng),
    "another run's": lambda data, other, rng: other,
}


# ---- what is done with the damaged files --------------------------------------------------------


class Bench:
    """Whole folders to copy and damage, another run's for swapping, and what whole ones give."""

    def __init__(self, folder: pathlib.Path):
        from nin_jax import commands

        self.lab = Lab(folder)
        self.whole = {'read': self.lab.folder / 'undisturbed1'}
        self.other = {'read': folder / 'other'}
        self.config = page.get_config()
        strange = page.get_config()
        strange.seed = 1
        with quiet():
            commands.train(strange, self.other['read'], 'python -m experiments.main')
        for kind in (self.whole, self.other):
            # As if killed between the last checkpoint but one and the last.
            kind['resume'] = copy(kind['read'], kind['read'].with_name(f'{kind["read"].name}.half'))
            (kind['resume'] / 'summary.json').unlink()
            shutil.rmtree(newest(kind['resume']))
        write_svhn(folder / 'strange_archives', seed=1)
        for kind, root in ((self.whole, folder / 'tfds'), (self.other, folder / 'strange_tfds')):
            if kind is self.other:
                from nin_jax.data.prepare import prepare

                with quiet():
                    prepare('svhn_cropped', str(root), str(folder / 'strange_archives'))
            kind['cache'] = root
            kind['tfds'] = copy(root, root.with_name(f'{root.name}.uncached'))
            shutil.rmtree(kind['tfds'] / 'nin_jax_cache' / SVHN)
        self.truth = {
            name: self.outcome(name, copy(path, folder / f'true_{name}'))
            for name, path in self.whole.items()
        }

    def targets(self, name: str) -> list[pathlib.Path]:
        """The files to damage, relative to the folder."""
        root = self.whole[name]
        if name == 'cache':
            found = (root / 'nin_jax_cache' / SVHN).iterdir()
        elif name == 'tfds':
            found = [*(root / SVHN).iterdir(), *root.glob('nin_jax_cache/*.json')]
        else:
            files = ('config.json', 'metrics.jsonl', 'summary.json', 'preprocess.npz')
            found = [*newest(root).rglob('*'), *(root / f for f in files)]
        return sorted(path.relative_to(root) for path in found if path.is_file())

    def counterpart(self, name: str, path: pathlib.Path) -> bytes | None:
        """The other run's file at that place; arrays' files have names of their own in each."""
        other = self.other[name] / path
        if not other.exists():
            whole = sorted((self.whole[name] / path.parent).iterdir())
            others = sorted(other.parent.iterdir())
            place = whole.index(self.whole[name] / path)
            other = others[min(place, len(others) - 1)]
        return other.read_bytes() if other.is_file() else None

    def outcome(self, name: str, folder: pathlib.Path) -> dict:
        """All that may not be wrong silently; 'said' holds warnings, or the one sentence."""
        with quiet() as said:
            try:
                seen = getattr(self, f'_{name}')(folder)
            except UserError as e:
                seen = {'refused': str(e)}
        warnings = [line for line in said.getvalue().splitlines() if line.startswith('warning: ')]
        return {'seen': seen, 'said': warnings}

    def _resume(self, folder: pathlib.Path) -> dict:
        from nin_jax import commands

        status = commands.train(self.config, folder, 'python -m experiments.main')
        return {
            'weights': weights(folder),
            'metrics': metrics(folder),
            'summary': summary_of(folder),
            'status': status,
        }

    def _read(self, folder: pathlib.Path) -> dict:
        from experiments.report import records
        from nin_jax import commands
        from nin_jax.pretrained import trained

        with contextlib.redirect_stdout(io.StringIO()) as out:
            commands.evaluate(self.config, folder, None)
        run = trained.load_run(folder)
        images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
        looked_at = run.score(images)[0].tobytes(), run.class_names, run.step
        status = commands.train(self.config, folder, 'python -m experiments.main')
        record = records.load(folder)[0]
        kept = ('final_error', 'best_error', 'best_step', 'epochs', 'seed', 'config', 'parameters')
        return {
            'summary': summary_of(folder),
            'metrics': metrics(folder),
            'status': status,
            'evaluated': out.getvalue(),
            'looked at': looked_at,
            'reported': {key: record[key] for key in kept},
        }

    def _cache(self, folder: pathlib.Path) -> dict:
        from nin_jax.data.datasets import load_arrays

        split = load_arrays('svhn_cropped', 'train+valid+test', str(folder))
        return {'data': (split.images.tobytes(), split.labels.tobytes(), split.class_names)}

    _tfds = _cache

    def process(self, name: str, folder: pathlib.Path) -> dict:
        """The same in a process of its own, as far as a command shows it."""
        truth = self.truth[name]['seen']
        if name in ('cache', 'tfds'):
            env, workdir = {'TFDS_DATA_DIR': str(folder)}, folder / 'run'
            process = self.lab.train(workdir, 'svhn', env=env)
        elif name == 'resume':
            process, workdir = self.lab.train(folder), folder
        else:
            words = (f'--config={PAGE}', f'--workdir={folder}', '--mode=eval')
            process = self.lab.start('experiments.main', *words)
        ended = self.lab.wait(process).expect(0, 2)
        said = [line for line in ended.err.splitlines() if line.startswith('warning: ')]
        if ended.status:
            return {'seen': {'refused': ended.err.splitlines()[-1]}, 'said': said}
        if name == 'read':
            same = ended.out == truth['evaluated']
        else:
            reference = self.lab.digits if name == 'resume' else self.lab.svhn
            same = (weights(workdir), metrics(workdir)) == (reference.weights, reference.lines)
        return {'seen': truth if same else {}, 'said': said}


def summary_of(folder: pathlib.Path) -> dict:
    summary = json.loads((folder / 'summary.json').read_text())
    kept = ('status', 'final_error', 'best_error', 'best_step', 'step', 'epoch', 'seed', 'config')
    return {key: summary[key] for key in kept}


def judge(truth: dict, outcome: dict) -> str:
    if 'refused' in outcome['seen']:
        if '\n' in outcome['seen']['refused']:
            raise Trouble('more than one line')
        return 'one sentence'
    if outcome['seen'] == truth['seen']:
        return 'said, made good' if outcome['said'] else 'harmless'
    if outcome['said']:
        return 'said, went on'
    wrong = [k for k, v in truth['seen'].items() if outcome['seen'].get(k) != v]
    raise Trouble(f'SILENT: {wrong} differ')


def newest(folder: pathlib.Path) -> pathlib.Path:
    return max((folder / 'checkpoints').iterdir(), key=lambda path: int(path.name))


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(source, target))


@contextlib.contextmanager
def quiet():
    """Yields what goes to stderr meanwhile."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(err):
        yield err


def damage(bench: Bench, case: tuple, folder: pathlib.Path, rng, as_process: bool) -> str | None:
    """Damages one file of a copy and returns what came of it; None if the file stayed as it was."""
    name, path, kind = case
    copy(bench.whole[name], folder)
    data = (folder / path).read_bytes()
    damaged = KINDS[kind](data, bench.counterpart(name, path), rng) if data else None
    if damaged == data or (damaged is None and kind != 'delete'):
        return None
    if damaged is None:
        (folder / path).unlink()
    else:
        (folder / path).write_bytes(damaged)
    outcome = (bench.process if as_process else bench.outcome)(name, folder)
    return judge(bench.truth[name], outcome)


def main() -> int:
    parser = argparse.ArgumentParser(prog='tests.chaos.damage')
    parser.add_argument('--files', type=int, default=40, help='how many; default: %(default)s')
    parser.add_argument('--every', type=int, default=20, help='as a process of its own, each ...')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', help='where; default: a temporary folder')
    args = parser.parse_args()
    folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix='damage-')).absolute()
    start, met, failed = time.monotonic(), collections.Counter(), []
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla')}
    import jax  # which reads the environment

    cli.logging.set_verbosity(cli.logging.FATAL)
    bench = Bench(folder)
    cases = [(n, p, k) for n in bench.whole for p in bench.targets(n) for k in KINDS]
    done = processes = tried = 0
    while done < args.files:
        if tried % 20 == 0:  # every case compiles programs, more in the end than a process may map
            jax.clear_caches()
            gc.collect()
        cycle, place = divmod(tried, len(cases))
        case = cases[np.random.default_rng([args.seed, cycle]).permutation(len(cases))[place]]
        rng = np.random.default_rng([args.seed, tried, 1])
        where, as_process = folder / f'case{tried}', args.every and done % args.every == 0
        tried += 1
        try:
            came = damage(bench, case, where, rng, as_process)
        except Exception as e:  # a crash is what is looked for
            came = 'FAILED'
            failed.append(f'{case[0]} {case[1]}, {case[2]}: {type(e).__name__}: {e} in {where}')
            print(failed[-1], flush=True)
        if came is not None:
            done, processes = done + 1, processes + bool(as_process)
            met[case[0], came] += 1
        if came != 'FAILED':
            shutil.rmtree(where)
    for (name, came), count in sorted(met.items()):
        print(f'{name:8} {came:16} {count:4}')
    silent = sum('SILENT' in f for f in failed)
    print(
        f'{done} damaged files of {len(cases)} cases, seed {args.seed}, {processes} of them in a '
        f'process of its own, {time.monotonic() - start:.0f} s: '
        f'crashed {len(failed) - silent}, silent {silent}'
    )
    if not failed and not args.folder:
        shutil.rmtree(folder)
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
