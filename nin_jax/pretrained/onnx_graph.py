"""Converts a trained network to an ONNX graph, with preprocessing, for images of any size.

    session = onnxruntime.InferenceSession('model.onnx')
    logits_BK, maps_BHWK = session.run(['logits', 'maps'], {'images': images_BHWC})  # uint8

The graph is built from the layer table, with batch normalization folded into the convolutions.
jax2onnx 0.17 cannot convert these networks: it does not support `platform_index`, which
`lax.platform_dependent` of ops.py becomes, fails to compare pooled sizes for images of any size,
and requires an older Orbax.
"""

import dataclasses
import json

import numpy as np

from nin_jax.config import Block
from nin_jax.errors import ConfigError, UserError
from nin_jax.models.features import layer_names
from nin_jax.pretrained.onnx_preprocess import preprocess
from nin_jax.pretrained.onnx_writer import Writer
from nin_jax.pretrained.trained import Trained

BATCH_NORM_EPSILON = 1e-5  # nnx.BatchNorm's default


def build(trained: Trained, *, layers: bool = False) -> bytes:
    """Builds the ONNX model.

    Args:
      trained: the network.
      layers: whether the activations of all layers are outputs too: (B, C, H, W) each, with the
        authors' names of the layers.

    Returns:
      A serialized ModelProto. Input `images`: uint8 (B, H, W, C), any B; any H and W, unless the
      head is fully connected. Outputs: float32 `logits` (B, K) and `maps` (B, H, W, K).

    Raises:
      ConfigError: the network has local filters.
      UserError: the package onnx is not installed.
    """
    blocks = tuple(Block(**row) for row in trained.config.model.blocks.values())
    if any(block.local for block in blocks):
        raise ConfigError('local=True: a network with local filters cannot become an ONNX graph')
    height, width, channels = trained.image_shape
    is_fixed = trained.config.model.head == 'fc'
    writer = Writer()
    x = preprocess(writer, trained.preprocess, 'images', trained.image_shape)
    names = layer_names(blocks)
    for i, block in enumerate(blocks, start=1):
        x = _mlpconv(writer, trained, x, f'mlpconv{i}', block, names, i == len(blocks))
    writer.node('Transpose', [x], 'maps', perm=[0, 2, 3, 1])
    if is_fixed:
        fc = trained.params['fc']
        flat = writer.node('Flatten', ['maps'], axis=1)
        model = trained.config.model
        if model.head_dropout and model.dropout_mode == 'convnet':
            kept = writer.constant(np.float32(1 - model.head_dropout))
            flat = writer.node('Mul', [flat, kept])
        kernel = writer.constant(np.asarray(fc['kernel']))
        writer.node('Gemm', [flat, kernel, writer.constant(np.asarray(fc['bias']))], 'logits')
    else:
        axes = writer.constant(np.array([2, 3]))
        writer.node('ReduceMean', [x, axes], 'logits', keepdims=0)
    size = (height, width) if is_fixed else ('height', 'width')
    return writer.model(
        inputs={'images': (np.uint8, ('batch', *size, channels))},
        outputs={'logits': 2, 'maps': 4}
        | {name: 4 for name in (layer_outputs(trained) if layers else ())},
        metadata={
            'class_names': json.dumps(trained.class_names),
            'image_shape': json.dumps(trained.image_shape),
            'stride': str(trained.stride),
            'preprocess': trained.preprocess.recipe,
        },
    )


def layer_outputs(trained: Trained) -> list[str]:
    """Returns the layers that `build` can output: all except dropout, which has no effect."""
    blocks = tuple(Block(**row) for row in trained.config.model.blocks.values())
    is_scaled = trained.config.model.dropout_mode == 'convnet'
    return [
        name for (_, layer), name in layer_names(blocks).items() if layer != 'drop' or is_scaled
    ]


def _mlpconv(
    writer: Writer,
    trained: Trained,
    x: str,
    key: str,
    block: Block,
    names: dict[tuple[str, str], str],
    is_last: bool,
) -> str:
    """Adds a row of the layer table, on (B, C, H, W)."""
    config = trained.config.model
    parameters = trained.params['mlpconvs'][key]['layers']
    layers = ('conv', *(f'cccp{j}' for j in range(1, len(block.features))))
    for name in layers:
        is_linear = config.class_maps == 'linear' and is_last and name == layers[-1]
        kernel_HWIO, bias_O = _folded(parameters[name])
        pad = kernel_HWIO.shape[0] // 2 if name != 'conv' or block.stride == 1 else 0
        stride = block.stride if name == 'conv' else 1
        if block.pieces > 1:  # maxout: a convolution for each piece, then their maximum
            pieces = [
                writer.conv(x, kernel_HWIO[..., p], bias_O[p], pad=pad, stride=stride)
                for p in (slice(p, None, block.pieces) for p in range(block.pieces))
            ]
            x = writer.node('Max', pieces, names[key, name])
        elif is_linear:
            x = writer.conv(x, kernel_HWIO, bias_O, names[key, name], pad=pad, stride=stride)
        else:
            y = writer.conv(x, kernel_HWIO, bias_O, pad=pad, stride=stride)
            x = writer.node('Relu', [y], names[key, name])
    if block.pool != 'none':
        x = _pool(writer, x, block.pool, names[key, 'pool'])
    if block.dropout and config.dropout_mode == 'convnet':
        keep = writer.constant(np.float32(1.0 - block.dropout))
        x = writer.node('Mul', [x, keep], names[key, 'drop'])
    return x


def _folded(layer: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel_HWIO and bias_O of a convolution with its batch normalization, if any."""
    kernel_HWIO, bias_O = (np.asarray(layer[k], np.float64) for k in ('kernel', 'bias'))
    if 'norm' in layer:
        mean_O, var_O = (np.asarray(layer['norm'][k], np.float64) for k in ('mean', 'var'))
        scale_O = 1 / np.sqrt(var_O + BATCH_NORM_EPSILON)
        kernel_HWIO, bias_O = kernel_HWIO * scale_O, bias_O - mean_O * scale_O
    return kernel_HWIO.astype(np.float32), bias_O.astype(np.float32)


def _pool(writer: Writer, x: str, pool: str, name: str) -> str:
    """Adds 3x3/2 pooling, with the output sizes of ops.max_pool.

    They need one row and column of padding at the end, which neither kind of pooling counts.
    """
    window = dict(kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    kind, *norm = pool.split('_')
    pooled = None if norm else name
    if kind == 'max':
        x = writer.node('MaxPool', [x], pooled, **window)
    else:
        x = writer.node('AveragePool', [x], pooled, count_include_pad=0, **window)
    if norm:  # alpha is divided by the size in ONNX, not in cuda-convnet
        x = writer.node('LRN', [x], name, size=9, alpha=9 * 0.001, beta=0.75, bias=1.0)
    return x


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference between an ONNX model and the network.

    Attributes:
      images: number of images.
      largest_difference: largest absolute difference of the logits.
      largest_logit: largest absolute logit of the network, for scale.
      changed: number of images with another predicted class.
    """

    images: int
    largest_difference: float
    largest_logit: float
    changed: int

    @property
    def sentence(self) -> str:
        return (
            f'ONNX Runtime on {self.images:,} images: largest difference of the logits '
            f'{self.largest_difference:.2g}, {self.changed} changed top-1'
        )


def compare(
    model: bytes, trained: Trained, images_NHWC: np.ndarray, chunk: int = 100
) -> Comparison:
    """Evaluates uint8 images with ONNX Runtime and with the network.

    Raises:
      UserError: the package onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX needs two more packages: pip install -e '.[onnx]'") from None
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    parts = range(0, len(images_NHWC), chunk)
    theirs_NK = np.concatenate(
        [
            np.asarray(session.run(['logits'], {'images': images_NHWC[i : i + chunk]})[0])
            for i in parts
        ]
    )
    ours_NK = trained(images_NHWC)
    return Comparison(
        len(images_NHWC),
        float(np.abs(theirs_NK - ours_NK).max()),
        float(np.abs(ours_NK).max()),
        int(np.sum(theirs_NK.argmax(-1) != ours_NK.argmax(-1))),
    )
