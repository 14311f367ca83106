"""Network In Network, section 3 of the paper.

An mlpconv layer (section 3.1) slides a multilayer perceptron over the input. With the patch x_ij
centered at pixel (i, j), and k the index of a feature map, it computes (equation 2)

    f1_ijk = max(w1_k . x_ij  + b1_k, 0)
    ...
    fn_ijk = max(wn_k . fn-1_ij + bn_k, 0)

The first layer is a convolution and the others are 1x1 convolutions: cascaded cross channel
parametric pooling. Global average pooling (section 3.2) replaces the fully connected layers. The
last mlpconv layer outputs one feature map per class, and the spatial mean of each map is the logit
of its class. A network (section 3.3) is a stack of mlpconv layers, with pooling and dropout between
them, and global average pooling on top.

Array axes: B batch, H height, W width, C channels, K classes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nin_jax.config import Block
from nin_jax.models import fused, ops
from nin_jax.models.baselines import FullyConnected, LocalConv, maxout, response_norm

POOLS = {
    'max': ops.max_pool,
    'avg': ops.avg_pool,
    'none': lambda x_BHWC: x_BHWC,
    'max_rnorm': lambda x_BHWC: response_norm(ops.max_pool(x_BHWC)),
    'avg_rnorm': lambda x_BHWC: response_norm(ops.avg_pool(x_BHWC)),
}


class Conv(nnx.Module):
    """A convolution with bias, zero-padded to the size of its input if the stride is 1.

    Batch normalization, if any, is applied before the bias, which serves as its shift. It uses the
    statistics of the batch in training and their running averages in evaluation. It has no scale,
    because the next layer's weights can absorb one, so it adds no parameters.

    Args:
      in_features: number of input channels.
      features: number of output channels.
      kernel: side of the square kernel.
      init_std: standard deviation of the initial weights; None for He initialization.
      stride: stride in both directions; there is no padding if it is above 1.
      batch_norm: whether to apply batch normalization.
      dtype: dtype of the computation; the parameters are float32.
      operand_dtype: dtype that the operands of a 1x1 convolution are rounded to; None for `dtype`.
      rngs: rngs for the initialization.
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
        operand_dtype: jnp.dtype | None = None,
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
        self.operand_dtype = operand_dtype if kernel == stride == 1 else None

    def __call__(
        self, x_BHWC: jax.Array, training: bool = False, *, relu: bool = False
    ) -> jax.Array:
        """Returns the pre-activations (B, H, W, features) in `dtype`, or their ReLU."""
        x_BHWC, kernel = x_BHWC.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.operand_dtype is not None:
            y_BHWC: Any = ops.mixed_conv1x1(x_BHWC, kernel, self.operand_dtype)
        else:
            padding = kernel.shape[0] // 2 if self.stride == 1 else 0
            y_BHWC = ops.conv2d(x_BHWC, kernel, stride=self.stride, padding=padding)
        return fused.normalize_bias_relu(
            y_BHWC, self.norm, self.bias[...], training=training, relu=relu
        )


class MLPConv(nnx.Module):
    """The mlpconv layer: a convolution and 1x1 convolutions, each followed by a ReLU (section 3.1).

    The 1x1 convolutions are cascaded cross channel parametric pooling, `cccp` in the authors'
    files. Without them, this is a conventional convolutional layer, a generalized linear model of
    each patch. With `block.pieces` above 1, maxout units replace the ReLU.

    Args:
      in_features: number of input channels.
      block: the row of the layer table.
      size: height and width of the input; required if `block.local`.
      batch_norm: whether to apply batch normalization before each activation function.
      class_map_activation: if the last layer outputs the class maps, its activation, 'relu' (the
        paper's) or 'linear'; None for the other mlpconv layers. Class maps are not normalized.
      dtype, operand_dtype: see `Conv`.
      rngs: rngs for the initialization.
    """

    def __init__(
        self,
        in_features: int,
        block: Block,
        *,
        size: tuple[int, int] | None = None,
        batch_norm: bool = False,
        class_map_activation: str | None = None,
        dtype: jnp.dtype = jnp.float32,
        operand_dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.names = ('conv', *(f'cccp{i}' for i in range(1, len(block.features))))
        self.pieces, self.class_map_activation = block.pieces, class_map_activation
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
                norm = batch_norm and not (class_map_activation and name == self.names[-1])
                stride = block.stride if name == 'conv' else 1
                layer = partial(Conv, stride=stride, batch_norm=norm, operand_dtype=operand_dtype)
            layers[name] = layer(i, o * block.pieces, k, init_std=std, dtype=dtype, rngs=rngs)
        self.layers = nnx.Dict(layers)

    def __call__(self, x_BHWC: jax.Array, training: bool = False) -> jax.Array:
        """Returns the feature maps (B, H, W, features) of the last layer, in `dtype`."""
        for name in self.names:
            linear = self.class_map_activation == 'linear' and name == self.names[-1]
            relu = self.pieces == 1 and not linear
            x_BHWC = self.layers[name](x_BHWC, training, relu=relu)
            if self.pieces > 1:
                x_BHWC = maxout(x_BHWC, self.pieces)
            self.sow(nnx.Intermediate, name, x_BHWC)
        return x_BHWC


class NIN(nnx.Module):
    """A stack of mlpconv layers with global average pooling (section 3.3).

    Table 5 replaces global average pooling by a fully connected layer: see `fc_classes`.

    Args:
      blocks: the layer table. With global average pooling, the last layer's number of features is
        the number of classes.
      in_features: number of channels of the images.
      fc_classes: 0 for global average pooling; otherwise the number of outputs of a fully connected
        head on the last maps, initialized like the last row of `blocks`.
      fc_dropout: dropout rate of the inputs of the fully connected head.
      image_size: height and width of the images; required by a fully connected head and by local
        blocks.
      dropout_mode: 'inverted' scales the kept activations by 1 / (1 - p) in training (Caffe).
        'convnet' does not scale in training and multiplies by 1 - p in evaluation (the authors'
        cuda-convnet, PluginsSrc/include/extralayers.cuh).
      norm: 'none' or 'batch', see `Conv`; the class maps are not normalized.
      class_maps: activation of the class maps: 'relu' (the paper's) or 'linear'.
      class_bias: initial bias of the maps of the last mlpconv layer. With the authors' 0, about
        half of the class maps are dead at initialization (negative everywhere), which causes a
        plateau of several epochs.
      dtype: dtype of the computation; the parameters are float32.
      operand_dtype: see `Conv`.
      rngs: rngs for the initialization.
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
        operand_dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        mlpconvs, features, size = {}, in_features, image_size
        for i, block in enumerate(blocks, start=1):
            mlpconvs[f'mlpconv{i}'] = MLPConv(
                features,
                block,
                size=size,
                batch_norm=norm == 'batch',
                class_map_activation=class_maps if i == len(blocks) and not fc_classes else None,
                dtype=dtype,
                operand_dtype=operand_dtype,
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
        """Path in the parameter tree of the layer that computes the class maps or the fc logits."""
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
        frozen: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes logits and class maps of images.

        The images can have any size, unless the network has a fully connected head or local blocks.

        Args:
          x_BHWC: preprocessed images, float.
          dropout_keys_B: one PRNG key per image, so that the dropout of an image does not depend on
            the rest of the batch; None for no dropout.
          training: whether batch normalization uses the statistics of the batch.
          frozen: number of mlpconv layers, from the first, that pass no gradient and normalize by
            their running averages.

        Returns:
          Float32 logits_BK, and class maps_BHWK in `dtype`. With global average pooling, the logits
          are the spatial means of the maps. With a fully connected head, the maps do not correspond
          to classes.

        Raises:
          ConfigError: the size of the images does not fit a fully connected head or a local block.
        """
        for i, block in enumerate(self.blocks, start=1):
            mlpconv = self.mlpconvs[f'mlpconv{i}']
            x_BHWC = POOLS[block.pool](mlpconv(x_BHWC, training and i > frozen))
            if i == frozen:
                x_BHWC = jax.lax.stop_gradient(x_BHWC)
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
    """Applies the network in evaluation mode, as a pure function for jit and grad.

    Args:
      model: structure of the network, the `nnx.graphdef` of a NIN.
      weights: parameters and running averages in one nested dict.
      x_BHWC: preprocessed images, float.

    Returns:
      Float32 logits_BK and class maps_BHWK.
    """
    return forward(nnx.merge(model, nnx.State(weights)), x_BHWC)


def forward(
    network: NIN,
    x_BHWC: jax.Array,
    dropout_keys_B: jax.Array | None = None,
    training: bool = False,
    frozen: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Calls a network and discards the intermediate activations that its modules sow."""
    captured: Any = nnx.capture(network)
    return captured(x_BHWC, dropout_keys_B, training=training, frozen=frozen)


def global_average_pooling(maps_BHWK: jax.Array) -> jax.Array:
    """Returns the spatial mean of each class map as float32 logits_BK (section 3.2)."""
    return jnp.mean(maps_BHWK, axis=(1, 2), dtype=jnp.float32)


def pooled_size(size: tuple[int, int], pool: str) -> tuple[int, int]:
    """Returns the output height and width of an entry of POOLS for an input of `size`."""
    shape = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    _, height, width, _ = jax.eval_shape(POOLS[pool], shape).shape
    return height, width


def block_size(size: tuple[int, int], block: Block) -> tuple[int, int]:
    """Returns the output height and width of a block for an input of `size`."""
    return pooled_size(conv_size(size, block), block.pool)


def conv_size(size: tuple[int, int], block: Block) -> tuple[int, int]:
    """Returns the output height and width of a block's convolutions for an input of `size`."""
    if block.stride == 1:
        return size
    height, width = ((side - block.kernel) // block.stride + 1 for side in size)
    return height, width


def _fold_in(keys_B: jax.Array | None, layer: int) -> jax.Array | None:
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, *, mode: str) -> jax.Array:
    """Drops each activation with probability `rate` (section 4.1).

    Args:
      x: activations with a leading batch axis.
      rate: dropout rate in [0, 1), rounded to a multiple of 2**-16 (16 random bits per activation).
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
    """Returns the number of trainable parameters, without the averages of batch normalization."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-2].key != 'norm')
