"""The commands of experiments.main: train, evaluate, describe, and a dry run that only compiles."""

import os
from typing import Any

import jax
from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.config import validate
from nin_jax.data import catalog
from nin_jax.data.pipeline import fit_preprocess, load_data
from nin_jax.devices import use_compilation_cache
from nin_jax.errors import ConfigError
from nin_jax.files import read_json
from nin_jax.models.factory import check_sizes, fc_classes, layer_blocks
from nin_jax.models.nin import count_parameters
from nin_jax.models.summary import format_table, layer_table
from nin_jax.pretrained.release import pretrained_weights
from nin_jax.pretrained.trained import read_config
from nin_jax.runs import bucket
from nin_jax.runs.display import duration
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.recorder import Recorder, restore_run
from nin_jax.runs.summary import summarize
from nin_jax.runs.watchdog import watchdog
from nin_jax.runs.workdir import CONFIG, check_same, flat_config, load_preprocess, open_run
from nin_jax.train import loop
from nin_jax.train.step import TrainState
from nin_jax.train.trainer import Trainer, make_trainer

EXIT_STATUS = {'done': 0, 'preempted': os.EX_TEMPFAIL, 'diverged': 1}


def train(config: ConfigDict, workdir: str | os.PathLike, command: str) -> int:
    """Trains the run in `workdir`, resuming from its newest checkpoint if there is one.

    Args:
      config: the config of the run.
      workdir: its folder, or its place in a bucket.
      command: the command line, for summary.json.

    Returns the exit status of the process.
    """
    with distributed.together():
        validate(config)
        check_splits(config)
        use_compilation_cache()
    with bucket.opened(workdir) as (folder, publish), open_run(folder, config, publish) as run:
        if run.is_done:
            if distributed.is_first():
                print(f"'{workdir}' is done already: {format_summary(run.summary)}")
            return 0
        clock = Stopwatch()
        with clock('data'), distributed.together():
            data = load_data(config)
            fitted = run.preprocess(lambda: fit_preprocess(config, data.train))
            trainer = make_trainer(config, data, fitted, pretrained_weights(config))
        with (
            watchdog(clock, config.train.stall_timeout),
            Recorder(run, config, trainer.plan, fitted, data, clock) as recorder,
        ):
            state = recorder.resume(trainer.state_shapes(), fresh=lambda: trainer.initial_state(0))
            print_run(trainer, state, len(data.train))
            outcome = loop.fit(trainer, state, recorder)
            summary = summarize(
                outcome,
                trainer.plan,
                recorder,
                config,
                parameters=count_parameters(state.params),
                eval_images=len(data.eval),
                command=command,
            )
        run.write_summary(summary)
        if distributed.is_first():  # only this process has the evaluations
            print(f"{format_summary(summary)}  ->  '{workdir}'")
        return EXIT_STATUS[outcome.status]


def check_splits(config: ConfigDict) -> None:
    """Raises ConfigError if a run would be evaluated on images that it is trained on."""
    train, evaluated = config.data.train, config.data.eval
    if both := {*catalog.parse_splits(train)} & {*catalog.parse_splits(evaluated)}:
        raise ConfigError(
            f'data.eval={evaluated!r}: {both.pop()!r} is also in data.train={train!r}: '
            "for validation, set data.train='train' and data.eval='valid'"
        )


def print_run(trainer: Trainer, state: TrainState, images: int) -> None:
    """Prints the run and its devices before training."""
    parameters, step = count_parameters(state.params), int(state.step)
    processes = f' in {jax.process_count()} processes' if distributed.several() else ''
    print(
        f'{parameters:,} parameters, {images:,} training images, '
        f'{trainer.setup.mesh.size} x {jax.devices()[0].device_kind}{processes}'
        + (f', resuming at step {step:,}' if step else '')
    )


def format_summary(summary: dict) -> str:
    """Formats a summary in one line."""
    spent = ', '.join(f'{part} {duration(s)}' for part, s in summary['seconds'].items())
    if summary['status'] == 'done':
        return (
            f'top-1 error {summary["final_error"]:.2%} (best {summary["best_error"]:.2%}) '
            f'after {summary["epoch"]:.4g} epochs ({spent})'
        )
    why = {'preempted': 'saved; run the same command again to continue'}
    reason = why.get(summary['status'], summary['reason'])
    return f'{summary["status"]} at step {summary["step"]:,}: {reason}'


def check_images(config: ConfigDict, trained: ConfigDict) -> None:
    """Raises ConfigError if the images of `config` do not fit the network of a run."""
    chosen, own = (catalog.lookup(c.data.name) for c in (config, trained))
    same_size = chosen.image_shape == own.image_shape or config.model.head == 'gap'
    if chosen.image_shape[-1] != own.image_shape[-1] or not same_size:
        raise ConfigError(
            f'data.name={config.data.name!r}: its images are {chosen.image_shape}, but the run has '
            f'{own.image_shape}: choose data.name={trained.data.name!r}'
        )


def evaluate(config: ConfigDict, workdir: str | os.PathLike, step: int | None) -> int:
    """Evaluates a run's newest checkpoint, or that at `step`, on the `data.eval` splits."""
    validate(config)
    use_compilation_cache()
    with bucket.opened(workdir) as (folder, _):
        fitted = load_preprocess(folder)
        saved = read_json(folder / CONFIG)
        check_same(folder, saved, flat_config(config), only='model.')
        trained = read_config(saved, folder / CONFIG)  # the state depends on the optimizer
        config.optim, config.train.ema = trained.optim, trained.train.ema
        check_images(config, trained)
        trainer = make_trainer(config, load_data(config), fitted)
        state, _ = restore_run(folder, trainer.state_shapes(), saved, fitted, step)
    clock, n = Stopwatch(), len(trainer.eval)
    programs = loop.eval_programs(trainer, clock)
    print(f'evaluating {n:,} images ...', flush=True)
    loss, errors, *_ = loop.evaluate_split(trainer, state.weights, programs, clock)
    print(
        f'step {int(state.step):,}: {errors:,} of {n:,} wrong on {config.data.name} '
        f'{config.data.eval}, top-1 error {errors / n:.2%}, loss {loss:.4f}'
    )
    return 0


def dry_run(config: ConfigDict) -> int:
    """Compiles the training programs and the evaluation; prints their memory use."""
    validate(config)
    use_compilation_cache()
    clock = Stopwatch()
    data = load_data(config)
    trainer = make_trainer(config, data, fit_preprocess(config, data.train))
    plan, calls = trainer.plan, loop.Calls(trainer, 0, clock)
    programs = {
        ', '.join(filter(None, ['training', str(stage)])): calls.program(plan.steps_per_call, stage)
        for stage, _, _ in plan.stages()
    }
    programs['evaluation'], *_ = loop.eval_programs(trainer, clock).values()
    width = max(map(len, programs))
    for name, program in programs.items():
        memory: Any = program.memory_analysis()
        print(
            f'{name:{width}}  {memory.argument_size_in_bytes / 2**20:8,.1f} MiB of arguments  '
            f'{memory.temp_size_in_bytes / 2**20:8,.1f} MiB of temporaries'
        )
    drops = [f'step {step:,}' for step in plan.drops if step < plan.total_steps]
    drops = drops if config.optim.schedule == 'drops' else []
    print(
        f'compiled in {clock.seconds["compile"]:.1f} s; a run makes {plan.total_steps:,} steps '
        f'of {trainer.setup.batch_size} images in calls of {plan.steps_per_call}'
        + (f' and drops the learning rate at {" and ".join(drops)}' if drops else '')
    )
    return 0


def describe(config: ConfigDict) -> int:
    """Prints the layers of the network with their cost."""
    validate(config)
    dataset = catalog.lookup(config.data.name)
    blocks = layer_blocks(config, dataset.num_classes)
    check_sizes(config, dataset.image_shape[:2])
    classes = fc_classes(config, dataset.num_classes)
    print(format_table(layer_table(blocks, dataset.image_shape, classes)))
    return 0
