"""The training loop, with detection of divergence and dead networks."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from nin_jax import distributed
from nin_jax.data.batches import Batches, Examples
from nin_jax.plan import Stage
from nin_jax.runs.interrupt import Interrupt
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.recorder import Recorder
from nin_jax.train.pictures import class_maps, shown_examples
from nin_jax.train.step import TrainState, evaluate, train_steps
from nin_jax.train.trainer import Trainer


class DivergedError(Exception):
    """The run cannot recover, for the reason in the message, at `step` or before."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


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
                state = trainer.start(attempt)
                recorder.start_over(attempt, state)


def run_attempt(
    trainer: Trainer, state: TrainState, recorder: Recorder, interrupt: Interrupt
) -> Outcome:
    """Trains from `state` until the plan ends, the run diverges, or a stop signal arrives."""
    plan, clock = trainer.plan, recorder.clock
    step, attempt = int(state.step), int(state.attempt)
    next_call, score = Calls(trainer, state, clock), Scoring(trainer, state, recorder)
    unread: list[tuple[int, dict]] = []  # metrics that the device may still be computing
    while step < plan.total_steps:
        start, step = step, step + plan.next_call(step)
        program, batches = next_call(start, step)
        with clock('train'):
            state, metrics = program(state, batches, trainer.preprocess)
            stopping = distributed.anyone(interrupt.requested)
        unread.append((step, metrics))
        evaluating = plan.is_due(start, step, plan.eval_every)
        saving = plan.is_due(start, step, plan.checkpoint_every)
        compiling = not plan.repeats(start, step)  # does not count as training time
        # Reads the previous call's metrics during the newest call. Several processes are in sync.
        at_once = evaluating or saving or stopping or compiling or distributed.several()
        while len(unread) > (0 if at_once else 1):
            record_metrics(trainer, recorder, *unread.pop(0))
        error = score(state) if evaluating else None
        if saving or stopping:
            recorder.save(step, state, error)
        if stopping and step < plan.total_steps:
            recorder.wait()
            return Outcome('preempted', attempt, step)
    if recorder.lacks_evaluation():  # metrics.jsonl was lost
        score(state)
    recorder.wait()
    return Outcome('done', attempt, step)


def record_metrics(trainer: Trainer, recorder: Recorder, step: int, metrics: dict) -> None:
    """Records a call's metrics.

    Raises:
      DivergedError: the loss is not finite, or the network is dead.
    """
    with recorder.clock('train'):
        metrics = jax.device_get(metrics)
    loss, error, dead_steps = (metrics[k].item() for k in ('loss', 'error', 'dead_steps'))
    recorder.train(step, loss, error)
    if not math.isfinite(loss):
        raise DivergedError(f'the loss became {loss} by step {step}: lower optim.lr', step)
    if dead_steps >= trainer.config.train.dead_steps:
        classes = len(trainer.class_names)
        raise DivergedError(
            f'dead network: all logits of 95 % of the images have been 0 for {dead_steps} steps, '
            f'so the loss stays at ln({classes}) = {math.log(classes):.6f} and almost no gradient '
            'flows: use another seed, or allow train.restarts',
            step,
        )


class Calls:
    """Supplies each call of training steps with its compiled program and its batches."""

    def __init__(self, trainer: Trainer, state: TrainState, clock: Stopwatch):
        self._trainer, self._clock = trainer, clock
        self._attempt, self._state_shapes = int(state.attempt), shapes(state)
        self._side: int | None = None
        self._feed: Callable[[int], Examples | Batches] | None = None
        self.program = functools.cache(self._compile)

    def __call__(self, start: int, end: int) -> tuple[jax.stages.Compiled, Examples | Batches]:
        """Returns program and batches for the steps from `start` to `end`, of one stage."""
        stage = self._trainer.plan.stage(start)
        with self._clock('data'):
            if stage.side != self._side:
                self._side = stage.side
                self._feed = self._trainer.train(stage.side).feed(self._attempt, start)
            assert self._feed is not None
            batches = self._feed(end - start)
        return self.program(end - start, stage), batches

    def _compile(self, num_steps: int, stage: Stage) -> jax.stages.Compiled:
        """Compiles `num_steps` steps of a stage."""
        batches = self._trainer.train(stage.side).feed_shapes(num_steps)
        with self._clock('compile'):
            return train_steps.lower(
                self._state_shapes,
                batches,
                self._trainer.preprocess,
                setup=dataclasses.replace(self._trainer.setup, frozen=stage.frozen),
                num_steps=num_steps,
            ).compile()


class Scoring:
    """Evaluates states on the evaluation split, records the results and returns top-1 errors."""

    def __init__(self, trainer: Trainer, state: TrainState, recorder: Recorder):
        self._trainer, self._recorder = trainer, recorder
        self._program = eval_program(trainer, state, recorder.clock)
        self._dead_maps = 0
        self._dead_since: int | None = None  # step of the evaluation that found the network dead

    def __call__(self, state: TrainState) -> float:
        self._program(0)  # compiles before the clock starts
        with self._recorder.clock('eval'):
            loss, errors, dead_maps, is_constant = score(
                self._trainer, state.weights, self._program
            )
        error = errors / len(self._trainer.eval)
        self._recorder.eval(int(state.step), loss, error, errors)
        self._check_alive(int(state.step), is_constant)
        if dead_maps != self._dead_maps:
            self._dead_maps, maps = dead_maps, len(self._trainer.class_names)
            fix = '; model.class_bias above 0 prevents it' if dead_maps else ''
            self._recorder.note(f'{dead_maps} of {maps} class maps are zero for all images{fix}')
        if self._trainer.config.eval.pictures:
            with self._recorder.clock('eval'):
                drawn_HWC = class_maps(self._trainer, state.weights, self._shown)
            self._recorder.picture(int(state.step), 'class_maps', drawn_HWC)
        return error

    def _check_alive(self, step: int, is_constant: bool) -> None:
        """Raises DivergedError if all images had the same logits for `train.dead_steps` steps."""
        config = self._trainer.config
        if not is_constant or config.dtype != 'float32':  # others can round to the same number
            self._dead_since = None
        elif self._dead_since is None:
            self._dead_since = step
        elif step - self._dead_since >= config.train.dead_steps:
            raise DivergedError(
                'dead network: all images have the same logits, because a hidden layer is zero for '
                'all of them: use another seed, or allow train.restarts',
                step,
            )

    @functools.cached_property
    def _shown(self) -> Examples:
        return shown_examples(self._trainer)


def score(trainer: Trainer, weights: dict, program: Callable) -> tuple[float, int, int, bool]:
    """Evaluates the weights on the evaluation split.

    Returns mean cross-entropy (nats), number of errors, number of classes whose logit is zero for
    all images, and whether all images have the same logits, other than zero.
    """
    loss, errors, low_K, high_K = 0.0, 0, np.inf, -np.inf
    for part in trainer.eval.parts():
        scores = jax.device_get(program(len(part))(weights, part, trainer.preprocess))
        loss += float(scores['loss']) * len(part)
        errors += int(scores['errors'])
        low_K, high_K = np.minimum(low_K, scores['low_K']), np.maximum(high_K, scores['high_K'])
    is_zero_K = (low_K == 0) & (high_K == 0)
    is_constant = len(trainer.eval) > 1 and np.all(low_K == high_K) and not np.all(is_zero_K)
    return loss / len(trainer.eval), errors, int(np.sum(is_zero_K)), bool(is_constant)


def eval_program(trainer: Trainer, state: TrainState, clock: Stopwatch) -> Callable:
    """Returns a function from a number of examples (0: a full dispatch) to a compiled program."""
    weight_shapes = shapes(state).weights

    @functools.cache
    def program(count: int) -> jax.stages.Compiled:
        examples = trainer.eval.part_shapes(count)
        return evaluate.lower(
            weight_shapes, examples, trainer.preprocess, setup=trainer.setup
        ).compile()

    def sized(count: int) -> jax.stages.Compiled:
        with clock('compile'):
            return program(len(trainer.eval.part_shapes(count)))

    return sized


def shapes(tree):
    """Returns the shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
