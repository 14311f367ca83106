"""Converts the durations of a config to steps."""

import dataclasses
import itertools
import re

from ml_collections import ConfigDict

from nin_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run with one training program.

    Attributes:
      side: side of the training images in pixels; 0 for the original size.
      frozen: number of mlpconv layers, from the first, that are no longer trained.
    """

    side: int = 0
    frozen: int = 0

    def __str__(self) -> str:
        """Returns '', '24x24', '24x24, mlpconv1 frozen' or the like."""
        side = [f'{self.side}x{self.side}'] if self.side else []
        layers = f'mlpconv1-{self.frozen}' if self.frozen > 1 else 'mlpconv1'
        return ', '.join(side + ([f'{layers} frozen'] if self.frozen else []))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps.

    Attributes:
      total_steps: number of steps of the run.
      num_examples: number of training images.
      batch_size: images per step.
      steps_per_call: steps per dispatch; evaluations, checkpoints and stops are between calls.
      eval_every, checkpoint_every: intervals in steps.
      drops: steps at which the learning rate drops.
      warmup: steps until the learning rate reaches `optim.lr`.
      image_sizes: (step, side) pairs; before `step`, images are resized to `side` pixels.
      freeze: steps at which the first mlpconv layer, the second, ... stop training.
    """

    total_steps: int
    num_examples: int
    batch_size: int
    steps_per_call: int
    eval_every: int
    checkpoint_every: int
    drops: tuple[int, ...]
    warmup: int
    image_sizes: tuple[tuple[int, int], ...] = ()
    freeze: tuple[int, ...] = ()

    @property
    def steps_per_epoch(self) -> float:
        return self.num_examples / self.batch_size

    def call_length(self, step: int) -> int:
        """Returns the number of steps of the dispatch at `step`, all of one stage."""
        end = next(end for _, _, end in self.stages() if end > step)
        return min(self.steps_per_call - step % self.steps_per_call, end - step)

    def repeats(self, start: int, end: int) -> bool:
        """Whether the call after the one from `start` to `end` runs the same program."""
        return (
            end < self.total_steps
            and self.call_length(end) == end - start
            and self.stage(end) == self.stage(start)
        )

    def stage(self, step: int) -> Stage:
        """Returns the image size and the frozen layers at `step`."""
        side = next((side for until, side in self.image_sizes if step < until), 0)
        return Stage(side, sum(step >= start for start in self.freeze))

    def stages(self) -> list[tuple[Stage, int, int]]:
        """Returns the stages of the run, in order, each with its first step and its end."""
        changes = {*(until for until, _ in self.image_sizes), *self.freeze, self.total_steps}
        ends = sorted(step for step in changes if 0 < step <= self.total_steps)
        return [(self.stage(start), start, end) for start, end in itertools.pairwise([0, *ends])]

    def is_due(self, start: int, end: int, every: int) -> bool:
        """Whether a call from `start` to `end` crosses a multiple of `every`, or ends the run."""
        return end // every > start // every or end == self.total_steps


def make_plan(config: ConfigDict, num_examples: int, short_calls: bool) -> Plan:
    """Converts durations to steps for a training split of `num_examples` images.

    Args:
      config: a valid config.
      num_examples: images of the training split.
      short_calls: whether `train.steps_per_call=0` means 10 steps (CPUs and streams) instead of an
        epoch.

    Raises:
      ConfigError: a duration is invalid, or a batch is larger than the training split.
    """
    batch_size = config.train.batch_size
    if batch_size > num_examples:
        raise ConfigError(
            f'train.batch_size={batch_size}: the training split holds only '
            f'{num_examples} images, choose that or less'
        )
    epoch = num_examples / batch_size
    total = _steps('train.duration', config.train.duration, epoch)
    if total * batch_size >= 2**31:
        raise ConfigError(
            f'train.duration={config.train.duration!r}: {total} steps of '
            f'{batch_size} images is past 2**31 images, choose less'
        )
    if len(config.train.freeze.split()) >= len(config.model.blocks):
        raise ConfigError(
            f'train.freeze={config.train.freeze!r}: at least the last of the mlpconv layers '
            'must be trained to the end'
        )
    warmup = _steps('optim.warmup', config.optim.warmup, epoch, total, least=0)
    if warmup > total:
        raise ConfigError(
            f'optim.warmup={config.optim.warmup!r}: {warmup} steps, but the run has only {total}'
        )
    # A call has the permutations of two epochs, so its length is at most an epoch.
    call = min(
        config.train.steps_per_call or (10 if short_calls else int(epoch)), int(epoch), total
    )
    return Plan(
        total_steps=total,
        num_examples=num_examples,
        batch_size=batch_size,
        steps_per_call=call,
        eval_every=_steps('eval.every', config.eval.every, epoch, total),
        checkpoint_every=_steps('checkpoint.every', config.checkpoint.every, epoch, total),
        drops=_growing_steps('optim.drops', config.optim.drops, epoch, total),
        warmup=warmup,
        image_sizes=_image_sizes(config.train.image_sizes, epoch, total),
        freeze=_growing_steps('train.freeze', config.train.freeze, epoch, total),
    )


def _image_sizes(sizes: str, epoch: float, total: int) -> tuple[tuple[int, int], ...]:
    """Parses '20@40%' to ((step, 20),)."""
    key, found, durations = 'train.image_sizes', [], []
    for word in sizes.split():
        side, _, until = word.partition('@')
        if not side.isdecimal() or not 8 <= int(side) <= 1024 or not until:
            raise ConfigError(f"{key}={sizes!r}: write SIDE@DURATION, such as '20@40%'")
        found.append((_steps(key, until, epoch, total), int(side)))
        durations.append(until)
    steps = [step for step, _ in found]
    # In a very short run, two durations can be the same step.
    if steps != sorted(steps) or len(set(durations)) < len(durations):
        raise ConfigError(f'{key}={sizes!r}: durations must grow from left to right')
    return tuple(found)


def _growing_steps(key: str, durations: str, epoch: float, total: int) -> tuple[int, ...]:
    """Converts '60% 80%' to steps."""
    steps = tuple(_steps(key, duration, epoch, total) for duration in durations.split())
    if list(steps) != sorted(steps):
        raise ConfigError(f'{key}={durations!r}: durations must grow from left to right')
    return steps


def _steps(key: str, duration: str, epoch: float, total: int = 0, least: int = 1) -> int:
    """Converts '3ep', '500steps' or '10%' (of `total`, if given) to an integer of steps."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*(ep|epochs?|steps?|%)', duration.strip())
    if not match or (match[2] == '%' and not total):
        units = "'3ep' or '500steps'" + (" or '10%'" if total else '')
        raise ConfigError(f'{key}={duration!r}: write a duration as {units}')
    if least and not float(match[1]):
        raise ConfigError(f'{key}={duration!r}: must be above 0')
    unit = {'e': epoch, 's': 1.0, '%': total / 100}[match[2][0]]
    steps = float(match[1]) * unit
    if not steps < 2**53:  # also rejects infinity
        raise ConfigError(f'{key}={duration!r}: is past 2**31 images, choose less')
    return max(least, round(steps))
