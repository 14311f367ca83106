"""The training loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from nin_jax import distributed
from nin_jax.data.batches import Batch, Examples
from nin_jax.plan import Stage
from nin_jax.runs.interrupt import Interrupt
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.recorder import Recorder
from nin_jax.train.health import DivergedError, Health
from nin_jax.train.pictures import class_maps, shown_examples
from nin_jax.train.step import TrainState, evaluate, train_steps
from nin_jax.train.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of training: `status` is 'done', 'preempted' or 'diverged' (with a reason)."""

    status: str
    attempt: int
    step: int
    reason: str = ''


def fit(trainer: Trainer, state: TrainState, recorder: Recorder) -> Outcome:
    """Trains to the end of the plan; restarts a diverged run up to `train.restarts` times."""
    attempt, restarts = int(state.attempt), trainer.config.train.restarts
    with Interrupt() as interrupt:
        while True:
            try:
                return run_attempt(trainer, state, recorder, interrupt)
            except DivergedError as e:
                if attempt >= restarts:
                    return Outcome('diverged', attempt, e.step, str(e))
                attempt += 1
                recorder.note(f'{e}; starting over with new weights ({attempt} of {restarts})')
                state = trainer.initial_state(attempt)
                recorder.start_over(attempt, state)


def run_attempt(
    trainer: Trainer, state: TrainState, recorder: Recorder, interrupt: Interrupt
) -> Outcome:
    """Trains from `state` until the plan ends, the run diverges, or a stop signal arrives."""
    plan, clock = trainer.plan, recorder.clock
    step, attempt = int(state.step), int(state.attempt)
    health = Health(trainer.config, len(trainer.class_names), recorder.saved_health)
    calls, evaluator = Calls(trainer, attempt, clock), Evaluator(trainer, recorder, health)
    unread: list[tuple[int, dict]] = []  # metrics that the device may still be computing
    while step < plan.total_steps:
        start, step = step, step + plan.call_length(step)
        program, inputs = calls.prepare(start, step)
        with clock('train'):
            state, metrics = program(state, inputs, trainer.preprocess)
            stopping = distributed.anyone(interrupt.requested)
        unread.append((step, metrics))
        evaluating = plan.is_due(start, step, plan.eval_every)
        saving = plan.is_due(start, step, plan.checkpoint_every)
        compiling = not plan.repeats(start, step)  # does not count as training time
        # Reads the previous call's metrics during the newest call. Several processes are in sync.
        at_once = evaluating or saving or stopping or compiling or distributed.several()
        while len(unread) > (0 if at_once else 1):
            record_metrics(recorder, health, *unread.pop(0))
        error = evaluator(state) if evaluating else None
        if saving or stopping:
            recorder.save(step, state, error, health.saved)
        if stopping and step < plan.total_steps:
            recorder.wait()
            return Outcome('preempted', attempt, step)
    if recorder.lacks_evaluation():  # metrics.jsonl was lost
        evaluator(state)
    recorder.wait()
    return Outcome('done', attempt, step)


def record_metrics(recorder: Recorder, health: Health, step: int, metrics: dict) -> None:
    """Records a call's metrics; raises DivergedError, see `Health.check_training`."""
    with recorder.clock('train'):
        metrics = jax.device_get(metrics)
    loss, error, dead_steps = (metrics[k].item() for k in ('loss', 'error', 'dead_steps'))
    recorder.train(step, loss, error)
    health.check_training(step, loss, dead_steps)


class Calls:
    """Prepares calls of `train_steps`: their compiled programs and their inputs."""

    def __init__(self, trainer: Trainer, attempt: int, clock: Stopwatch):
        self._trainer, self._attempt, self._clock = trainer, attempt, clock
        self._side: int | None = None
        self._feed: Callable[[int], Examples | Batch] | None = None
        self.program = functools.cache(self._compile)

    def prepare(self, start: int, end: int) -> tuple[jax.stages.Compiled, Examples | Batch]:
        """Returns program and inputs for the steps from `start` to `end`, of one stage."""
        stage = self._trainer.plan.stage(start)
        with self._clock('data'):
            if stage.side != self._side:
                self._side = stage.side
                self._feed = self._trainer.train(stage.side).feed(self._attempt, start)
            assert self._feed is not None
            inputs = self._feed(end - start)
        return self.program(end - start, stage), inputs

    def _compile(self, num_steps: int, stage: Stage) -> jax.stages.Compiled:
        """Compiles `num_steps` steps of a stage."""
        inputs = self._trainer.train(stage.side).feed_shapes(num_steps)
        with self._clock('compile'):
            return train_steps.lower(
                self._trainer.state_shapes(),
                inputs,
                self._trainer.preprocess,
                setup=dataclasses.replace(self._trainer.setup, frozen=stage.frozen),
                num_steps=num_steps,
            ).compile()


class Evaluator:
    """Evaluates states on the evaluation split, records the results and returns top-1 errors."""

    def __init__(self, trainer: Trainer, recorder: Recorder, health: Health):
        self._trainer, self._recorder, self._health = trainer, recorder, health

    def __call__(self, state: TrainState) -> float:
        """Raises DivergedError, see `Health.check_evaluation`."""
        step, clock, programs = int(state.step), self._recorder.clock, self._programs
        with clock('eval'):
            scores = evaluate_split(self._trainer, state.weights, programs, clock)
        error = scores.errors / len(self._trainer.eval)
        self._recorder.eval(step, scores.loss, error, scores.errors)
        if note := self._health.check_evaluation(step, scores.dead_maps, scores.is_constant):
            self._recorder.note(note)
        if self._trainer.config.eval.pictures:
            with clock('eval'):
                drawn_HWC = class_maps(self._trainer, state.weights, self._shown)
            self._recorder.picture(step, 'class_maps', drawn_HWC)
        return error

    @functools.cached_property
    def _programs(self) -> dict[int, jax.stages.Compiled]:
        return eval_programs(self._trainer, self._recorder.clock)

    @functools.cached_property
    def _shown(self) -> Examples:
        return shown_examples(self._trainer)


class Scores(NamedTuple):
    """The result of an evaluation.

    Attributes:
      loss: mean cross-entropy in nats.
      errors: number of misclassified images.
      dead_maps: number of classes whose logit is zero for all images.
      is_constant: whether all images have the same logits, other than zero.
    """

    loss: float
    errors: int
    dead_maps: int
    is_constant: bool


def evaluate_split(trainer: Trainer, weights: dict, programs: dict, clock: Stopwatch) -> Scores:
    """Evaluates the weights on the evaluation split, with the result of `eval_programs`."""
    loss, errors, low_K, high_K = 0.0, 0, np.inf, -np.inf
    for part in trainer.eval.parts():
        found = jax.device_get(programs[len(part)](weights, part, trainer.preprocess))
        loss += float(found['loss']) * len(part)
        errors += int(found['errors'])
        low_K, high_K = np.minimum(low_K, found['low_K']), np.maximum(high_K, found['high_K'])
        clock.progress()
    is_zero_K = (low_K == 0) & (high_K == 0)
    is_constant = len(trainer.eval) > 1 and np.all(low_K == high_K) and not np.all(is_zero_K)
    return Scores(loss / len(trainer.eval), errors, int(np.sum(is_zero_K)), bool(is_constant))


def eval_programs(trainer: Trainer, clock: Stopwatch) -> dict[int, jax.stages.Compiled]:
    """Compiles `evaluate` for each size of the evaluation split's parts, the largest first."""
    weights = trainer.state_shapes().weights
    with clock('compile'):
        return {
            len(part): evaluate.lower(
                weights, part, trainer.preprocess, setup=trainer.setup
            ).compile()
            for part in trainer.eval.part_shapes()
        }
