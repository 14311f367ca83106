"""The network as a table: shapes, parameters, multiply-accumulates, receptive field."""

import dataclasses

import jax
import jax.numpy as jnp

from nin_jax.model import POOLS, Block


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
      name: in the authors' naming: conv1, cccp1, cccp2, pool1, ...
      shape: height, width, channels put out.
      parameters: weights and biases.
      macs: multiply-accumulates for one image, forward.
      receptive_field: side of the square of input pixels that one output sees.
      stride: input pixels between neighbouring outputs.
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    macs: int
    receptive_field: int
    stride: int


def layer_table(blocks: tuple[Block, ...], image_shape: tuple[int, int, int]) -> list[Row]:
    """The rows of a network for images of (height, width, channels)."""
    rows, cccp, field, stride = [], 0, 1, 1
    height, width, channels = image_shape
    for i, block in enumerate(blocks, start=1):
        for j, features in enumerate(block.features):
            kernel = 1 if j else block.kernel
            cccp += j > 0
            field += (kernel - 1) * stride
            weights = kernel * kernel * channels * features
            rows.append(
                Row(
                    f'cccp{cccp}' if j else f'conv{i}',
                    (height, width, features),
                    weights + features,
                    weights * height * width,
                    field,
                    stride,
                )
            )
            channels = features
        if block.pool != 'none':
            x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
            _, height, width, _ = jax.eval_shape(POOLS[block.pool], x).shape
            field, stride = field + 2 * stride, stride * 2
            rows.append(
                Row(f'pool{i} ({block.pool})', (height, width, channels), 0, 0, field, stride)
            )
    return rows


def format_table(rows: list[Row]) -> str:
    """The table as text, with totals and the floating-point operations they come to."""
    lines = [f'{"layer":12}{"output":>14}{"parameters":>13}{"MACs":>15}{"sees":>7}{"stride":>8}']
    for r in rows:
        shape = 'x'.join(map(str, r.shape))
        lines.append(
            f'{r.name:12}{shape:>14}{r.parameters:>13,}{r.macs:>15,}'
            f'{r.receptive_field:>7}{r.stride:>8}'
        )
    height, width, classes = rows[-1].shape
    macs = sum(r.macs for r in rows)
    lines += [
        f'{"GAP":12}{classes:>14}{0:>13}{height * width * classes:>15,}',
        '',
        f'{sum(r.parameters for r in rows):,} parameters; an image costs '
        f'{2 * macs / 1e9:.3f} GFLOP to score and about {6 * macs / 1e9:.3f} to train on',
    ]
    return '\n'.join(lines)
