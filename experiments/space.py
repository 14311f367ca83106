"""What a sweep config is made of: plain data, which launch/sweep/points.py checks.

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
      values: of a choice; others than numbers and bools are written as on a command line.
      low, high: of the others, both included.
    """

    kind: str
    values: tuple[bool | int | float | str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def ends(self) -> tuple:
        """Every choice, or the lowest and the highest value."""
        return self.values or (self.low, self.high)

    @property
    def is_log(self) -> bool:
        return self.kind == 'log_uniform'


def choice(*values) -> Axis:
    """One of the values, such as choice(0.0, 0.5), choice('max', 'avg') or choice((8, 8), (9,))."""
    encoded = tuple(v if isinstance(v, (bool, int, float)) else text(v) for v in values)
    if len(set(map(text, encoded))) < max(len(encoded), 1):
        raise UserError(f'choice{values!r}: give one value or more, none of them twice')
    return Axis('choice', encoded)


def uniform(low: float, high: float) -> Axis:
    """Any number from low to high, each as likely."""
    return _between('uniform', float(low), float(high))


def log_uniform(low: float, high: float) -> Axis:
    """Any number from low to high, each order of magnitude as likely."""
    if low <= 0:
        raise UserError(f'log_uniform({low!r}, {high!r}): the lower end must be above 0')
    return _between('log_uniform', float(low), float(high))


def integer(low: int, high: int) -> Axis:
    """Any whole number from low to high."""
    if not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f'integer({low!r}, {high!r}): both ends must be whole numbers')
    return _between('integer', low, high)


def _between(kind: str, low: float, high: float) -> Axis:
    if not (low < high and math.isfinite(high - low)):
        raise UserError(f'{kind}({low!r}, {high!r}): the first must be below the second')
    return Axis(kind, (), low, high)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search over config keys. A trial is scored by its final top-1 error on the validation
    images, and trains on the 'train' split: no choice depends on the test images.

    Attributes:
      config: a config file, with its variant.
      space: config key -> axis; or else `points`.
      points: trials one by one, each {config key: value}; a key left out keeps its value.
      sampler: 'grid' (every combination), 'random' or 'tpe'; of `points`, None.
      trials: how many; None for all of a grid or of `points`.
      fixed: other config keys set for all trials.
      prune_after: epochs from which a trial worse than the median may be stopped; None: never.
      seed: decides the random points.
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
    """A value as on the command line: 0.1, true, (8,8,10), avg."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return '(' + ''.join(f'{text(v)},' for v in value) + ')'
    return value if isinstance(value, str) else repr(value)
