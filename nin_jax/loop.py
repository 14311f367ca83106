"""The training loop, and the two ways in which a run goes wrong by itself."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax

from nin_jax import distributed
from nin_jax.checkpoint import Checkpoints
from nin_jax.interrupt import Interrupt
from nin_jax.records import Records, Stopwatch
from nin_jax.run import Run
from nin_jax.step import Batches, Examples, TrainState, evaluate, train_steps
from nin_jax.stream import Stream, feed


class DivergedError(Exception):
    """The run cannot recover; the message says how it went wrong, `step` by when."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended: 'done', 'preempted' or 'diverged' (and why), and where."""

    status: str
    attempt: int
    step: int
    reason: str = ''


def train(
    run: Run,
    state: TrainState,
    records: Records,
    checkpoints: Checkpoints,
    clock: Stopwatch,
    meta: dict,
) -> Outcome:
    """Trains to the end of the plan; a run that dies starts over as often as the config allows."""
    attempt, restarts = int(state.attempt), run.config.train.restarts
    with Interrupt() as interrupt:
        while True:
            try:
                return _attempt(run, state, records, checkpoints, clock, meta, interrupt)
            except DivergedError as e:
                if attempt >= restarts:
                    return Outcome('diverged', attempt, e.step, str(e))
                attempt += 1
                records.note(f'{e}; starting over with new weights ({attempt} of {restarts})')
                state = run.start(attempt)
                checkpoints.clear()
                checkpoints.save(0, state, meta | {'metrics': records.sync()}, error=None)
                records.start_over(attempt)


def _attempt(
    run: Run,
    state: TrainState,
    records: Records,
    checkpoints: Checkpoints,
    clock: Stopwatch,
    meta: dict,
    interrupt: Interrupt,
) -> Outcome:
    plan, step, attempt = run.plan, int(state.step), int(state.attempt)
    train_program, eval_program = programs(run, state, clock)
    next_batches = feed(run.train, attempt, step)
    unread: list[tuple[int, dict]] = []
    while step < plan.total_steps:
        num_steps = min(plan.steps_per_call - step % plan.steps_per_call, plan.total_steps - step)
        with clock('data'):
            examples = next_batches(num_steps)
        program = train_program(num_steps)
        evaluating = plan.is_due(step + num_steps, plan.eval_every)
        saving = plan.is_due(step + num_steps, plan.checkpoint_every)
        with clock('train'):
            state, metrics = program(state, examples, run.preprocess)
            step += num_steps
            stopping = distributed.anyone(interrupt.requested)
        unread.append((step, metrics))
        # The device computes the newest call while the one before is read; several processes have
        # waited for it already, as they agreed whether to stop.
        at_once = evaluating or saving or stopping or distributed.several()
        while len(unread) > (0 if at_once else 1):
            end, metrics = unread.pop(0)
            with clock('train'):
                metrics = jax.device_get(metrics)
            settle(run, records, end, metrics)
        error = evaluate_now(run, state, records, eval_program, clock) if evaluating else None
        if saving or stopping:
            with clock('checkpoint'):
                known = {'seconds': dict(clock.seconds), 'metrics': records.sync()}
                checkpoints.save(step, state, meta | known, error)
        if stopping and step < plan.total_steps:
            checkpoints.wait()
            return Outcome('preempted', attempt, step)
    if distributed.anyone(distributed.is_first() and not records.evals):  # metrics.jsonl was lost
        evaluate_now(run, state, records, eval_program, clock)
    checkpoints.wait()
    return Outcome('done', attempt, step)


def evaluate_now(
    run: Run, state: TrainState, records: Records, eval_program: Callable, clock: Stopwatch
) -> float:
    """Scores the state, records it, and returns the top-1 error."""
    eval_program()  # compiled before the clock starts
    with clock('eval'):
        loss, errors = score(run, state.weights, eval_program)
    error = errors / len(run.eval)
    records.eval(int(state.step), loss, error, errors)
    return error


def settle(run: Run, records: Records, step: int, metrics: dict) -> None:
    """Records a call's metrics, and raises DivergedError if they are hopeless."""
    loss, error, dead_steps = (metrics[k].item() for k in ('loss', 'error', 'dead_steps'))
    records.train(step, loss, error)
    if not math.isfinite(loss):
        raise DivergedError(f'the loss became {loss} by step {step}: lower optim.lr', step)
    if dead_steps >= run.config.train.dead_steps:
        classes = len(run.class_names)
        raise DivergedError(
            f'dead network: every output of the last layer has been zero for {dead_steps} steps, '
            f'so the loss stays at ln({classes}) = {math.log(classes):.6f} and no gradient flows: '
            'use another seed, or allow train.restarts',
            step,
        )


def score(run: Run, params: dict, eval_program: Callable) -> tuple[float, int]:
    """Mean cross-entropy (nats) and number of errors over the evaluation split."""
    loss, errors = 0.0, 0
    for part in [run.eval] if isinstance(run.eval, Examples) else run.eval.parts():
        scores = jax.device_get(eval_program(len(part))(params, part, run.preprocess))
        loss += float(scores['loss']) * len(part)
        errors += int(scores['errors'])
    return loss / len(run.eval), errors


def programs(run: Run, state: TrainState, clock: Stopwatch):
    """Functions that compile, once each: num_steps -> training program; number of examples, or
    none for the most that are scored in one dispatch -> evaluation."""

    @functools.cache
    def train_program(num_steps: int):
        examples = run.train
        if isinstance(examples, Stream):
            examples = Batches(*examples.like(num_steps, run.setup.batch_size))
        with clock('compile'):
            return train_steps.lower(
                state_like, examples, run.preprocess, setup=run.setup, num_steps=num_steps
            ).compile()

    def eval_program(count: int = 0):
        return compiled_eval(count or getattr(run.eval, 'eval_size', len(run.eval)))

    @functools.cache
    def compiled_eval(count: int):
        examples = run.eval
        if isinstance(examples, Stream):
            examples = Examples(*examples.like(count))
        with clock('compile'):
            return evaluate.lower(
                state_like.weights, examples, run.preprocess, setup=run.setup
            ).compile()

    state_like = abstract(state)
    return train_program, eval_program


def abstract(tree):
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
