"""Summarizes a network as a table: shapes, parameters, multiply-accumulates, receptive fields."""

import dataclasses

from nin_jax.config import Block
from nin_jax.models.features import layer_names
from nin_jax.models.nin import conv_size, pooled_size


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
      name: the name in `features`: conv1, cccp1, cccp2, pool1, ...
      shape: height, width and channels of the output.
      parameters: number of weights and biases.
      macs: multiply-accumulates of the forward pass of one image.
      receptive_field: side of the receptive field of an output, in input pixels.
      stride: distance between adjacent outputs, in input pixels.
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    macs: int
    receptive_field: int
    stride: int


def layer_table(
    blocks: tuple[Block, ...], image_shape: tuple[int, int, int], fc_classes: int = 0
) -> list[Row]:
    """Returns the rows of a network.

    Args:
      blocks: the layer table.
      image_shape: height, width, channels of the images.
      fc_classes: number of classes of a fully connected head; 0 for global average pooling.
    """
    rows, field, stride, names = [], 1, 1, layer_names(blocks)
    height, width, channels = image_shape
    for i, block in enumerate(blocks, start=1):
        for j, features in enumerate(block.features):
            kernel = 1 if j else block.kernel
            field += (kernel - 1) * stride
            if j == 0:
                (height, width), stride = conv_size((height, width), block), stride * block.stride
            filters = features * block.pieces
            weights = kernel * kernel * channels * filters
            local = block.local and j == 0  # separate weights at each position
            rows.append(
                Row(
                    names[f'mlpconv{i}', f'cccp{j}' if j else 'conv'],
                    (height, width, features),
                    (weights + filters) * (height * width if local else 1),
                    weights * height * width,
                    field,
                    stride,
                )
            )
            channels = features
        if block.pool != 'none':
            height, width = pooled_size((height, width), block.pool)
            field, stride = field + 2 * stride, stride * 2
            rows.append(
                Row(f'pool{i} ({block.pool})', (height, width, channels), 0, 0, field, stride)
            )
    if fc_classes:
        weights = height * width * channels * fc_classes
        field += (max(height, width) - 1) * stride
        rows.append(Row('fc', (1, 1, fc_classes), weights + fc_classes, weights, field, stride))
    return rows


def format_table(rows: list[Row]) -> str:
    """Formats the table as text, with totals and the floating-point operations per image."""
    lines = [f'{"layer":18}{"output":>11}{"parameters":>13}{"MACs":>15}{"field":>7}{"stride":>8}']
    for r in rows:
        shape = 'x'.join(map(str, r.shape))
        lines.append(
            f'{r.name:18}{shape:>11}{r.parameters:>13,}{r.macs:>15,}'
            f'{r.receptive_field:>7}{r.stride:>8}'
        )
    if rows[-1].name != 'fc':
        height, width, classes = rows[-1].shape
        lines.append(f'{"GAP":18}{classes:>11}{0:>13}{height * width * classes:>15,}')
    macs = sum(r.macs for r in rows)
    lines += [
        '',
        f'{sum(r.parameters for r in rows):,} parameters; GFLOP per image: '
        f'{2 * macs / 1e9:.3f} forward, about {6 * macs / 1e9:.3f} forward and backward',
    ]
    return '\n'.join(lines)
