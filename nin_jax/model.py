"""Network In Network, as section 3 of the paper tells it.

mlpconv: a convolution followed by 1x1 convolutions, each with ReLU, so that a small multilayer
perceptron slides over the image (section 3.1). Global average pooling: the last mlpconv puts out
one map per class, and the mean of each map is that class's logit (section 3.2).

Array axes: B batch, H height, W width, C channels, K classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from nin_jax import ops

POOLS = {'max': ops.max_pool, 'avg': ops.avg_pool, 'none': lambda x_BHWC: x_BHWC}
DROPOUT_MODES = ('inverted', 'convnet')


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of a layer table: an mlpconv, then a 3x3/2 pooling, then dropout.

    Attributes:
      features: channels put out by the k x k convolution and by each 1x1 convolution after it.
      kernel: side of the first convolution's window; it is padded to keep the image's size.
      pool: 'max', 'avg' or 'none'.
      dropout: probability of dropping an activation after the pooling; 0 for no dropout.
      init_std: standard deviation of each layer's Gaussian initial weights; empty for He
        initialisation (sqrt(2 / fan-in)). Biases start at zero.
    """

    features: tuple[int, ...]
    kernel: int
    pool: str = 'none'
    dropout: float = 0.0
    init_std: tuple[float, ...] = (0.05, 0.05, 0.05)


class Conv(nnx.Module):
    """A convolution with bias, stride 1, zero-padded to keep the image's size."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int,
        *,
        init_std: float | None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = (
            nnx.initializers.he_normal() if init_std is None else nnx.initializers.normal(init_std)
        )
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, in_features, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.dtype = dtype

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        y_BHWC = ops.conv2d(x_BHWC.astype(self.dtype), kernel, padding=kernel.shape[0] // 2)
        return y_BHWC + self.bias[...].astype(self.dtype)


class MLPConv(nnx.Module):
    """A convolution, then 1x1 convolutions, each followed by ReLU (section 3.1).

    The authors call the 1x1 convolutions cccp: cascaded cross channel parametric pooling.
    """

    def __init__(
        self,
        in_features: int,
        features: tuple[int, ...],
        kernel: int,
        *,
        init_std: tuple[float, ...] = (0.05, 0.05, 0.05),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.names = ('conv', *(f'cccp{i}' for i in range(1, len(features))))
        kernels = (kernel, *(1 for _ in features[1:]))
        inputs = (in_features, *features[:-1])
        stds = init_std or (None,) * len(features)
        self.layers = nnx.Dict(
            {
                name: Conv(i, o, k, init_std=std, dtype=dtype, rngs=rngs)
                for name, i, o, k, std in zip(
                    self.names, inputs, features, kernels, stds, strict=True
                )
            }
        )

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for name in self.names:
            x_BHWC = nnx.relu(self.layers[name](x_BHWC))
        return x_BHWC


class NIN(nnx.Module):
    """Stacked mlpconvs and global average pooling.

    Args:
      blocks: the layer table; the last row's last width is the number of classes.
      in_features: channels of the input image.
      dropout_mode: 'inverted' scales the kept activations by 1 / (1 - p) in training (Caffe);
        'convnet' leaves training unscaled and multiplies by 1 - p at test (the authors'
        cuda-convnet, PluginsSrc/include/extralayers.cuh).
      class_bias: initial bias of the class maps. The paper's is 0, from where about half of the
        maps start out dead (below zero everywhere) and a plateau of epochs follows.
      dtype: of activations and of the weights as they are used; parameters stay float32.
      rngs: streams for the initial weights.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        in_features: int,
        *,
        dropout_mode: str = 'inverted',
        class_bias: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inputs = (in_features, *(b.features[-1] for b in blocks[:-1]))
        self.mlpconvs = nnx.Dict(
            {
                f'mlpconv{i}': MLPConv(
                    c, b.features, b.kernel, init_std=b.init_std, dtype=dtype, rngs=rngs
                )
                for i, (c, b) in enumerate(zip(inputs, blocks, strict=True), start=1)
            }
        )
        self.blocks = blocks
        self.dropout_mode = dropout_mode
        last = self.mlpconvs[f'mlpconv{len(blocks)}']
        bias = last.layers[last.names[-1]].bias
        bias[...] = jnp.full_like(bias[...], class_bias)

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path, in the parameter tree, of the layer that puts out the class maps."""
        name = f'mlpconv{len(self.blocks)}'
        return ('mlpconvs', name, 'layers', self.mlpconvs[name].names[-1])

    def __call__(
        self, x_BHWC: jax.Array, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Scores a batch of images of any size.

        Args:
          x_BHWC: preprocessed images, float.
          dropout_key: a PRNG key in training; None for evaluation, without dropout.

        Returns:
          logits_BK float32, and the class maps_BHWK whose spatial means they are.
        """
        for i, block in enumerate(self.blocks, start=1):
            x_BHWC = POOLS[block.pool](self.mlpconvs[f'mlpconv{i}'](x_BHWC))
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
            x_BHWC = dropout(x_BHWC, block.dropout, key, mode=self.dropout_mode)
        maps_BHWK = x_BHWC
        return global_average_pooling(maps_BHWK), maps_BHWK


def global_average_pooling(maps_BHWK: jax.Array) -> jax.Array:
    """Mean over each class map, in float32: the logits_BK (section 3.2)."""
    return jnp.mean(maps_BHWK, axis=(1, 2), dtype=jnp.float32)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, *, mode: str) -> jax.Array:
    """Drops each activation with probability `rate`; without a key, the deterministic counterpart.

    See `NIN` for the two modes. 16 random bits an activation: `rate` is met to within 2**-17.
    """
    if rate == 0.0:
        return x
    if key is None:
        return x * (1.0 - rate) if mode == 'convnet' else x
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    scale = 1.0 if mode == 'convnet' else 1.0 / (1.0 - rate)
    return jnp.where(bits < round(rate * 2**16), 0, x * scale).astype(x.dtype)


def count_parameters(params: dict) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
