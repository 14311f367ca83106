"""Winograd's minimal filtering for CPUs: 3x3 and 5x5 convolutions with fewer multiplications.

A row of m outputs of a convolution with r taps needs t = m + r - 1 products instead of m * r. The
inputs and the taps are coefficients of polynomials, which are multiplied by their values at t
points (Toom-Cook):

    y = A^T [(G w) * (B^T x)]

(Winograd 1980; Lavin and Gray, arXiv 1509.09308). In two dimensions, each matrix is applied to rows
and then to columns, and the products over channels become t * t matrix products. Supported are
square kernels, stride 1, same padding and float32.

Axes in addition to those of nin.py: T a point (one axis for rows, one for columns), N a tile of
m x m outputs, m an output within a tile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Outputs per tile and axis, by kernel size. More outputs save products but lose precision.
_OUTPUTS = {3: 2, 5: 4}
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity


def suits(x_BHWC: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: int) -> bool:
    """Whether `conv` supports a convolution and is faster than the direct form."""
    height, width, inputs, outputs = kernel_HWIO.shape
    return (
        height == width
        and height in _OUTPUTS
        and (stride, padding) == (1, height // 2)
        and min(inputs, outputs) >= 16
        and x_BHWC.dtype == jnp.float32
    )


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
    m = _OUTPUTS[len(kernel_HWIO)]
    at_mt, g_tr, _ = matrices(m, len(kernel_HWIO))
    x_TTBNNC, kernel_TTCO = _tiles(x_BHWC, len(kernel_HWIO)), _both(g_tr, kernel_HWIO)
    # Separate products: one batched product takes twice as long on XLA's CPU backend.
    y_TTBNNO = [
        [x @ k for x, k in zip(*row, strict=True)] for row in _columns(x_TTBNNC, kernel_TTCO)
    ]
    y_TBNmNO = lax.optimization_barrier([_mix(at_mt, column, axis=2) for column in y_TTBNNO])
    y_BNmNmO = _mix(at_mt, y_TBNmNO, axis=4)
    rows, cols = (-(-size // m) * m for size in (height, width))
    return y_BNmNmO.reshape(batch, rows, cols, -1)[:, :height, :width]


def kernel_gradient(x_BHWC: jax.Array, grad_BHWO: jax.Array, taps: int) -> jax.Array:
    """Returns the gradient of `conv` with respect to its kernel (taps, taps, in, out)."""
    m = _OUTPUTS[taps]
    at_mt, g_tr, _ = matrices(m, taps)
    batch, height, width, _ = grad_BHWO.shape
    over = [(0, -size % m) for size in (height, width)]
    grad_BHWO = jnp.pad(grad_BHWO, ((0, 0), *over, (0, 0)))
    rows = grad_BHWO.reshape(batch, -(-height // m), m, *grad_BHWO.shape[2:])
    grad_TBNWO = lax.optimization_barrier(_mix(at_mt.T, [rows[:, :, i] for i in range(m)], axis=0))
    cols = grad_TBNWO.reshape(*grad_TBNWO.shape[:3], -(-width // m), m, grad_BHWO.shape[-1])
    grad_TTBNNO = _mix(at_mt.T, [cols[:, :, :, :, i] for i in range(m)], axis=1)
    kernel_TTCO = [
        [jnp.einsum('bijc,bijo->co', x, g) for x, g in zip(*row, strict=True)]
        for row in _columns(_tiles(x_BHWC, taps), grad_TTBNNO)
    ]
    kernel_TrCO = lax.optimization_barrier([_mix(g_tr.T, column, axis=0) for column in kernel_TTCO])
    return _mix(g_tr.T, kernel_TrCO, axis=1)


def _tiles(x_BHWC: jax.Array, taps: int) -> jax.Array:
    """Returns B^T x B of the t x t inputs of every tile; adjacent tiles overlap by r - 1."""
    m = _OUTPUTS[taps]
    t, before = m + taps - 1, taps // 2
    b_tt = matrices(m, taps)[2]
    tiles = [-(-size // m) for size in x_BHWC.shape[1:3]]
    pads = [
        (before, n * m + taps - 1 - before - size)
        for n, size in zip(tiles, x_BHWC.shape[1:3], strict=True)
    ]
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
    spans = [slice(i, None) for i in range(t)]
    rows = [x_BHWC[:, s][:, : tiles[0] * m : m] for s in spans]
    # The barriers prevent XLA from recomputing the first pass for each result of the second.
    x_TBNWC = lax.optimization_barrier(_mix(b_tt, rows, axis=0))
    cols = [x_TBNWC[:, :, :, s][:, :, :, : tiles[1] * m : m] for s in spans]
    return _mix(b_tt, cols, axis=1)


def _columns(*arrays: jax.Array):
    """Yields, for each column of points, one list per array over the points of the rows."""
    for t in range(arrays[0].shape[1]):
        yield [[array[s, t] for s in range(len(array))] for array in arrays]


def _mix(matrix: np.ndarray, arrays: list[jax.Array], axis: int) -> jax.Array:
    """Multiplies a matrix with a list of arrays; stacks the results along a new axis.

    The sums are unrolled because most weights are 0, 1 or -1 and the arrays exceed the cache.
    """
    sums = []
    for row in matrix:
        terms = [
            array if weight == 1 else array * np.float32(weight)
            for weight, array in zip(row, arrays, strict=True)
            if weight
        ]
        sums.append(functools.reduce(jnp.add, terms))
    return jnp.stack(sums, axis)


def _both(matrix: np.ndarray, kernel: jax.Array) -> jax.Array:
    """Applies a matrix to the first two axes of a kernel."""
    half = lax.optimization_barrier(_mix(matrix, list(kernel), axis=0))
    return _mix(matrix, [half[:, i] for i in range(half.shape[1])], axis=1)
