"""Builds the network of a config, without anything that only training needs."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nin_jax.config import Block
from nin_jax.errors import ConfigError
from nin_jax.models.nin import NIN


def layer_blocks(config: ConfigDict, num_classes: int) -> tuple[Block, ...]:
    """The config's layer table.

    Raises:
      ConfigError: the table must end in one map per class and does not.
    """
    name, last = list(config.model.blocks.items())[-1]
    if config.model.head == 'gap' and last.features[-1] != num_classes:
        raise ConfigError(
            f'model.blocks.{name}.features={last.features!r} ends in '
            f'{last.features[-1]} maps, but {config.data.name} has {num_classes} '
            f"classes: end it in {num_classes}, or choose model.head='fc'"
        )
    return tuple(Block(**row) for row in config.model.blocks.values())


def fc_classes(config: ConfigDict, num_classes: int) -> int:
    """Classes of a fully connected head; 0 for global average pooling."""
    return num_classes if config.model.head == 'fc' else 0


def make_model(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    key: jax.Array,
) -> NIN:
    """The config's network with fresh weights, for images of (height, width, channels).

    Raises:
      ConfigError: see `layer_blocks`.
    """
    height, width, channels = image_shape
    return NIN(
        layer_blocks(config, num_classes),
        channels,
        fc_classes=fc_classes(config, num_classes),
        fc_dropout=config.model.head_dropout,
        image_size=(height, width),
        dropout_mode=config.model.dropout_mode,
        norm=config.model.norm,
        class_maps=config.model.class_maps,
        class_bias=config.model.class_bias,
        dtype=jnp.dtype(config.dtype),
        rngs=nnx.Rngs(key),
    )


def abstract_model(config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int) -> NIN:
    """The same network with shapes in place of weights."""
    return nnx.eval_shape(
        lambda key: make_model(config, image_shape, num_classes, key), jax.random.key(0)
    )


def split_weights(model: NIN) -> tuple[dict, dict]:
    """(parameters, running averages of batch normalization) as plain nested dicts."""
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def join(params: dict, stats: dict) -> dict:
    """Merges two trees without a common leaf: the weights that `nin.apply` takes."""
    return params | {k: join(params[k], v) if k in params else v for k, v in stats.items()}
