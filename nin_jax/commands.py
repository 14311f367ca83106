"""What a user asks for: train, evaluate, and a dry run that compiles and stops."""

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nin_jax import datasets, distributed, loop, photos, preprocess, workdir
from nin_jax.checkpoint import Checkpoints, read_json
from nin_jax.config import flatten, validate
from nin_jax.describe import format_table, layer_table
from nin_jax.errors import CheckpointError
from nin_jax.interrupt import RESUME_ME
from nin_jax.model import count_parameters
from nin_jax.records import Records, Silence, Stopwatch, duration, write_json
from nin_jax.run import Run, assemble, fc_classes, fit_preprocess, model_blocks
from nin_jax.step import Setup, TrainState

EXIT_STATUS = {'done': 0, 'preempted': RESUME_ME, 'diverged': 1}


def train(config: ConfigDict, folder: pathlib.Path, command: str) -> int:
    """Trains, or goes on with, the run in `folder`; returns the process's exit status."""
    summary_path, done = folder / 'summary.json', False
    with contextlib.ExitStack() as stack:
        with distributed.together():
            validate(config)
            use_compilation_cache()
            if distributed.is_first():
                stack.enter_context(workdir.locked(folder))
                workdir.settle_config(folder, config)
                summary = settled_summary(summary_path, config)
                done = summary.get('status') == 'done'
        if distributed.anyone(done):
            if distributed.is_first():
                print(f"'{folder}' is done already: {sentence(summary)}")
            return 0
        clock = Stopwatch()
        with clock('data'), distributed.together():
            run = assemble(config, functools.partial(settle_preprocess, folder))
        outcome, evals, digest = resume_and_train(run, folder, clock)
        if distributed.is_first():
            summary = summarise(run, outcome, evals, clock)
            summary |= {'command': command, 'metrics_sha256': digest}
            write_json(summary_path, summary)
            print(f"{sentence(summary)}  ->  '{folder}'")
        return EXIT_STATUS[outcome.status]


def settled_summary(path: pathlib.Path, config: ConfigDict) -> dict:
    """The run's summary; empty if there is none, or none of this run: it is then made anew."""
    try:
        summary = read_json(path) if path.exists() else {}
    except CheckpointError:
        warn(f"'{path}' is damaged: it is made anew")
        return {}
    flat = workdir.jsonable(flatten(config))
    if summary and workdir.differences(summary.get('config', {}), flat):
        warn(f"'{path}' is of another run: it is made anew")
        return {}
    return summary


PREPROCESS = 'preprocess.npz'


def settled_preprocess(folder: pathlib.Path) -> preprocess.Preprocess | None:
    """The run's own, once it has been fitted."""
    path = folder / PREPROCESS
    return preprocess.load(path) if path.exists() else None


def settle_preprocess(
    folder: pathlib.Path, config: ConfigDict, train: datasets.Split | photos.Photos
) -> preprocess.Preprocess:
    """Fits the run's preprocessing on its first start, on one process; all of them read it."""
    path = folder / PREPROCESS
    with distributed.together():
        if distributed.is_first() and not path.exists():
            preprocess.save(path, fit_preprocess(config, train))
    if not path.exists():
        raise CheckpointError(
            f"'{folder}' is not the same folder for all processes: name a --workdir that they share"
        )
    fitted = preprocess.load(path)
    distributed.check_same(PREPROCESS, lambda: preprocess.digest(fitted))
    return fitted


def resume_and_train(
    run: Run, folder: pathlib.Path, clock: Stopwatch
) -> tuple[loop.Outcome, list[dict], str]:
    """Goes on from the newest whole checkpoint.

    Returns the outcome, all evaluations, and the SHA-256 of metrics.jsonl.
    """
    environment = workdir.environment()
    meta = {
        'config': workdir.jsonable(flatten(run.config)),
        'environment': environment,
        'preprocess': preprocess.digest(run.preprocess),
        'class_names': run.class_names,
    }
    with Checkpoints(folder / 'checkpoints', run.config.checkpoint.keep, warn) as checkpoints:
        with distributed.together():
            restored = restore(
                checkpoints, run.setup, run.init_state, run.preprocess, meta['config']
            )
        state = run.start(0) if restored is None else restored[0]
        if restored is not None:
            for part, seconds in restored[1].get('seconds', {}).items():
                clock.seconds[part] = clock.seconds.get(part, 0.0) + seconds
        device = environment['device']
        print(
            f'{count_parameters(state.params):,} parameters, {len(run.train):,} training '
            f'images, {run.setup.mesh.size} x {device["kind"]}'
            + (f' in {jax.process_count()} processes' if distributed.several() else '')
            + (f', resuming at step {int(state.step):,}' if restored else '')
        )
        with distributed.together():
            records = recorder(run, folder, state, restored and restored[1], clock)
        with records:
            outcome = loop.train(run, state, records, checkpoints, clock, meta)
            return outcome, records.evals, records.sync()


def metrics_digest(folder: pathlib.Path, meta: dict | None) -> str | None:
    """What metrics.jsonl has to be to go with a checkpoint; None if anything will do."""
    if meta is None or 'metrics' not in meta:
        return None
    if not (folder / 'metrics.jsonl').exists():
        warn(f"'{folder / 'metrics.jsonl'}' is missing: going on without its earlier lines")
        return None
    return meta['metrics']


def recorder(
    run: Run, folder: pathlib.Path, state: TrainState, meta: dict | None, clock: Stopwatch
) -> Records | Silence:
    """The run's records from `state` on; one process of several writes them."""
    if not distributed.is_first():
        return Silence()
    return Records(
        folder,
        run.plan.total_steps,
        run.setup.batch_size,
        run.plan.steps_per_epoch,
        first=(int(state.attempt), int(state.step)),
        clock=clock,
        digest=metrics_digest(folder, meta),
    )


def restore(
    checkpoints: Checkpoints,
    setup: Setup,
    init_state: Callable[[int], TrainState],
    fitted: preprocess.Preprocess,
    config: dict,
    step: int | None = None,
) -> tuple[TrainState, dict] | None:
    """The newest whole checkpoint, or that at `step`, of the run with this flat config.

    Raises CheckpointError if there is none whole, or it is of another config or preprocessing.
    """
    replicated = NamedSharding(setup.mesh, PartitionSpec())
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(init_state, 0),
    )
    restored = checkpoints.restore(template, step)
    if restored and (different := workdir.differences(restored[1]['config'], config)):
        key, (other, _) = next(iter(different.items()))
        raise CheckpointError(
            f'the checkpoint at step {int(restored[0].step)} is of another run, whose '
            f'{key} was {other!r}: restore the run from a copy'
        )
    if restored and restored[1]['preprocess'] != preprocess.digest(fitted):
        raise CheckpointError(
            f'{PREPROCESS} is not the one this checkpoint was trained with: '
            'restore the run from a copy'
        )
    return restored


def evaluate(config: ConfigDict, folder: pathlib.Path, step: int | None) -> int:
    """Scores a run's newest checkpoint, or that at `step`, on the config's `data.eval` splits."""
    validate(config)
    use_compilation_cache()
    fitted = settled_preprocess(folder)
    if fitted is None:
        raise CheckpointError(f"'{folder}' holds no {PREPROCESS}: is this the --workdir of a run?")
    saved = read_json(folder / 'config.json')
    workdir.check_same(folder, saved, workdir.jsonable(flatten(config)), only='model.')
    run = assemble(config, lambda *_: fitted)
    with Checkpoints(
        folder / 'checkpoints', run.config.checkpoint.keep, warn, read_only=True
    ) as checkpoints:
        restored = restore(checkpoints, run.setup, run.init_state, run.preprocess, saved, step)
    if restored is None:
        raise CheckpointError(f"no checkpoints in '{folder}': train the run first")
    state, _ = restored
    _, eval_program = loop.programs(run, state, Stopwatch())
    loss, errors = loop.score(run, state.weights, eval_program)
    n = len(run.eval)
    print(
        f'step {int(state.step):,}: {errors:,} of {n:,} wrong on {config.data.name} '
        f'{config.data.eval}, top-1 error {errors / n:.2%}, loss {loss:.4f}'
    )
    return 0


def dry_run(config: ConfigDict) -> int:
    """Compiles what a run would execute, says what it takes, and stops."""
    validate(config)
    use_compilation_cache()
    clock = Stopwatch()
    run = assemble(config)
    train_program, eval_program = loop.programs(run, run.init_state(0), clock)
    for name, program in (
        ('training', train_program(run.plan.steps_per_call)),
        ('evaluation', eval_program()),
    ):
        memory = program.memory_analysis()
        print(
            f'{name:10}  {memory.argument_size_in_bytes / 2**20:8,.1f} MiB of arguments  '
            f'{memory.temp_size_in_bytes / 2**20:8,.1f} MiB of temporaries'
        )
    print(
        f'compiled in {clock.seconds["compile"]:.1f} s; a run makes {run.plan.total_steps:,} steps '
        f'of {run.setup.batch_size} images in calls of {run.plan.steps_per_call}, drops the '
        f'learning rate at {", ".join(map(str, run.plan.drops)) or "no step"}'
    )
    return 0


def describe(config: ConfigDict) -> int:
    """Prints the network's layers, with what they cost."""
    validate(config)
    dataset = datasets.lookup(config.data.name)
    blocks = model_blocks(config, dataset.num_classes)
    classes = fc_classes(config, dataset.num_classes)
    print(format_table(layer_table(blocks, dataset.image_shape, classes)))
    return 0


def summarise(run: Run, outcome: loop.Outcome, evals: list[dict], clock: Stopwatch) -> dict:
    """The content of summary.json."""
    attempt = outcome.attempt
    evals = [line for line in evals if line['attempt'] == attempt]
    best = min(evals, key=lambda line: line['error'], default=None)
    return {
        'status': outcome.status,
        'reason': outcome.reason,
        'final_error': evals[-1]['error'] if outcome.status == 'done' else None,
        'best_error': best and best['error'],
        'best_step': best and best['step'],
        'step': outcome.step,
        'epoch': outcome.step / run.plan.steps_per_epoch,
        'seed': run.config.seed,
        'attempt': attempt,
        'parameters': count_parameters(jax.eval_shape(run.init_state, 0).params),
        'eval_images': len(run.eval),
        'seconds': {part: round(s, 2) for part, s in clock.seconds.items()},
        'config': workdir.jsonable(flatten(run.config)),
        **workdir.environment(),
    }


def sentence(summary: dict) -> str:
    """A summary in one line."""
    spent = ', '.join(f'{part} {duration(s)}' for part, s in summary['seconds'].items())
    if summary['status'] == 'done':
        return (
            f'top-1 error {summary["final_error"]:.2%} (best {summary["best_error"]:.2%}) '
            f'after {summary["epoch"]:.4g} epochs ({spent})'
        )
    why = {'preempted': 'saved; run the same command again to go on'}
    return f'{summary["status"]} at step {summary["step"]:,}: ' + why.get(
        summary['status'], summary['reason']
    )


def warn(text: str) -> None:
    """A warning on stderr."""
    if distributed.is_first():
        print(f'warning: {text}', file=sys.stderr, flush=True)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'nin_jax', 'xla'
    )
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
