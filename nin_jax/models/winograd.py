"""Winograd's minimal filtering for CPUs: 3x3 and 5x5 convolutions with fewer multiplications.

A row of m outputs of a convolution with r taps needs t = m + r - 1 products instead of m * r. The
inputs and the taps are coefficients of polynomials, which are multiplied by their values at t
points (Toom-Cook):

    y = A^T [(G w) * (B^T x)]

(Winograd 1980; Lavin and Gray, arXiv 1509.09308). In two dimensions, each matrix is applied to rows
and then to columns, and the products over channels become t batched products of t matrices,
one for each point of the columns. Supported are square kernels, stride 1, same padding and float32.

Axes in addition to those of nin.py: T a point (one axis for rows, one for columns), N a tile of
m x m outputs, m an output within a tile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Outputs per tile and axis, by kernel size. More outputs save products but lose precision.
_OUTPUTS = {3: (2, 4), 5: (4,)}
_SAVED = 0.25  # share of the products that a larger tile must save, as its transforms cost more
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity


def suits(x_BHWC: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: int) -> bool:
    """Whether `conv` supports a convolution and is faster than the direct form."""
    height, width, inputs, outputs = kernel_HWIO.shape
    return (
        height == width
        and height in _OUTPUTS
        and (stride, padding) == (1, height // 2)
        and min(inputs, outputs) >= 16  # with fewer, the direct form is faster
        and x_BHWC.dtype == jnp.float32
    )


def tile_outputs(height: int, width: int, taps: int) -> int:
    """Returns the number of outputs per tile and axis, for an image of this size."""
    small, *larger = _OUTPUTS[taps]
    most = (1 - _SAVED) * products(height, width, small, taps)
    return max([small, *(m for m in larger if products(height, width, m, taps) <= most)])


def products(height: int, width: int, outputs: int, taps: int) -> int:
    """Returns the multiply-adds of `conv` for one image and one pair of channels.

    Those of the transforms, which do not grow with the number of pairs, are not counted.
    """
    return -(-height // outputs) * -(-width // outputs) * (outputs + taps - 1) ** 2


@functools.cache
def matrices(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns A^T (m, t), G (t, r) and B^T (t, t); B^T is exact in binary floating point."""
    points = np.array(_POINTS[: outputs + taps - 2])
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])
    at_mt = np.vander(points, outputs, increasing=True).T
    g_tr = np.vander(points, taps, increasing=True) / scale[:, None]
    b_tt = [np.append(np.poly(rest)[::-1], 0.0) for rest in others] + [np.poly(points)[::-1]]
    at_mt = np.column_stack([at_mt, np.eye(outputs)[-1]])
    return at_mt, np.vstack([g_tr, np.eye(taps)[-1]]), np.array(b_tt)


def conv(x_BHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """Returns the convolution with same padding: (batch, height, width, channels out)."""
    batch, height, width, _ = x_BHWC.shape
    taps = len(kernel_HWIO)
    m = tile_outputs(height, width, taps)
    at_mt, g_tr, _ = matrices(m, taps)
    y_TTBNNO = [
        jnp.einsum('tbijc,tco->tbijo', x_TBNNC, kernel_TCO)
        for x_TBNNC, kernel_TCO in zip(
            _tiles(x_BHWC, m, taps), _both(g_tr, kernel_HWIO), strict=True
        )
    ]
    y_TBNmNO = lax.optimization_barrier(
        [jnp.stack(_mix(at_mt, _unstack(y_TBNNO)), axis=2) for y_TBNNO in y_TTBNNO]
    )
    y_BNmNmO = jnp.stack(_mix(at_mt, y_TBNmNO), axis=4)
    rows, cols = (-(-size // m) * m for size in (height, width))
    return y_BNmNmO.reshape(batch, rows, cols, -1)[:, :height, :width]


def kernel_gradient(x_BHWC: jax.Array, grad_BHWO: jax.Array, taps: int) -> jax.Array:
    """Returns the gradient of `conv` with respect to its kernel (taps, taps, in, out)."""
    _, height, width, _ = x_BHWC.shape
    m = tile_outputs(height, width, taps)
    at_mt, g_tr, _ = matrices(m, taps)
    over = [(0, -size % m) for size in grad_BHWO.shape[1:3]]
    grad_BHWO = jnp.pad(grad_BHWO, ((0, 0), *over, (0, 0)))
    rows = [_every(grad_BHWO, i, m, axis=1) for i in range(m)]
    grad_TBNWO = lax.optimization_barrier(jnp.stack(_mix(at_mt.T, rows)))
    grad_TTBNNO = _mix(at_mt.T, [_every(grad_TBNWO, i, m, axis=3) for i in range(m)])
    kernel_TTCO = [  # columns, then rows
        _over_tiles(x_TBNNC, grad_TBNNO)
        for x_TBNNC, grad_TBNNO in zip(_tiles(x_BHWC, m, taps), grad_TTBNNO, strict=True)
    ]
    return _both(g_tr.T, jnp.stack(kernel_TTCO))


def _tiles(x_BHWC: jax.Array, m: int, taps: int) -> list[jax.Array]:
    """Returns B^T x B of the t x t inputs of every tile; adjacent tiles overlap by r - 1.

    One array (T, B, N, N, C) over the points of the rows for each point of the columns: a batched
    product of one such array needs no copies of it.
    """
    t, before = m + taps - 1, taps // 2
    b_tt = matrices(m, taps)[2]
    tiles = [-(-size // m) for size in x_BHWC.shape[1:3]]
    pads = [
        (before, n * m + taps - 1 - before - size)
        for n, size in zip(tiles, x_BHWC.shape[1:3], strict=True)
    ]
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
    rows = [_every(x_BHWC, i, m, axis=1, count=tiles[0]) for i in range(t)]
    # The barrier prevents XLA from recomputing the first pass for each result of the second.
    x_TBNWC = lax.optimization_barrier(jnp.stack(_mix(b_tt, rows)))
    return _mix(b_tt, [_every(x_TBNWC, i, m, axis=3, count=tiles[1]) for i in range(t)])


def _both(matrix: np.ndarray, kernel: jax.Array) -> jax.Array:
    """Applies a matrix to the first two axes of a kernel, and exchanges them."""
    weights = jnp.asarray(matrix, kernel.dtype)
    half = lax.optimization_barrier(jnp.einsum('ti,ijco->tjco', weights, kernel))
    return jnp.einsum('sj,tjco->stco', weights, half)


def _mix(matrix: np.ndarray, arrays: list[jax.Array]) -> list[jax.Array]:
    """Multiplies a matrix with a list of arrays.

    The sums are unrolled because most weights are 0, 1 or -1 and the arrays exceed the cache.
    """
    sums = []
    for row in matrix:
        terms = [
            array if weight == 1 else lax.mul(array, np.float32(weight))
            for weight, array in zip(row, arrays, strict=True)
            if weight
        ]
        sums.append(functools.reduce(lax.add, terms))
    return sums


def _over_tiles(x_TBNNC: jax.Array, grad_TBNNO: jax.Array) -> jax.Array:
    """Returns x^T @ grad at every point. As an einsum, XLA would transpose x in memory first."""
    x_TNC, grad_TNO = (a.reshape(len(a), -1, a.shape[-1]) for a in (x_TBNNC, grad_TBNNO))
    return lax.dot_general(x_TNC, grad_TNO, (((1,), (1,)), ((0,), (0,))))


def _every(x: jax.Array, first: int, step: int, axis: int, count: int | None = None) -> jax.Array:
    """Returns `count` elements of an axis, `step` apart, from `first` on."""
    end = x.shape[axis] if count is None else first + (count - 1) * step + 1
    return lax.slice_in_dim(x, first, end, step, axis)


def _unstack(x: jax.Array) -> list[jax.Array]:
    return [lax.index_in_dim(x, i, keepdims=False) for i in range(len(x))]
