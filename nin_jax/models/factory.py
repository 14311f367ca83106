"""Builds the network of a config, for training and for inference."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nin_jax.config import Block
from nin_jax.errors import ConfigError
from nin_jax.models.nin import NIN, block_size, conv_size


def layer_blocks(config: ConfigDict, num_classes: int) -> tuple[Block, ...]:
    """Returns the layer table of a config.

    Raises:
      ConfigError: with global average pooling, the last layer does not have one map per class.
    """
    name, last = list(config.model.blocks.items())[-1]
    if config.model.head == 'gap' and last.features[-1] != num_classes:
        raise ConfigError(
            f'model.blocks.{name}.features={last.features!r} ends in '
            f'{last.features[-1]} maps, but {config.data.name} has {num_classes} '
            f"classes: end it in {num_classes}, or choose model.head='fc'"
        )
    return tuple(Block(**row) for row in config.model.blocks.values())


def check_sizes(config: ConfigDict, size: tuple[int, int]) -> None:
    """Raises ConfigError if a block leaves no pixel of images of this height and width."""
    images = 'x'.join(map(str, size))
    for name, row in config.model.blocks.items():
        block = Block(**row)
        before, size = size, conv_size(size, block)
        if min(size) < 1:
            raise ConfigError(
                f'model.blocks.{name}.kernel={block.kernel}: too large, because its input is '
                f'{"x".join(map(str, before))} for images of {images}'
            )
        size = block_size(before, block)


def fc_classes(config: ConfigDict, num_classes: int) -> int:
    """Returns the number of classes of a fully connected head; 0 for global average pooling."""
    return num_classes if config.model.head == 'fc' else 0


def make_model(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    key: jax.Array,
) -> NIN:
    """Builds and initializes the network of a config.

    Args:
      config: a valid config.
      image_shape: (height, width, channels) of the images.
      num_classes: number of classes.
      key: PRNG key for the initialization.

    Raises:
      ConfigError: see `layer_blocks` and `check_sizes`.
    """
    height, width, channels = image_shape
    check_sizes(config, (height, width))
    mixed = config.dtype == 'mixed'
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
        dtype=jnp.dtype('float32' if mixed else config.dtype),
        operand_dtype=jnp.dtype('bfloat16') if mixed else None,
        rngs=nnx.Rngs(key),
    )


def abstract_model(config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int) -> NIN:
    """Returns the network of `make_model` with abstract weights."""
    return nnx.eval_shape(
        lambda key: make_model(config, image_shape, num_classes, key), jax.random.key(0)
    )


def split_weights(model: NIN) -> tuple[dict, dict]:
    """Returns (parameters, running averages of batch normalization) as plain nested dicts."""
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def join(params: dict, stats: dict) -> dict:
    """Merges parameters and running averages into the `weights` of `nin.apply`."""
    return params | {k: join(params[k], v) if k in params else v for k, v in stats.items()}
