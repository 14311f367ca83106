"""Computes the floating-point operations of a training run, and measures this machine's rate."""

import time
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli
from nin_jax.config import validate
from nin_jax.data import catalog
from nin_jax.data.batches import Examples
from nin_jax.data.preprocess import Preprocess
from nin_jax.devices import make_mesh, use_compilation_cache
from nin_jax.models.factory import fc_classes, layer_blocks
from nin_jax.models.summary import layer_table
from nin_jax.plan import Plan, Stage, make_plan
from nin_jax.train.step import train_steps
from nin_jax.train.trainer import make_setup


class Cost(NamedTuple):
    """Training steps, images (of any size) and floating-point operations of one run."""

    steps: int
    images: int
    flops: float


def training_cost(path: str, flags: list[str]) -> Cost:
    """Returns the cost of one run.

    Args:
      path: value of the run's --config.
      flags: the run's other flags; only those that start with --config. matter.
    """
    config = cli.load_config(path, [flag for flag in flags if flag.startswith('--config.')])
    validate(config)
    images = catalog.count(config.data.name, config.data.train, config.data.limit)
    plan, batch_size = make_plan(config, images, short_calls=True), config.train.batch_size
    steps, flops = plan.total_steps, flops_of_stages(config, plan) * batch_size
    return Cost(steps, steps * batch_size, flops)


def flops_of_stages(config: ConfigDict, plan: Plan) -> float:
    """Returns the training FLOPs of a run with batches of one image."""
    return sum(
        flops_per_image(config, stage) * (end - start) for stage, start, end in plan.stages()
    )


def flops_per_image(config: ConfigDict, stage: Stage) -> float:
    """Returns the training FLOPs of one image in a stage of a run.

    A multiply-accumulate is 2 FLOPs in the forward pass, 2 for the gradient of the kernel and 2 for
    that of the input, which the first trained layer does not need. A frozen layer has only the
    forward pass.
    """
    dataset = catalog.lookup(config.data.name)
    height, width, channels = dataset.image_shape
    blocks = layer_blocks(config, dataset.num_classes)
    shape = (stage.side or height, stage.side or width, channels)
    rows = layer_table(blocks, shape, fc_classes(config, dataset.num_classes))
    first = len(layer_table(blocks[: stage.frozen], shape))  # row of the first trained layer
    return sum((2 if i < first else 4 if i == first else 6) * r.macs for i, r in enumerate(rows))


def measured_flops_per_s(steps: int = 4) -> float:
    """Measures training steps of the fast recipe on random images, without compilation."""
    use_compilation_cache()
    config = cli.load_config('experiments/configs/cifar10.py:fast')
    images, mesh = steps * config.train.batch_size, make_mesh(1)
    plan = make_plan(config, images, short_calls=True)
    setup, init_state = make_setup(config, plan, mesh, (32, 32, 3), 10)
    pixels = np.random.default_rng(0).normal(size=(images, 32, 32, 3)).astype(np.float32)
    examples, state = Examples.of(pixels, np.zeros(images, np.int32)), init_state(0)
    seconds = 0.0
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        state, metrics = train_steps(
            state, examples, Preprocess('scale'), setup=setup, num_steps=steps
        )
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
    return images * flops_per_image(config, Stage()) / seconds
