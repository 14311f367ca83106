"""The types of a sweep config. They are plain data; launch/sweep/points.py validates them.

Sweep(
    config='experiments/configs/cifar10.py:aug',
    space={'optim.lr': log_uniform(0.01, 0.3), 'model.class_bias': choice(0.0, 1.0)},
    sampler='tpe',
    trials=40,
)
"""

import dataclasses
import math
from typing import Any

from nin_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values that one config key may take.

    Attributes:
      kind: 'choice', 'uniform', 'log_uniform' or 'integer'.
      values: values of a choice; numbers and bools as they are, others as on a command line.
      low, high: bounds of the other kinds, inclusive.
    """

    kind: str
    values: tuple[bool | int | float | str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def ends(self) -> tuple:
        """All choices, or the lowest and the highest value."""
        return self.values or (self.low, self.high)

    @property
    def is_log(self) -> bool:
        return self.kind == 'log_uniform'


def choice(*values) -> Axis:
    """One of the values, such as choice(0.0, 0.5), choice('max', 'avg') or choice((8, 8), (9,))."""
    encoded = tuple(v if isinstance(v, (bool, int, float)) else text(v) for v in values)
    if len(set(map(text, encoded))) < max(len(encoded), 1):
        raise UserError(f'choice{values!r}: give at least one value, and no value twice')
    return Axis('choice', encoded)


def uniform(low: float, high: float) -> Axis:
    """A number from low to high, uniformly distributed."""
    return _between('uniform', float(low), float(high))


def log_uniform(low: float, high: float) -> Axis:
    """A number from low to high, with a uniformly distributed logarithm."""
    if low <= 0:
        raise UserError(f'log_uniform({low!r}, {high!r}): the lower bound must be above 0')
    return _between('log_uniform', float(low), float(high))


def integer(low: int, high: int) -> Axis:
    """An integer from low to high, both included."""
    if not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f'integer({low!r}, {high!r}): both bounds must be integers')
    return _between('integer', low, high)


def _between(kind: str, low: float, high: float) -> Axis:
    if not (low < high and math.isfinite(high - low)):
        raise UserError(f'{kind}({low!r}, {high!r}): the first bound must be below the second')
    return Axis(kind, (), low, high)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search over config keys.

    Trials train on the 'train' split and are scored by their final top-1 error on the validation
    images. The test images are never used.

    Attributes:
      config: a config file, with its variant.
      space: axes by config key. Give either `space` or `points`.
      points: a list of trials, each {config key: value}; missing keys keep their values.
      sampler: 'grid' (all combinations), 'random' or 'tpe'; None with `points`.
      trials: number of trials; None for all of a grid or of `points`.
      fixed: values of other config keys, the same for all trials.
      prune_after: epochs before a trial worse than the median can be pruned; None to never prune.
      seed: seed of the random points.
    """

    config: str
    space: dict[str, Axis] = dataclasses.field(default_factory=dict)
    points: tuple[dict[str, Any], ...] = ()
    sampler: str | None = None
    trials: int | None = None
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    prune_after: int | None = None
    seed: int = 0


def text(value: object) -> str:
    """Formats a value as on the command line: 0.1, true, (8,8,10), avg."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return '(' + ''.join(f'{text(v)},' for v in value) + ')'
    return value if isinstance(value, str) else repr(value)
