"""Layers of the baselines that the paper compares with; NIN itself does not use them.

Locally connected layers and local response normalization are from Hinton et al. 2012 (section 4.6),
maxout units from Goodfellow et al. 2013. The fully connected head is that of table 5.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from nin_jax.errors import ConfigError


def maxout(y_BHWC: jax.Array, pieces: int) -> jax.Array:
    """Returns the maximum over each group of `pieces` adjacent channels."""
    return jnp.max(y_BHWC.reshape(*y_BHWC.shape[:-1], -1, pieces), axis=-1)


def response_norm(
    x_BHWC: jax.Array, size: int = 9, alpha: float = 0.001, beta: float = 0.75
) -> jax.Array:
    """Divides by (1 + alpha * sum of squares over `size` adjacent channels) ** beta."""
    squares_BHWC = jnp.square(x_BHWC.astype(jnp.float32))
    padded = jnp.pad(squares_BHWC, ((0, 0), (0, 0), (0, 0), (size // 2, size - 1 - size // 2)))
    sums = sum(padded[..., i : i + x_BHWC.shape[-1]] for i in range(size))
    return (x_BHWC / (1 + alpha * sums) ** beta).astype(x_BHWC.dtype)


class LocalConv(nnx.Module):
    """A locally connected layer: separate weights at each position; stride 1, zero-padded.

    The parameters depend on the input's size: kernel (H, W, k * k * C in, C out) and bias
    (H, W, C out).
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

    def __call__(
        self, x_BHWC: jax.Array, training: bool = False, *, relu: bool = False
    ) -> jax.Array:
        """Returns the pre-activations (B, H, W, features) in `dtype`, or their ReLU."""
        del training  # only Conv has batch normalization
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
        y_BHWC = (y_BHWC + self.bias[...]).astype(self.dtype)
        return nnx.relu(y_BHWC) if relu else y_BHWC


class FullyConnected(nnx.Module):
    """The fully connected head that global average pooling replaces (table 5)."""

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
        """Returns float32 logits_BK."""
        check_size(maps_BHWC, self.size, 'a fully connected head')
        x_BI = maps_BHWC.reshape(maps_BHWC.shape[0], -1).astype(self.dtype)
        logits_BK = jnp.matmul(
            x_BI, self.kernel[...].astype(self.dtype), preferred_element_type=jnp.float32
        )
        return logits_BK + self.bias[...]


def check_size(x_BHWC: jax.Array, size: tuple[int, int], what: str) -> None:
    """Raises ConfigError unless the maps have the size that `what` requires."""
    if x_BHWC.shape[1:3] != size:
        raise ConfigError(
            f'{what} requires maps of {size[0]}x{size[1]}, got '
            f'{x_BHWC.shape[1]}x{x_BHWC.shape[2]}: use images of the size it was trained on, or '
            'a convolutional network with model.head=gap, which accepts any size'
        )
