"""What several tests need: configs, a tiny network, and commands in processes of their own."""

import atexit
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from nin_jax.config import block, default_config
from nin_jax.plan import Plan

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(p.stem for p in (ROOT / 'experiments' / 'configs').glob('[!_]*.py'))


def load_page(name: str, arg: str = '') -> ConfigDict:
    return importlib.import_module(f'experiments.configs.{name}').get_config(arg)


def tiny_config() -> ConfigDict:
    """A network of a few hundred weights on 256 embedded digits: a step takes milliseconds."""
    config = default_config()
    config.data.name = 'mnist_subset'
    config.data.limit = 256
    config.preprocess.recipe = 'scale'
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((8, 8, 8), kernel=5, pool='max', dropout=0.1, init_std=()),
            mlpconv2=block((8, 8, 10), kernel=3, pool='max', init_std=()),
        )
    )
    config.optim.drops = '75%'
    config.train.duration = '24steps'
    config.train.batch_size = 32
    config.train.steps_per_call = 4
    config.eval.every = '8steps'
    config.eval.batch_size = 96
    config.checkpoint.every = '8steps'
    return config


def assemble(config: ConfigDict):
    """The trainer of a config, as `commands.train` makes it."""
    from nin_jax.data.pipeline import fit_preprocess, load_data
    from nin_jax.pretrained.release import pretrained_weights
    from nin_jax.train.trainer import make_trainer

    data = load_data(config)
    fitted = fit_preprocess(config, data.train)
    return make_trainer(config, data, fitted, pretrained_weights(config))


def plan_of(**changes) -> Plan:
    """A plan of ten steps in epochs of two, for what needs one and no config."""
    numbers = dict(
        total_steps=10,
        num_examples=2,
        batch_size=1,
        steps_per_call=1,
        eval_every=2,
        checkpoint_every=2,
        drops=(),
        warmup=0,
    )
    return Plan(**numbers | changes)


TINY_PAGE = ROOT / 'tests' / 'tiny_page.py'


def command(*flags: str, page: pathlib.Path | str = TINY_PAGE) -> list[str]:
    return [sys.executable, '-m', 'experiments.main', f'--config={page}', *map(str, flags)]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended; `kind` is the class of the error it raised, if that is known."""

    returncode: int
    stdout: str
    stderr: str
    kind: str = ''


@functools.cache
def forkserver() -> subprocess.Popen:
    """A server of tests/forkserver.py, started when first asked for."""
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.forkserver'],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def stop() -> None:
        server.stdin.close()
        server.wait(timeout=60)

    atexit.register(stop)
    return server


def run_module(module: str, *words: object, timeout: int = 300) -> Result:
    """Runs an entry point of experiments, such as 'experiments.predict', in a forked process."""
    server = forkserver()
    server.stdin.write(json.dumps([module, [str(w) for w in words], timeout]) + '\n')
    server.stdin.flush()
    return Result(*json.loads(server.stdout.readline()))


def run_process(
    module: str, *words: object, env: dict | None = None, timeout: float = 300
) -> Result:
    """Runs an entry point in a process of its own, from the repository's root."""
    done = subprocess.run(
        [sys.executable, '-m', module, *(os.fsencode(str(w)) for w in words)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        timeout=timeout,
    )
    out, err = (text.decode(errors='replace') for text in (done.stdout, done.stderr))
    return Result(done.returncode, out, err)


def run_main(
    *flags: object, page: pathlib.Path | str = TINY_PAGE, env: dict | None = None
) -> Result:
    """Runs experiments.main on a config; a changed environment needs a process of its own."""
    words = (f'--config={page}', *flags)
    if env:
        return run_process('experiments.main', *words, env=env)
    return run_module('experiments.main', *words)


def assert_refused(result: Result, *names: str, kind: str = '', status: int = 2) -> None:
    """One line on stderr that holds the names (keys, values, paths), and the exit status."""
    assert (result.returncode, result.stderr.count('\n')) == (status, 1), result
    assert result.stderr.startswith('error: ') and 'Traceback' not in result.stdout, result
    for name in names:
        assert name in result.stderr, result
    assert result.kind == (kind or result.kind), result


def metrics(workdir: pathlib.Path, kind: str) -> list[dict]:
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [line for line in lines if line['kind'] == kind]


def summary(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / 'summary.json').read_text())


def wait_until(
    ready: Callable[[], object],
    seconds: float = 60,
    processes: Sequence[subprocess.Popen] = (),
    said: Callable[[], str] = str,
    pause_s: float = 0.01,
) -> None:
    """Waits until `ready()` is true.

    Args:
      ready: the condition.
      seconds: how long it may take.
      processes: they must not end before.
      said: what to show if the condition does not come true in time.
      pause_s: seconds between two checks; more if a check starts processes.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f'not within {seconds} s: {said()}'
        assert all(p.poll() is None for p in processes)
        time.sleep(pause_s)


def has_metrics(workdir: pathlib.Path, lines: int = 1) -> bool:
    """Whether a run has logged that many steps and evaluations."""
    path = workdir / 'metrics.jsonl'
    return path.exists() and path.read_text().count('\n') >= lines
