"""Puts a run together: config -> data, preprocessing, model, optimiser, plan."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nin_jax import datasets, optim, preprocess
from nin_jax.config import Plan, make_plan
from nin_jax.errors import ConfigError
from nin_jax.model import NIN, Block
from nin_jax.step import Examples, Setup, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that training and evaluation need.

    Attributes:
      config: what the user asked for.
      plan: what that comes to, in steps.
      setup: the static argument of the compiled programs.
      preprocess: fitted on the training split, or restored with the run.
      train, eval: the two splits on the device.
      class_names: in label order.
      init_state: attempt number -> a fresh state, its weights a function of (seed, attempt).
    """

    config: ConfigDict
    plan: Plan
    setup: Setup
    preprocess: preprocess.Preprocess
    train: Examples
    eval: Examples
    class_names: tuple[str, ...]
    init_state: Callable[[int], TrainState]


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """A mesh of one axis, 'data', over the first `devices` of the machine's (0: all of them)."""
    available = jax.devices()
    if devices > len(available):
        raise ConfigError(
            f'devices={devices}: JAX sees {len(available)} '
            f'({available[0].device_kind}), choose that or less, or 0 for all'
        )
    chosen = available[: devices or len(available)]
    return jax.make_mesh((len(chosen),), ('data',), devices=chosen, axis_types=(AxisType.Auto,))


def model_blocks(config: ConfigDict, num_classes: int) -> tuple[Block, ...]:
    """The config's layer table; ConfigError if it does not end in one map per class."""
    name, last = list(config.model.blocks.items())[-1]
    if last.features[-1] != num_classes:
        raise ConfigError(
            f'model.blocks.{name}.features={last.features!r} ends in '
            f'{last.features[-1]} maps, but {config.data.name} has {num_classes} '
            f'classes: end it in {num_classes}'
        )
    return tuple(Block(**row) for row in config.model.blocks.values())


def load_split(config: ConfigDict, splits: str) -> datasets.Split:
    """The named splits on the host, cut to `data.limit`."""
    split = datasets.load(config.data.name, splits, config.data.dir)
    keep = slice(config.data.limit or None)
    return datasets.Split(split.images[keep], split.labels[keep], split.class_names)


def assemble(config: ConfigDict, saved: preprocess.Preprocess | None = None) -> Run:
    """Loads the data and builds what a run needs.

    Args:
      config: a valid config.
      saved: preprocessing of the run being resumed or evaluated; fitted anew if None.

    Raises:
      ConfigError, DataError: see the functions called.
    """
    mesh = make_mesh(config.devices)
    for key in ('train', 'eval'):
        if config[key].batch_size % mesh.size:
            raise ConfigError(
                f'{key}.batch_size={config[key].batch_size}: must be a multiple of '
                f'the {mesh.size} devices; set devices=1 to use one'
            )
    train, test = load_split(config, config.data.train), load_split(config, config.data.eval)
    plan = make_plan(config, len(train.labels), jax.default_backend() == 'cpu')
    if saved is None:
        saved = preprocess.fit(
            config.preprocess.recipe,
            train.images,
            zca_bias=config.preprocess.zca_bias,
            gcn_scale=config.preprocess.gcn_scale,
        )
    replicated = NamedSharding(mesh, PartitionSpec())
    saved = jax.device_put(saved, replicated)

    blocks = model_blocks(config, len(train.class_names))

    def make_model(key: jax.Array) -> NIN:
        return NIN(
            blocks,
            train.images.shape[-1],
            dropout_mode=config.model.dropout_mode,
            class_bias=config.model.class_bias,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(key),
        )

    def init_params(attempt: jax.Array) -> dict:
        model = make_model(jax.random.fold_in(jax.random.key(config.seed), attempt))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    params = jax.eval_shape(init_params, 0)
    model = nnx.eval_shape(make_model, jax.random.key(0))
    optimiser = optim.make_optimiser(
        config.optim, params, model.last_layer, plan.drops, round(plan.steps_per_epoch)
    )

    def init_state(attempt: jax.Array) -> TrainState:
        params = init_params(attempt)
        return TrainState(
            jnp.int32(0), jnp.int32(attempt), jnp.int32(0), params, optimiser.init(params)
        )

    setup = Setup(
        model=nnx.graphdef(model),
        optimiser=optimiser,
        mesh=mesh,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
        crop_pad=config.augment.crop_pad,
        flip=config.augment.flip,
    )
    return Run(
        config,
        plan,
        setup,
        saved,
        _place(train, saved, replicated),
        _place(test, saved, replicated),
        train.class_names,
        jax.jit(init_state, out_shardings=replicated),
    )


def _place(
    split: datasets.Split, fitted: preprocess.Preprocess, sharding: NamedSharding
) -> Examples:
    """A split on the device: as uint8, or whitened once where every step would repeat it."""
    images_NHWC = split.images
    if fitted.recipe == 'gcn_zca':
        images_NHWC = whiten(fitted, images_NHWC)
    return Examples(jax.device_put(images_NHWC, sharding), jax.device_put(split.labels, sharding))


def whiten(fitted: preprocess.Preprocess, images_NHWC: np.ndarray, chunk: int = 1000) -> np.ndarray:
    """Preprocesses uint8 images chunk by chunk: float32 of the same shape."""
    apply = jax.jit(lambda fitted, images: fitted(images))
    out_NHWC = np.empty(images_NHWC.shape, np.float32)
    for start in range(0, len(images_NHWC), chunk):
        part = slice(start, start + chunk)
        out_NHWC[part] = apply(fitted, images_NHWC[part])
    return out_NHWC
