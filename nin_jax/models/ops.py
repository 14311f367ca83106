"""Convolution and pooling for Network In Network, with fast training on CPUs.

On TPUs and GPUs, convolutions are XLA's operations. Max pooling is XLA's on TPUs only, because its
gradient is a scatter on GPUs. Average pooling is a sum of shifted images everywhere. XLA's CPU
backend is slow for three operations: the kernel gradient of a convolution (especially inside
`lax.scan`), the 1x1 convolution, and the gradient of max pooling. On CPUs they are computed as
matrix products and elementwise selections. 3x3 and 5x5 convolutions between many channels use
Winograd's algorithm (`winograd.py`), unless `precision` is set. `benchmarks/NOTES.md` has the
measurements. The results agree with XLA's up to 1e-6 of the largest value, 1e-5 with Winograd's
algorithm. On CPUs, bfloat16 inputs are computed in float32 and rounded once at the end, because
XLA's bfloat16 products are slower.

`lax.platform_dependent` selects the implementation for the platform that a program is lowered for.
So a program that is compiled on a CPU for a TPU, or exported for several platforms, is correct.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nin_jax.models import winograd

_AXES = ('NHWC', 'HWIO', 'NHWC')

# The patches of one chunk of images should stay in the last-level cache (in bytes).
_CHUNK_BYTES = 8 * 2**20


def _choose(*arrays: jax.Array, cpu: Callable, default: Callable) -> Any:
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


# ------------------------------------------------------------------------------ convolution


def conv2d(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """2-D convolution (cross-correlation) without bias, with symmetric zero padding.

    Supports reverse-mode differentiation.

    Args:
      x_BHWC: images, float32 or bfloat16.
      kernel_HWIO: kernel (height, width, channels in, channels out), of the same dtype.
      stride: stride in both directions.
      padding: number of zeros on each side.
      precision: see `jax.lax.Precision`; any value but None disables Winograd's algorithm.

    Returns:
      The convolution (B, H out, W out, channels out), in the inputs' dtype.
    """
    return _conv(x_BHWC, kernel_HWIO, stride, padding, precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    settings = dict(stride=stride, padding=padding, precision=precision)
    return _choose(
        x_BHWC,
        kernel_HWIO,
        cpu=_in_float32(_cpu_conv, settings),
        default=partial(_lax_conv, **settings),
    )


def _conv_forward(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> tuple[jax.Array, tuple]:
    if (*kernel_HWIO.shape[:2], stride, padding) == (1, 1, 1, 0):
        # Otherwise XLA recomputes the input, transposed and slowly, for the kernel gradient.
        x_BHWC = _choose(x_BHWC, cpu=lax.optimization_barrier, default=lambda x: x)
    return _conv(x_BHWC, kernel_HWIO, stride, padding, precision), (x_BHWC, kernel_HWIO)


def _conv_backward(
    stride: int, padding: int, precision: lax.PrecisionLike, saved: tuple, grad_BHWO: jax.Array
) -> tuple[jax.Array, ...]:
    settings = dict(stride=stride, padding=padding, precision=precision)

    def lax_gradient(
        x_BHWC: jax.Array, kernel_HWIO: jax.Array, grad_BHWO: jax.Array, *, argument: int
    ) -> jax.Array:
        conv = partial(_lax_conv, **settings)
        return jax.vjp(conv, x_BHWC, kernel_HWIO)[1](grad_BHWO)[argument]

    # Two separate choices, so that XLA can eliminate the unused input gradient of a first layer.
    return tuple(
        _choose(
            *saved,
            grad_BHWO,
            cpu=_in_float32(cpu, settings),
            default=partial(lax_gradient, argument=argument),
        )
        for argument, cpu in enumerate((_input_gradient, _kernel_gradient))
    )


_conv.defvjp(_conv_forward, _conv_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def mixed_conv1x1(x_BHWC: jax.Array, kernel_HWIO: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1x1 convolution of operands rounded to `dtype`, with products added up in float32.

    Both gradients are computed in the same way, from the output's gradient rounded to `dtype`.
    Processors with instructions for bfloat16 multiply faster than in float32, and add as exactly.

    Args:
      x_BHWC: images, float32.
      kernel_HWIO: kernel (1, 1, channels in, channels out), float32.
      dtype: of the operands, such as bfloat16.

    Returns:
      The convolution (B, H, W, channels out), float32.
    """
    return _mixed_forward(x_BHWC, kernel_HWIO, dtype)[0]


def _mixed_forward(
    x_BHWC: jax.Array, kernel_HWIO: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x_BHWC, kernel_IO = x_BHWC.astype(dtype), kernel_HWIO[0, 0].astype(dtype)
    return _product(x_BHWC, kernel_IO, ((3,), (0,))), (x_BHWC, kernel_IO)


def _mixed_backward(
    dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], grad_BHWO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BHWC, kernel_IO = saved
    grad_BHWO = grad_BHWO.astype(dtype)
    kernel_grad_HWIO = _kernel_gradient_1x1(x_BHWC, grad_BHWO, preferred_element_type=jnp.float32)
    return _product(grad_BHWO, kernel_IO, ((3,), (1,))), kernel_grad_HWIO


def _product(a: jax.Array, b: jax.Array, contracted: tuple) -> jax.Array:
    return lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


mixed_conv1x1.defvjp(_mixed_forward, _mixed_backward)


def _in_float32(function: Callable[..., jax.Array], settings: dict) -> Callable[..., jax.Array]:
    """Wraps `function` to compute in float32 (or wider) and return the inputs' dtype."""

    def computed(*arrays: jax.Array) -> jax.Array:
        dtype = arrays[0].dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        return function(*(array.astype(wide) for array in arrays), **settings).astype(dtype)

    return computed


def _cpu_conv(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    *,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    if (*kernel_HWIO.shape[:2], stride, padding) == (1, 1, 1, 0):
        return jnp.einsum('bhwi,io->bhwo', x_BHWC, kernel_HWIO[0, 0], precision=precision)
    if precision is None and winograd.suits(x_BHWC, kernel_HWIO, stride, padding):
        return winograd.conv(x_BHWC, kernel_HWIO)
    return _lax_conv(x_BHWC, kernel_HWIO, stride, padding, precision)


def _lax_conv(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    return lax.conv_general_dilated(
        x_BHWC,
        kernel_HWIO,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=_AXES,
        precision=precision,
    )


def _input_gradient(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    grad_BHWO: jax.Array,
    *,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    if stride != 1:
        conv = partial(_lax_conv, stride=stride, padding=padding, precision=precision)
        _, transpose = jax.vjp(lambda x: conv(x, kernel_HWIO), x_BHWC)
        return transpose(grad_BHWO)[0]
    # A forward convolution with the flipped kernel. The barrier prevents XLA from folding the flip
    # into its slow gradient convolution.
    flipped_HWOI = lax.optimization_barrier(kernel_HWIO[::-1, ::-1].swapaxes(2, 3))
    pads = [size - 1 - padding for size in kernel_HWIO.shape[:2]]
    if pads[0] == pads[1]:
        return _cpu_conv(grad_BHWO, flipped_HWOI, stride=1, padding=pads[0], precision=precision)
    return lax.conv_general_dilated(
        grad_BHWO,
        flipped_HWOI,
        (1, 1),
        [(pad, pad) for pad in pads],
        dimension_numbers=_AXES,
        precision=precision,
    )


def _kernel_gradient(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    grad_BHWO: jax.Array,
    *,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    if (*kernel_HWIO.shape[:2], stride, padding) == (1, 1, 1, 0):
        return _kernel_gradient_1x1(x_BHWC, grad_BHWO, precision=precision)
    if precision is None and winograd.suits(x_BHWC, kernel_HWIO, stride, padding):
        return winograd.kernel_gradient(x_BHWC, grad_BHWO, len(kernel_HWIO))
    return _kernel_gradient_by_patches(x_BHWC, kernel_HWIO, grad_BHWO, stride, padding, precision)


def _kernel_gradient_1x1(x_BHWC: jax.Array, grad_BHWO: jax.Array, **settings: Any) -> jax.Array:
    # In two dimensions, because XLA would transpose a 4-D input in memory first.
    x_NI, grad_NO = (array.reshape(-1, array.shape[-1]) for array in (x_BHWC, grad_BHWO))
    return lax.dot_general(x_NI, grad_NO, (((0,), (0,)), ((), ())), **settings)[None, None]


def _kernel_gradient_by_patches(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    grad_BHWO: jax.Array,
    stride: int,
    padding: int,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Computes patches^T @ output gradient, summed over chunks of images."""
    kernel_size = kernel_HWIO.shape[:2]
    batch, out_height, out_width, features = grad_BHWO.shape
    columns = int(np.prod(kernel_HWIO.shape[:3]))
    image_bytes = out_height * out_width * columns * x_BHWC.dtype.itemsize
    chunk = max(min(batch, _CHUNK_BYTES // image_bytes), 1)
    while batch % chunk:
        chunk -= 1

    def add_chunk(
        total_KO: jax.Array, images: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        x_bHWC, grad_bHWO = images
        patches_NK = _patches(x_bHWC, kernel_size, stride, padding).reshape(-1, columns)
        return total_KO + jnp.einsum(
            'nk,no->ko',
            patches_NK,
            grad_bHWO.reshape(-1, features),
            precision=precision,
        ), None

    chunks = jax.tree.map(
        lambda array: array.reshape(-1, chunk, *array.shape[1:]), (x_BHWC, grad_BHWO)
    )
    total_KO = jnp.zeros((columns, features), x_BHWC.dtype)
    total_KO, _ = lax.scan(add_chunk, total_KO, chunks)
    return total_KO.reshape(kernel_HWIO.shape)


def _patches(
    x_BHWC: jax.Array, kernel_size: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """Returns the patch of every output pixel: (B, H out, W out, kernel H * kernel W * C)."""
    pads = (padding, padding)
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), pads, pads, (0, 0)))
    rows, cols = (
        (size - kernel) // stride + 1
        for size, kernel in zip(x_BHWC.shape[1:3], kernel_size, strict=True)
    )
    return jnp.concatenate(
        [
            _strided(x_BHWC, dy, dx, rows, cols, stride)
            for dy in range(kernel_size[0])
            for dx in range(kernel_size[1])
        ],
        axis=-1,
    )


def _strided(x_BHWC: jax.Array, dy: int, dx: int, rows: int, cols: int, stride: int) -> jax.Array:
    """Returns every `stride`-th pixel, starting at (dy, dx): (B, rows, cols, C)."""
    return x_BHWC[
        :, dy : dy + (rows - 1) * stride + 1 : stride, dx : dx + (cols - 1) * stride + 1 : stride
    ]


# ---------------------------------------------------------------------------------- pooling


def max_pool(x_BHWC: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
    """Max pooling with the output size of Caffe and cuda-convnet, ceil((H - window) / stride) + 1.

    Windows that extend beyond the bottom or right border use only the pixels inside the image
    (cuda-convnet's layer.py `outputsX`; Caffe's pooling_layer.cpp). If several pixels have the
    maximum, the first one in row-major order receives the gradient, as in Caffe and PyTorch.
    """
    return _max_pool(x_BHWC, window, stride)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    return _max_pool_forward(x_BHWC, window, stride)[0]


def _max_pool_forward(x_BHWC: jax.Array, window: int, stride: int) -> tuple[jax.Array, tuple]:
    """Returns the maxima and the residuals: the input and, on CPUs, the positions of the maxima."""

    def xla(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        y_BHWC = _xla_max_pool(x_BHWC, window, stride)
        return y_BHWC, jnp.zeros(y_BHWC.shape, _position_dtype(window))

    dense = partial(_max_and_position, window=window, stride=stride)
    y_BHWC, position_BHWC = lax.platform_dependent(x_BHWC, cpu=dense, cuda=dense, default=xla)
    return y_BHWC, (x_BHWC, position_BHWC)


def _max_pool_backward(
    window: int, stride: int, saved: tuple, grad_BHWC: jax.Array
) -> tuple[jax.Array]:
    def dense(x_BHWC: jax.Array, position_BHWC: jax.Array, grad_BHWC: jax.Array) -> jax.Array:
        grads = [jnp.where(position_BHWC == i, grad_BHWC, 0) for i in range(window * window)]
        return _spread(grads, x_BHWC.shape[1:3], window, stride)

    def xla(x_BHWC: jax.Array, position_BHWC: jax.Array, grad_BHWC: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _xla_max_pool(x, window, stride), x_BHWC)[1](grad_BHWC)[0]

    return (lax.platform_dependent(*saved, grad_BHWC, cpu=dense, cuda=dense, default=xla),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _xla_max_pool(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    return lax.reduce_window(
        x_BHWC,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        _overhang(x_BHWC, window, stride),
    )


def _max_and_position(x_BHWC: jax.Array, window: int, stride: int) -> tuple[jax.Array, jax.Array]:
    pixels = _window_pixels(x_BHWC, -jnp.inf, window, stride)
    dtype = _position_dtype(window)
    best, position = pixels[0], jnp.zeros(pixels[0].shape, dtype)
    for index, pixel in enumerate(pixels[1:], 1):
        position = jnp.where(pixel > best, dtype.type(index), position)
        best = jnp.maximum(best, pixel)  # propagates NaN, unlike `where`
    return best, position


def _position_dtype(window: int) -> np.dtype:
    return np.min_scalar_type(window * window)


def avg_pool(x_BHWC: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
    """Average pooling over the windows of `max_pool`, over the pixels inside the image only."""
    pixels = []  # number of pixels inside the image, for each window along one axis
    for size in x_BHWC.shape[1:3]:
        starts = np.arange(_out_size(size, window, stride)) * stride
        pixels.append(np.minimum(starts + window, size) - starts)
    share_HW1 = (1 / np.outer(*pixels))[..., None].astype(x_BHWC.dtype)
    return jnp.asarray(sum(_window_pixels(x_BHWC, 0, window, stride))) * share_HW1


def _out_size(size: int, window: int, stride: int) -> int:
    ceil_mode = max(-(-(size - window) // stride), 0) + 1
    return min(ceil_mode, (size - 1) // stride + 1)  # every window must start inside the image


def _overhang(x_BHWC: jax.Array, window: int, stride: int) -> list[tuple[int, int]]:
    """Returns the padding that completes the last window of each axis (bottom and right)."""
    return [
        (0, 0),
        *(
            (0, max((_out_size(size, window, stride) - 1) * stride + window - size, 0))
            for size in x_BHWC.shape[1:3]
        ),
        (0, 0),
    ]


def _window_pixels(x_BHWC: jax.Array, fill: float, window: int, stride: int) -> list[jax.Array]:
    """Returns the pixels of each window as `window**2` arrays of the output's shape, row-major."""
    rows, cols = (_out_size(size, window, stride) for size in x_BHWC.shape[1:3])
    x_BHWC = jnp.pad(x_BHWC, _overhang(x_BHWC, window, stride), constant_values=fill)
    return [
        _strided(x_BHWC, dy, dx, rows, cols, stride) for dy in range(window) for dx in range(window)
    ]


def _spread(
    pixel_grads: list[jax.Array], image_size: tuple[int, ...], window: int, stride: int
) -> jax.Array:
    """Transpose of `_window_pixels`: adds each pixel's gradient at the pixel's position."""
    rows = [
        _interleave(pixel_grads[dy * window : (dy + 1) * window], 2, image_size[1], stride)
        for dy in range(window)
    ]
    return _interleave(rows, 1, image_size[0], stride)


def _interleave(parts: list[jax.Array], axis: int, size: int, stride: int) -> jax.Array:
    """Adds parts[d] at positions d, d + stride, d + 2 * stride, ... of an axis.

    The positions with residue r modulo `stride` receive parts r, r + stride, ..., each shifted by
    one from the previous. These are dense sums, which are faster than XLA's scatter.
    """

    def pad(array: jax.Array, before: int, after: int) -> jax.Array:
        return lax.pad(
            array,
            jnp.zeros((), array.dtype),
            [(before, after, 0) if i == axis else (0, 0, 0) for i in range(4)],
        )

    most = (len(parts) - 1) // stride
    residues = [
        sum(pad(part, shift, most - shift) for shift, part in enumerate(parts[residue::stride]))
        for residue in range(min(stride, len(parts)))
    ]
    residues += [jnp.zeros_like(residues[0])] * (stride - len(residues))
    whole = jnp.stack(residues, axis + 1)
    whole = whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
    return pad(whole, 0, size - whole.shape[axis])
