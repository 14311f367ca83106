"""Layers of the networks that the paper compares itself with; NIN does not use them.

Locally connected layers and response normalisation are those of Hinton et al. 2012 (section 4.6);
maxout units those of Goodfellow et al. 2013; the fully connected head is that of table 5.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from nin_jax.errors import ConfigError


def maxout(y_BHWC: jax.Array, pieces: int) -> jax.Array:
    """The maximum over each group of `pieces` neighbouring channels."""
    return jnp.max(y_BHWC.reshape(*y_BHWC.shape[:-1], -1, pieces), axis=-1)


def response_norm(
    x_BHWC: jax.Array, size: int = 9, alpha: float = 0.001, beta: float = 0.75
) -> jax.Array:
    """Divides by (1 + alpha * sum of squares over `size` neighbouring channels) ** beta."""
    squares_BHWC = jnp.square(x_BHWC.astype(jnp.float32))
    padded = jnp.pad(squares_BHWC, ((0, 0), (0, 0), (0, 0), (size // 2, size - 1 - size // 2)))
    sums = sum(padded[..., i : i + x_BHWC.shape[-1]] for i in range(size))
    return (x_BHWC / (1 + alpha * sums) ** beta).astype(x_BHWC.dtype)


class LocalConv(nnx.Module):
    """A convolution with its own weights and biases at each position; stride 1, zero-padded.

    The image's size is part of the weights: kernel (H, W, k * k * C in, C out), bias (H, W, C out).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int,
        *,
        size: tuple[int, int],
        init_std: float | None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        fan_in = kernel * kernel * in_features
        std = (2 / fan_in) ** 0.5 if init_std is None else init_std
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (*size, fan_in, features)))
        self.bias = nnx.Param(jnp.zeros((*size, features)))
        self.side, self.size, self.dtype = kernel, size, dtype

    def __call__(self, x_BHWC: jax.Array, training: bool = False) -> jax.Array:
        del training  # only Conv may normalize
        check_size(x_BHWC, self.size, 'a locally connected layer')
        (height, width), pads = self.size, (self.side // 2,) * 2
        x_BHWC = jnp.pad(x_BHWC.astype(self.dtype), ((0, 0), pads, pads, (0, 0)))
        patches_BHWI = jnp.concatenate(
            [
                x_BHWC[:, i : i + height, j : j + width]
                for i in range(self.side)
                for j in range(self.side)
            ],
            axis=-1,
        )
        y_BHWC = jnp.einsum('bhwi,hwio->bhwo', patches_BHWI, self.kernel[...].astype(self.dtype))
        return (y_BHWC + self.bias[...]).astype(self.dtype)  # as in nin.Conv


class FullyConnected(nnx.Module):
    """The head that global average pooling replaces: a weight for each pixel, map and class."""

    def __init__(
        self,
        maps_shape: tuple[int, int, int],
        classes: int,
        *,
        init_std: float | None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, channels = maps_shape
        inputs = height * width * channels
        std = (2 / inputs) ** 0.5 if init_std is None else init_std
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))
        self.size, self.dtype = (height, width), dtype

    def __call__(self, maps_BHWC: jax.Array) -> jax.Array:
        """float32 logits_BK."""
        check_size(maps_BHWC, self.size, 'a fully connected head')
        x_BI = maps_BHWC.reshape(maps_BHWC.shape[0], -1).astype(self.dtype)
        logits_BK = jnp.matmul(
            x_BI, self.kernel[...].astype(self.dtype), preferred_element_type=jnp.float32
        )
        return logits_BK + self.bias[...]


def check_size(x_BHWC: jax.Array, size: tuple[int, int], what: str) -> None:
    """Raises ConfigError unless the maps have the size that `what` was made for."""
    if x_BHWC.shape[1:3] != size:
        raise ConfigError(
            f'{what} was made for maps of {size[0]}x{size[1]}, these are '
            f'{x_BHWC.shape[1]}x{x_BHWC.shape[2]}: give images of the size it was trained on, or '
            'use a network of convolutions with model.head=gap, which takes any'
        )
