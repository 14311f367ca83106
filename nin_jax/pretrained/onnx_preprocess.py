"""The recipes of `nin_jax.data.preprocess` as ONNX nodes: uint8 (B, H, W, C) -> (B, C, H, W)."""

import math

import numpy as np

from nin_jax.data.preprocess import Preprocess
from nin_jax.errors import ConfigError
from nin_jax.pretrained.onnx_writer import BOOL, FLOAT, INT32, Writer


def preprocess(
    writer: Writer, fitted: Preprocess, images: str, image_shape: tuple[int, int, int]
) -> str:
    """Adds the nodes of a fitted recipe, equivalent to `Preprocess.any_size`.

    Args:
      writer: the graph.
      fitted: the recipe.
      images: name of the uint8 images, (B, H, W, C) of any size.
      image_shape: height, width and channels of the training images.

    Returns:
      The name of the float32 result, (B, C, H, W).
    """
    x = writer.node('Cast', [images], to=FLOAT)
    x = writer.node('Transpose', [x], perm=[0, 3, 1, 2])
    if fitted.recipe == 'scale':
        return writer.node('Div', [x, writer.constant(np.float32(255))])
    if fitted.recipe == 'mean':
        mean_C = np.asarray(fitted.mean_HWC, np.float32).reshape(1, -1, 1, 1)
        return writer.node('Sub', [x, writer.constant(mean_C)])
    if fitted.recipe == 'gcn_lcn':
        return _local_contrast(writer, _global_contrast(writer, x, 1.0), image_shape[-1])
    if fitted.recipe == 'patch_zca':
        return _slide(writer, _unit_rms(writer, x), np.asarray(fitted.kernel_HWIO))
    if fitted.recipe == 'gcn_zca':
        return _whiten(writer, fitted, x)
    raise ConfigError(f'preprocess.recipe={fitted.recipe!r}: it has no ONNX form yet')


def _global_contrast(writer: Writer, x: str, scale: float | str, min_divisor: float = 1e-8) -> str:
    """Adds `preprocess.global_contrast_normalize`; `scale` is a number, or the name of one."""
    axes = writer.constant(np.array([1, 2, 3]))
    ones, zeros = writer.constant(np.ones(3, np.int64)), writer.constant(np.zeros(3, np.int64))
    first = writer.node('Slice', [x, zeros, ones, axes])
    x = writer.node('Sub', [x, first])
    x = writer.node('Sub', [x, writer.node('ReduceMean', [x, axes])])
    if not isinstance(scale, str):
        scale = writer.constant(np.float32(scale))
    norm = writer.node('Sqrt', [writer.node('ReduceSumSquare', [x, axes])])
    divisor = writer.node('Div', [norm, scale])
    small = writer.node('Less', [divisor, writer.constant(np.float32(min_divisor))])
    divisor = writer.node('Where', [small, writer.constant(np.float32(1)), divisor])
    return writer.node('Div', [x, divisor])


def _local_contrast(writer: Writer, x: str, channels: int) -> str:
    """Adds `preprocess.local_contrast_normalize` with its default window."""
    axes = writer.constant(np.array([2, 3]))
    rms = writer.node('Sqrt', [_blur(writer, writer.node('Mul', [x, x]), channels)])
    floor = writer.node('ReduceMean', [rms, axes])
    floor = writer.node('Max', [floor, writer.constant(np.float32(1e-4))])
    centered = writer.node('Sub', [x, _blur(writer, x, channels)])
    return writer.node('Div', [centered, writer.node('Max', [rms, floor])])


def _blur(writer: Writer, x: str, channels: int, size: int = 7, sigma: float = 2.0) -> str:
    taps = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    kernel_HWIO = np.outer(taps, taps).astype(np.float32)[..., None, None].repeat(channels, -1)
    bias_O = np.zeros(channels, np.float32)
    return writer.conv(x, kernel_HWIO, bias_O, pad=size // 2, group=channels)


def _whiten(writer: Writer, fitted: Preprocess, x: str) -> str:
    """Adds ZCA for images of the fitted size, and `preprocess.whiten_any_size` for others."""
    assert fitted.mean_HWC is not None  # the recipe is gcn_zca
    height, width, channels = np.shape(fitted.mean_HWC)
    shape = writer.node('Shape', [x])
    start, end = writer.constant(np.array([2])), writer.constant(np.array([4]))
    size = writer.node('Slice', [shape, start, end])
    fits = writer.node('Equal', [size, writer.constant(np.array([height, width]))])
    both = writer.node('ReduceMin', [writer.node('Cast', [fits], to=INT32)], keepdims=0)
    same_size = writer.node('Cast', [both], to=BOOL)
    order = np.arange(height * width * channels).reshape(height, width, channels)
    order = order.transpose(2, 0, 1).reshape(-1)  # (C, H, W) from (H, W, C)
    mean_D = np.asarray(fitted.mean_HWC, np.float32).reshape(-1)
    whiten_DD = np.asarray(fitted.whiten_DD, np.float32)

    exact = Writer(writer)
    y = _global_contrast(exact, x, fitted.gcn_scale)
    y = exact.node('Flatten', [y], axis=1)
    y = exact.node('Sub', [y, exact.constant(mean_D[order])])
    y = exact.node('MatMul', [y, exact.constant(whiten_DD[order][:, order])])
    exact_out = exact.node('Reshape', [y, shape])

    near = Writer(writer)
    row, column = height // 2, width // 2
    kernel_HWIO = whiten_DD.reshape(2 * (height, width, channels))[:, :, :, row, column]
    kernel_HWIO = kernel_HWIO - kernel_HWIO.mean((0, 1, 2))
    mean_O = np.einsum('hwi,hwio->o', np.asarray(fitted.mean_HWC), kernel_HWIO)
    rms = fitted.gcn_scale / math.sqrt(math.prod((height, width, channels)))
    near_out = _slide(near, _unit_rms(near, x, rms), kernel_HWIO, -mean_O)
    return writer.node(
        'If', [same_size], then_branch=exact.branch(exact_out), else_branch=near.branch(near_out)
    )


def _unit_rms(writer: Writer, x: str, rms: float = 1.0) -> str:
    """Adds global contrast normalization to an RMS of `rms`, for images of any size."""
    shape = writer.node('Shape', [x])
    start, end = writer.constant(np.array([1])), writer.constant(np.array([4]))
    count = writer.node('ReduceProd', [writer.node('Slice', [shape, start, end])], keepdims=0)
    root = writer.node('Sqrt', [writer.node('Cast', [count], to=FLOAT)])
    scale = writer.node('Mul', [root, writer.constant(np.float32(rms))])
    return _global_contrast(writer, x, scale)


def _slide(
    writer: Writer, x: str, kernel_HWIO: np.ndarray, bias_O: np.ndarray | None = None
) -> str:
    """Adds a convolution that keeps the size of the images; the padding repeats edge pixels."""
    height, width, _, outputs = kernel_HWIO.shape
    row, column = height // 2, width // 2
    pads = [0, 0, row, column, 0, 0, height - 1 - row, width - 1 - column]
    x = writer.node('Pad', [x, writer.constant(np.array(pads))], mode='edge')
    bias_O = np.zeros(outputs) if bias_O is None else bias_O
    return writer.conv(x, kernel_HWIO.astype(np.float32), bias_O.astype(np.float32))
