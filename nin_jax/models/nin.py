"""Network In Network: section 3 of the paper.

MLP convolution layer (section 3.1): a convolution followed by 1x1 convolutions, each with ReLU. It
is a small multilayer perceptron that slides over the image. Global average pooling (section 3.2):
the last mlpconv outputs one map per class, and the mean of each map is that class's logit.

Array axes: B batch, H height, W width, C channels, K classes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nin_jax.config import Block
from nin_jax.models import ops
from nin_jax.models.baselines import FullyConnected, LocalConv, maxout, response_norm

POOLS = {
    'max': ops.max_pool,
    'avg': ops.avg_pool,
    'none': lambda x_BHWC: x_BHWC,
    'max_rnorm': lambda x_BHWC: response_norm(ops.max_pool(x_BHWC)),
    'avg_rnorm': lambda x_BHWC: response_norm(ops.avg_pool(x_BHWC)),
}


class Conv(nnx.Module):
    """A convolution with bias; zero-padded to keep the image's size if its stride is 1.

    With batch normalization, each channel is standardized before the bias is added: by the batch's
    statistics in training, by their running averages in evaluation. The bias is the shift. There
    is no scale, which the next layer's weights can absorb, so the number of parameters is the same.

    Args:
      in_features, features: channels in and out.
      kernel: side of the window.
      init_std: standard deviation of the initial weights; None for He initialization.
      stride: above 1, the convolution is not padded.
      batch_norm: whether the output is normalized.
      dtype: of the weights as they are used and of the output.
      rngs: of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int,
        *,
        init_std: float | None,
        stride: int = 1,
        batch_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = (
            nnx.initializers.he_normal() if init_std is None else nnx.initializers.normal(init_std)
        )
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, in_features, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.norm = (
            nnx.BatchNorm(features, momentum=0.9, use_bias=False, use_scale=False, rngs=rngs)
            if batch_norm
            else None
        )
        self.stride, self.dtype = stride, dtype

    def __call__(self, x_BHWC: jax.Array, training: bool = False) -> jax.Array:
        """The output before the nonlinearity, in `dtype`."""
        kernel = self.kernel[...].astype(self.dtype)
        padding = kernel.shape[0] // 2 if self.stride == 1 else 0
        y_BHWC = ops.conv2d(x_BHWC.astype(self.dtype), kernel, stride=self.stride, padding=padding)
        if self.norm is not None:
            y_BHWC = self.norm(y_BHWC.astype(jnp.float32), use_running_average=not training)
        # Added in float32: the bias's gradient is a sum over all positions, too long for bfloat16.
        return (y_BHWC + self.bias[...]).astype(self.dtype)


class MLPConv(nnx.Module):
    """The paper's MLP convolution layer: a convolution, then 1x1 convolutions, each with ReLU.

    The 1x1 convolutions are the paper's cascaded cross channel parametric pooling, `cccp` in the
    authors' files. Without any, this is a conventional convolutional layer: a generalized linear
    model of each window (section 3.1).

    Args:
      in_features: channels of the input.
      block: a row of the layer table.
      size: height and width of the input; needed if `block.local`.
      batch_norm: whether to normalize before each ReLU.
      class_maps: 'relu' or 'linear' if the last layer outputs the class maps, which are never
        normalized and have a ReLU, as in the paper, or none; None for other layers.
      dtype: see `Conv`.
      rngs: of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        block: Block,
        *,
        size: tuple[int, int] | None = None,
        batch_norm: bool = False,
        class_maps: str | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.names = ('conv', *(f'cccp{i}' for i in range(1, len(block.features))))
        self.pieces, self.class_maps = block.pieces, class_maps
        kernels = (block.kernel, *(1 for _ in block.features[1:]))
        inputs = (in_features, *block.features[:-1])
        stds = block.init_std or (None,) * len(block.features)
        layers = {}
        for name, i, o, k, std in zip(
            self.names, inputs, block.features, kernels, stds, strict=True
        ):
            if block.local and name == 'conv':
                assert size is not None
                layer = partial(LocalConv, size=size)
            else:
                norm = batch_norm and not (class_maps and name == self.names[-1])
                stride = block.stride if name == 'conv' else 1
                layer = partial(Conv, stride=stride, batch_norm=norm)
            layers[name] = layer(i, o * block.pieces, k, init_std=std, dtype=dtype, rngs=rngs)
        self.layers = nnx.Dict(layers)

    def __call__(self, x_BHWC: jax.Array, training: bool = False) -> jax.Array:
        """Activations of the last 1x1 convolution, float in `dtype`."""
        for name in self.names:
            y_BHWC = self.layers[name](x_BHWC, training)
            if self.pieces > 1:
                x_BHWC = maxout(y_BHWC, self.pieces)
            elif self.class_maps == 'linear' and name == self.names[-1]:
                x_BHWC = y_BHWC
            else:
                x_BHWC = nnx.relu(y_BHWC)
            self.sow(nnx.Intermediate, name, x_BHWC)
        return x_BHWC


class NIN(nnx.Module):
    """Stacked mlpconvs and global average pooling, or a fully connected head in its place.

    Args:
      blocks: the layer table; the last row's last width is the number of classes (with a fully
        connected head, any).
      in_features: channels of the input image.
      fc_classes: 0 for global average pooling; else a fully connected layer to so many classes
        follows the last maps (table 5), its initial weights as the last row's.
      fc_dropout: probability of dropping one of that layer's inputs.
      image_size: height and width, needed by a fully connected head and by local blocks.
      dropout_mode: 'inverted' scales the kept activations by 1 / (1 - p) in training (Caffe);
        'convnet' leaves training unscaled and multiplies by 1 - p at test (the authors'
        cuda-convnet, PluginsSrc/include/extralayers.cuh).
      norm: 'none', or 'batch': normalization before each ReLU but the class maps', see `Conv`.
      class_maps: 'relu', the paper's, or 'linear': no ReLU on them.
      class_bias: initial bias of the class maps. The paper's is 0, with which about half of the
        maps are dead at first (below zero everywhere), and a plateau of epochs follows.
      dtype: of activations and of the weights as they are used; parameters stay float32.
      rngs: streams for the initial weights.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        in_features: int,
        *,
        fc_classes: int = 0,
        fc_dropout: float = 0.0,
        image_size: tuple[int, int] | None = None,
        dropout_mode: str = 'inverted',
        norm: str = 'none',
        class_maps: str = 'relu',
        class_bias: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        mlpconvs, features, size = {}, in_features, image_size
        for i, block in enumerate(blocks, start=1):
            mlpconvs[f'mlpconv{i}'] = MLPConv(
                features,
                block,
                size=size,
                batch_norm=norm == 'batch',
                class_maps=class_maps if i == len(blocks) and not fc_classes else None,
                dtype=dtype,
                rngs=rngs,
            )
            features, size = block.features[-1], size and block_size(size, block)
        self.mlpconvs = nnx.Dict(mlpconvs)
        self.blocks, self.dropout_mode, self.fc_dropout = blocks, dropout_mode, fc_dropout
        std = blocks[-1].init_std[-1] if blocks[-1].init_std else None
        fc = None
        if fc_classes:
            assert size is not None
            maps_shape = (*size, features)
            fc = FullyConnected(maps_shape, fc_classes, init_std=std, dtype=dtype, rngs=rngs)
        self.fc = fc
        last = self.mlpconvs[f'mlpconv{len(blocks)}']
        bias = last.layers[last.names[-1]].bias
        bias[...] = jnp.full_like(bias[...], class_bias)

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path, in the parameter tree, of the layer that outputs the class maps or, with a fully
        connected head, the logits."""
        if self.fc is not None:
            return ('fc',)
        name = f'mlpconv{len(self.blocks)}'
        return ('mlpconvs', name, 'layers', self.mlpconvs[name].names[-1])

    def __call__(
        self,
        x_BHWC: jax.Array,
        dropout_keys_B: jax.Array | None = None,
        *,
        training: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Scores a batch of images, of any size unless the head or a block has one of its own.

        Args:
          x_BHWC: preprocessed images, float.
          dropout_keys_B: one PRNG key per image, so that an image's dropout does not depend on the
            other images of the batch; None for no dropout.
          training: whether batch normalization uses the batch's own statistics.

        Returns:
          float32 logits_BK, and class maps_BHWK in `dtype`. With global average pooling the logits
          are the spatial means of the maps; with a fully connected head the maps have no class.

        Raises:
          ConfigError: the images have a size that a fully connected head or a local block cannot
            take.
        """
        for i, block in enumerate(self.blocks, start=1):
            mlpconv = self.mlpconvs[f'mlpconv{i}']
            x_BHWC = POOLS[block.pool](mlpconv(x_BHWC, training))
            mlpconv.sow(nnx.Intermediate, 'pool', x_BHWC)
            x_BHWC = dropout(
                x_BHWC, block.dropout, _fold_in(dropout_keys_B, i), mode=self.dropout_mode
            )
            mlpconv.sow(nnx.Intermediate, 'drop', x_BHWC)
        maps_BHWK = x_BHWC
        if self.fc is None:
            return global_average_pooling(maps_BHWK), maps_BHWK
        x_BHWK = dropout(
            maps_BHWK, self.fc_dropout, _fold_in(dropout_keys_B, 0), mode=self.dropout_mode
        )
        return self.fc(x_BHWK), maps_BHWK


def apply(model: nnx.GraphDef, weights: dict, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The network in evaluation as a pure function, for jit or grad.

    Args:
      model: its structure, `nnx.graphdef` of a NIN.
      weights: parameters and running averages in one nested dict.
      x_BHWC: preprocessed images, float.

    Returns:
      float32 logits_BK and class maps_BHWK.
    """
    return run(nnx.merge(model, nnx.State(weights)), x_BHWC)


def run(
    network: NIN, x_BHWC: jax.Array, dropout_keys_B: jax.Array | None = None, training: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Calls a network without keeping the intermediate activations that its modules sow."""
    forward: Any = nnx.capture(network)
    return forward(x_BHWC, dropout_keys_B, training=training)


def global_average_pooling(maps_BHWK: jax.Array) -> jax.Array:
    """Mean over each class map, in float32: the logits_BK (section 3.2)."""
    return jnp.mean(maps_BHWK, axis=(1, 2), dtype=jnp.float32)


def pooled_size(size: tuple[int, int], pool: str) -> tuple[int, int]:
    """Output height and width of an entry of POOLS for an image of `size`."""
    shape = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    _, height, width, _ = jax.eval_shape(POOLS[pool], shape).shape
    return height, width


def block_size(size: tuple[int, int], block: Block) -> tuple[int, int]:
    """Output height and width of a block for an image of `size`."""
    return pooled_size(conv_size(size, block), block.pool)


def conv_size(size: tuple[int, int], block: Block) -> tuple[int, int]:
    """Output height and width of a block's convolutions for an image of `size`."""
    if block.stride == 1:
        return size
    height, width = ((side - block.kernel) // block.stride + 1 for side in size)
    return height, width


def _fold_in(keys_B: jax.Array | None, layer: int) -> jax.Array | None:
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, *, mode: str) -> jax.Array:
    """Drops each activation with probability `rate` (section 4.1); without keys, evaluates.

    Args:
      x: activations with a leading batch axis.
      rate: from 0 to below 1; rounded to a multiple of 2**-16, as 16 random bits decide.
      keys_B: one PRNG key per image; None in evaluation.
      mode: 'inverted' or 'convnet', see `NIN`.
    """
    if rate == 0.0:
        return x
    if keys_B is None:
        return x * (1.0 - rate) if mode == 'convnet' else x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys_B)
    scale = 1.0 if mode == 'convnet' else 1.0 / (1.0 - rate)
    return jnp.where(bits < round(rate * 2**16), 0, x * scale).astype(x.dtype)


def count_parameters(params: dict) -> int:
    """Number of trained scalars in a tree; the averages of batch normalization do not count."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-2].key != 'norm')
