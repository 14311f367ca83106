"""Reads and validates a sweep config; computes its points and their command lines."""

import dataclasses
import itertools
import math
import pathlib
import random
import runpy
from typing import Any

from experiments import cli
from experiments.space import Axis, Sweep, choice, text
from nin_jax import config, plan
from nin_jax.data import catalog, datasets
from nin_jax.errors import UserError, did_you_mean, one_line

CONFIGS = pathlib.Path('experiments/sweeps')
SAMPLERS = ('grid', 'random', 'tpe')
MOST_CHECKED = 1000  # corners of a space
TPE_STARTUP = 10  # TPE's first points are random
# A sweep is scored on the validation images and never uses the test images.
SPLITS = {'data.train': 'train', 'data.eval': 'valid'}


def load(path: str, overrides: dict[str, str]) -> Sweep:
    """Loads a sweep config without validation, and merges `overrides` into its `fixed` keys.

    Raises:
      UserError: the file does not exist or does not load.
    """
    if not pathlib.Path(path).is_file():
        there = [str(p) for p in sorted(CONFIGS.glob('[!_]*.py'))]
        raise UserError(f"no sweep config '{path}'{did_you_mean(path, there)}")
    try:
        sweep = runpy.run_path(path)['get_sweep']()
    except UserError:
        raise
    except Exception as e:  # a broken file can raise anything
        raise UserError(f"sweep config '{path}' does not load: {one_line(e)}") from e
    if not isinstance(sweep, Sweep):
        raise UserError(f"sweep config '{path}': get_sweep returns {sweep!r}, it must be a Sweep")
    return dataclasses.replace(sweep, fixed=sweep.fixed | overrides)


def check(sweep: Sweep) -> None:
    """Raises UserError if a trial could not start, as far as can be known in advance."""
    if bool(sweep.space) == bool(sweep.points):
        raise UserError('a sweep has either a space or points: give exactly one of them')
    if sweep.points and sweep.sampler:
        raise UserError(f'sampler={sweep.sampler!r}: a sweep over points has no sampler, remove it')
    if sweep.space and sweep.sampler not in SAMPLERS:
        raise UserError(f'no sampler {sweep.sampler!r}{did_you_mean(str(sweep.sampler), SAMPLERS)}')
    if sweep.sampler in ('random', 'tpe') and not sweep.trials:
        raise UserError(f'trials={sweep.trials!r}: {sweep.sampler} needs a number, 1 or more')
    if sweep.trials is not None and (not isinstance(sweep.trials, int) or sweep.trials < 1):
        raise UserError(f'trials={sweep.trials!r}: must be 1 or more, or None for all')
    for key, axis in sweep.space.items():
        if not isinstance(axis, Axis):
            raise UserError(f"space: '{key}' is {axis!r}, it must be choice(...) or another axis")
    known = config.flatten(cli.load_config(sweep.config))
    for key in [*sweep.space, *sweep.fixed, *itertools.chain(*sweep.points)]:
        if key in SPLITS:
            raise UserError(
                f"'{key}' is set by the sweep: it trains on '{SPLITS['data.train']}' and scores on "
                f"'{SPLITS['data.eval']}', so leave it out"
            )
        config.check_key(key, known)
        if key in sweep.fixed and (key in sweep.space or any(key in p for p in sweep.points)):
            raise UserError(f"'{key}' is both fixed and searched: remove one")
    for key, axis in sweep.space.items():
        if sweep.sampler == 'grid' and axis.kind in ('uniform', 'log_uniform'):
            raise UserError(f"'{key}' is {axis.kind}: a grid needs choice(...) or integer(...)")
    for point in corners(sweep):
        check_point(sweep, point)


def corners(sweep: Sweep) -> list[dict]:
    """Returns all points of a grid or list; otherwise points at the bounds of every axis."""
    axes = axes_of(sweep)
    if sweep.points or sweep.sampler == 'grid':
        return points(sweep)
    if math.prod(len(a.ends) for a in axes.values()) <= MOST_CHECKED:
        return combinations({key: axis.ends for key, axis in axes.items()})
    first = {key: axis.ends[0] for key, axis in axes.items()}
    return [first | {key: end} for key, axis in axes.items() for end in axis.ends]


def check_point(sweep: Sweep, point: dict) -> None:
    """Raises UserError unless a run can be built from the point; uses no data and no device."""
    from nin_jax.models.factory import layer_blocks  # JAX takes a second to import

    full: Any = cli.load_config(sweep.config, flags(sweep, point))
    config.validate(full)
    dataset = catalog.lookup(full.data.name)
    layer_blocks(full, dataset.num_classes)
    images = catalog.count(full.data.name, full.data.train, full.data.limit)
    plan.make_plan(full, images, short_calls=True)
    datasets.check_prepared(full.data.name, full.data.dir)


def axes_of(sweep: Sweep) -> dict[str, Axis]:
    """Returns the space; for a list of points, the values of each key in the list."""
    if sweep.space:
        return sweep.space
    rows = filled(sweep)
    values = {key: {text(row[key]): row[key] for row in rows} for key in rows[0]}
    return {key: choice(*seen.values()) for key, seen in values.items()}


def filled(sweep: Sweep) -> list[dict]:
    """Returns the points of a list with all keys; missing keys have the config's values."""
    keys = dict.fromkeys(itertools.chain(*sweep.points))
    base = config.flatten(cli.load_config(sweep.config, flags(sweep, {})))
    return [{k: choice(point.get(k, base[k])).values[0] for k in keys} for point in sweep.points]


def points(sweep: Sweep) -> list[dict]:
    """Returns all points; {} for those that TPE chooses during the sweep."""
    if sweep.points:
        return filled(sweep)[: sweep.trials]
    if sweep.sampler == 'grid':
        values = {
            key: axis.values or range(int(axis.low), int(axis.high) + 1)
            for key, axis in sweep.space.items()
        }
        return combinations(values)[: sweep.trials]
    rng = random.Random(sweep.seed)
    total = sweep.trials or 0
    count = min(total, TPE_STARTUP) if sweep.sampler == 'tpe' else total
    drawn = [{key: draw(axis, rng) for key, axis in sweep.space.items()} for _ in range(count)]
    return drawn + [{}] * (total - count)


def combinations(values: dict) -> list[dict]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def draw(axis: Axis, rng: random.Random) -> object:
    """Draws a random value, rounded to four digits to keep commands readable."""
    if axis.kind == 'choice':
        return rng.choice(axis.values)
    if axis.kind == 'integer':
        return rng.randint(int(axis.low), int(axis.high))
    if axis.is_log:
        value = math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        value = rng.uniform(axis.low, axis.high)
    return min(max(float(f'{value:.4g}'), axis.low), axis.high)


def flags(sweep: Sweep, point: dict, splits: dict = SPLITS) -> list[str]:
    """Returns the config overrides of a point's run as flags."""
    return [f'--config.{k}={text(v)}' for k, v in {**splits, **sweep.fixed, **point}.items()]


def command(sweep: Sweep, folder: pathlib.Path, point: dict, splits: dict = SPLITS) -> list[str]:
    """Returns the command line of a point's run."""
    start = ['python', '-m', 'experiments.main', f'--config={sweep.config}', f'--workdir={folder}']
    return [*start, *flags(sweep, point, splits)]
