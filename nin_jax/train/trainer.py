"""Builds the trainer of a run from config, data and preprocessing."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.data import catalog
from nin_jax.data.augment import Augment
from nin_jax.data.batches import DeviceSplit
from nin_jax.data.pipeline import Data, check_side, is_streamed, place_split, resize_source
from nin_jax.data.preprocess import Preprocess
from nin_jax.devices import (
    is_cpu,
    is_one_cpu,
    keep_freed_memory,
    local_mesh,
    make_mesh,
    replicated,
    shapes,
)
from nin_jax.errors import ConfigError
from nin_jax.models.factory import abstract_model, check_sizes, join, make_model, split_weights
from nin_jax.plan import Plan, make_plan
from nin_jax.train.finetune import take_over
from nin_jax.train.optimizer import make_optimizer
from nin_jax.train.step import Setup, TrainState


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The inputs of training and evaluation.

    Attributes:
      config: the config.
      plan: its durations in steps.
      setup: the static argument of the compiled programs.
      preprocess: preprocessing fitted to the training split, on the devices.
      train: function from the side of images in pixels (0: original) to the resized training split.
      eval: the evaluation split.
      class_names: names of the classes, in label order.
      init_state: function from the attempt to a new state, which depends on (seed, attempt) only.
      pretrained: loads the weights of `init.weights`.
    """

    config: ConfigDict
    plan: Plan
    setup: Setup
    preprocess: Preprocess
    train: Callable[[int], DeviceSplit]
    eval: DeviceSplit
    class_names: tuple[str, ...]
    init_state: Callable[[int], TrainState]
    pretrained: Callable[[], dict] | None = None

    def initial_state(self, attempt: int) -> TrainState:
        """Returns the state at the start of an attempt, with the weights of `init.weights`."""
        state = self.init_state(attempt)
        if self.pretrained is None:
            return state
        return take_over(self.config.init, self.setup.model, state, self.pretrained())

    def state_shapes(self) -> TrainState:
        """Returns the state's shapes, dtypes and shardings, to restore a checkpoint."""
        return shapes(jax.eval_shape(self.init_state, 0), replicated(self.setup.mesh))


def make_trainer(
    config: ConfigDict,
    data: Data,
    fitted: Preprocess,
    pretrained: Callable[[], dict] | None = None,
) -> Trainer:
    """Moves the data to the devices and builds model, optimizer and plan.

    Args:
      config: a valid config.
      data: both splits, on the host.
      fitted: preprocessing fitted to `data.train`.
      pretrained: loads the weights of `init.weights`; None to start from fresh weights.

    Raises:
      ConfigError: the config does not fit the data or the devices.
    """
    mesh = make_mesh(config.devices)
    if is_cpu(mesh):
        keep_freed_memory()
    streamed = is_streamed(config, mesh, data)
    plan = make_plan(config, len(data.train), streamed or is_cpu(mesh))
    for _, side in plan.image_sizes:
        check_side(data.train, side)
        check_sizes(config, (side, side))
    setup, init_state = make_setup(config, plan, mesh, data.image_shape, len(data.class_names))
    placed = distributed.place(fitted, replicated(mesh))
    place = functools.partial(
        place_split,
        fitted=fitted,
        mesh=mesh,
        placed=placed,
        streamed=streamed,
        seed=setup.seed,
        batch_size=setup.batch_size,
        eval_batch_size=setup.eval_batch_size,
    )

    @functools.lru_cache(maxsize=1)  # keeps one size in memory
    def train_split(side: int) -> DeviceSplit:
        return place(resize_source(data.train, side) if side else data.train)

    return Trainer(
        config=config,
        plan=plan,
        setup=setup,
        preprocess=placed,
        train=train_split,
        eval=place(data.eval),
        class_names=data.class_names,
        init_state=init_state,
        pretrained=pretrained,
    )


def make_setup(
    config: ConfigDict,
    plan: Plan,
    mesh: jax.sharding.Mesh,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> tuple[Setup, Callable[[int], TrainState]]:
    """Returns the static argument of the compiled programs, and `Trainer.init_state`.

    Raises:
      ConfigError: the config does not fit the images, the classes or the devices.
    """
    check_batches(config, mesh)
    if config.augment.cutout > min(image_shape[:2]):
        raise ConfigError(
            f'augment.cutout={config.augment.cutout}: the images are only '
            f'{image_shape[0]}x{image_shape[1]}'
        )
    if config.augment.crop_pad >= min(image_shape[:2]):
        raise ConfigError(
            f'augment.crop_pad={config.augment.crop_pad}: crops could be outside of the image, '
            f'choose less than its {min(image_shape[:2])} pixels'
        )
    model = abstract_model(config, image_shape, num_classes)
    optimizer = make_optimizer(config.optim, split_weights(model)[0], model.last_layer, plan)

    def init_state(attempt: jax.Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(config.seed), attempt)
        params, stats = split_weights(make_model(config, image_shape, num_classes, key))
        zero = jnp.int32(0)
        return TrainState(
            step=zero,
            attempt=jnp.int32(attempt),
            dead_steps=zero,
            params=params,
            opt_state=optimizer.init(params),
            stats=stats,
            ema=join(params, stats) if config.train.ema else {},
        )

    setup = Setup(
        model=nnx.graphdef(model),
        optimizer=optimizer,
        mesh=mesh,
        seed=config.seed,
        batch_size=config.train.batch_size,
        microbatch=microbatch(config, mesh),
        eval_batch_size=config.eval.batch_size or eval_batch_size(mesh),
        augment=Augment(
            classes=num_classes,
            examples=plan.num_examples,
            image_side=image_shape[0],
            **config.augment,
        ),
        ema=config.train.ema,
        tta=config.eval.tta,
    )
    return setup, jax.jit(init_state, out_shardings=replicated(mesh))


def state_shapes(config: ConfigDict) -> TrainState:
    """Returns the shapes of the state of a run, on one device, without its data.

    They include the state of the optimizer, which a checkpoint's checksum covers.
    """
    dataset, mesh = catalog.lookup(config.data.name), local_mesh()
    images = catalog.count(config.data.name, config.data.train, config.data.limit)
    plan = make_plan(config, images, short_calls=True)
    _, init_state = make_setup(config, plan, mesh, dataset.image_shape, dataset.num_classes)
    return shapes(jax.eval_shape(init_state, 0), replicated(mesh))


def check_batches(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError unless batches can be split evenly over the devices."""
    for key in ('train', 'eval'):
        if config[key].batch_size % mesh.size:
            raise ConfigError(
                f'{key}.batch_size={config[key].batch_size}: must be a multiple of '
                f'the {mesh.size} devices; set devices=1 to use one'
            )


def microbatch(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Returns the number of images per gradient.

    Raises:
      ConfigError: it does not divide the batch, or cannot be split over the devices.
    """
    batch_size = config.train.batch_size
    # With batch normalization, the microbatch must not depend on the number of devices.
    in_pieces = is_one_cpu(mesh) and config.model.norm == 'none'
    automatic = math.gcd(batch_size, 16) if in_pieces else batch_size
    size = config.train.microbatch or automatic
    if batch_size % size or size % mesh.size:
        raise ConfigError(
            f'train.microbatch={size}: must divide train.batch_size={batch_size} and be a multiple '
            f'of the {mesh.size} devices; 0 chooses it'
        )
    return size


def eval_batch_size(mesh: jax.sharding.Mesh) -> int:
    """Returns the default evaluation batch size."""
    if is_one_cpu(mesh):
        return 16
    return mesh.size * (64 if is_cpu(mesh) else 512)
