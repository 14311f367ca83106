"""Batch normalization, bias and ReLU of a layer, with less work on NVIDIA GPUs and TPUs.

On a GPU, memory bandwidth bounds the network. XLA's derivatives of these operations keep values
that prevent their fusion into the convolution, and read the activations more often than necessary.
The forms for GPUs have their own gradients, which agree with automatic differentiation:

* bias and ReLU in float32: equal bits, except for the order of the bias gradient's sum;
* in bfloat16: the bias is rounded to bfloat16 before it is added, instead of the sum only;
* batch normalization: up to 1e-5 of the largest value.

On a TPU, XLA packs which activations are positive into bits, for the gradient of the ReLU, and
unpacks them, both slowly. The form for TPUs keeps a bfloat16 copy of the output instead. At the
default precision, the next convolution reads the same copy. Outputs and gradients have equal bits,
except for the order of the bias gradient's sum.

On all other platforms, the programs are exactly those of the plain expressions.
`lax.platform_dependent` chooses for the platform that a program is lowered for.
`benchmarks/NOTES.md` has the memory traffic and the expected cycles of the forms.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def normalize_bias_relu(
    y_BHWC: jax.Array,
    norm: nnx.BatchNorm | None,
    bias_C: jax.Array,
    *,
    training: bool,
    relu: bool,
) -> jax.Array:
    """Applies batch normalization, if any, then adds a bias, then applies a ReLU, if any.

    Args:
      y_BHWC: a convolution, float32 or bfloat16.
      norm: batch normalization without scale and bias. In training, its running averages are
        updated.
      bias_C: float32.
      training: whether to normalize by the statistics of the batch or by the running averages.
      relu: whether to apply a ReLU.

    Returns:
      An array of the shape and dtype of `y_BHWC`.
    """
    if norm is None:
        return lax.platform_dependent(
            y_BHWC,
            bias_C,
            cuda=partial(_bias_relu, relu),
            tpu=partial(_tpu_bias_relu, relu),
            default=partial(_plain, relu=relu),
        )
    if training:
        return _batch_norm(y_BHWC, norm, bias_C, relu)
    normal_BHWC = norm(y_BHWC.astype(jnp.float32), use_running_average=True)
    return _plain(normal_BHWC, bias_C, y_BHWC.dtype, relu)


def _plain(
    y_BHWC: jax.Array, bias_C: jax.Array, dtype: jnp.dtype | None = None, relu: bool = False
) -> jax.Array:
    # In float32, because the gradient of the bias sums over too many positions for bfloat16.
    y_BHWC = (y_BHWC + bias_C).astype(dtype or y_BHWC.dtype)
    return nnx.relu(y_BHWC) if relu else y_BHWC


# ---- bias and ReLU --------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bias_relu(relu: bool, y_BHWC: jax.Array, bias_C: jax.Array) -> jax.Array:
    y_BHWC = y_BHWC + bias_C.astype(y_BHWC.dtype)
    return jnp.maximum(y_BHWC, 0) if relu else y_BHWC


def _bias_relu_forward(
    relu: bool, y_BHWC: jax.Array, bias_C: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    y_BHWC = _bias_relu(relu, y_BHWC, bias_C)
    if not relu:
        return y_BHWC, None
    # Without the barrier, XLA simplifies max(y, 0) > 0 to y > 0. This keeps y alive, so that cuDNN
    # cannot apply the ReLU within the convolution.
    y_BHWC = lax.optimization_barrier(y_BHWC)
    return y_BHWC, y_BHWC


def _bias_relu_backward(
    relu: bool, y_BHWC: jax.Array | None, grad_BHWC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if y_BHWC is not None:
        grad_BHWC = jnp.where(y_BHWC > 0, grad_BHWC, 0)
    return grad_BHWC, jnp.sum(grad_BHWC, axis=(0, 1, 2), dtype=jnp.float32)


_bias_relu.defvjp(_bias_relu_forward, _bias_relu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tpu_bias_relu(relu: bool, y_BHWC: jax.Array, bias_C: jax.Array) -> jax.Array:
    return _plain(y_BHWC, bias_C, relu=relu)


def _tpu_bias_relu_forward(
    relu: bool, y_BHWC: jax.Array, bias_C: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    y_BHWC = _plain(y_BHWC, bias_C, relu=relu)
    # bfloat16 has the exponents of float32, so it has the same positive values. Without the
    # barrier, XLA packs the comparison with zero into bits.
    return y_BHWC, lax.optimization_barrier(y_BHWC.astype(jnp.bfloat16)) if relu else None


_tpu_bias_relu.defvjp(_tpu_bias_relu_forward, _bias_relu_backward)


# ---- batch normalization, bias and ReLU -----------------------------------------------------


def _batch_norm(y_BHWC: jax.Array, norm: nnx.BatchNorm, bias_C: jax.Array, relu: bool) -> jax.Array:
    """Normalizes by the statistics of the batch and updates the running averages of `norm`."""
    graph, averages = nnx.split(norm)

    def plain(y_BHWC: jax.Array, bias_C: jax.Array, averages: nnx.State) -> tuple:
        norm = nnx.merge(graph, averages)
        normal_BHWC = norm(y_BHWC.astype(jnp.float32), use_running_average=False)
        return _plain(normal_BHWC, bias_C, y_BHWC.dtype, relu), nnx.state(norm)

    def closed_form(y_BHWC: jax.Array, bias_C: jax.Array, averages: nnx.State) -> tuple:
        normalize: Any = partial(_normalize, norm.epsilon, relu)
        y_BHWC, mean_C, var_C = normalize(y_BHWC, bias_C)
        new = nnx.merge(graph, averages)
        for average, value_C in ((new.mean, mean_C), (new.var, var_C)):
            average[...] = norm.momentum * average[...] + (1 - norm.momentum) * value_C
        return y_BHWC, nnx.state(new)

    y_BHWC, averages = lax.platform_dependent(
        y_BHWC, bias_C, averages, cuda=closed_form, default=plain
    )
    nnx.update(norm, averages)
    return y_BHWC


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(
    epsilon: float, relu: bool, y_BHWC: jax.Array, bias_C: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the output, and the batch's mean_C and var_C, which pass no gradient."""
    return _normalize_forward(epsilon, relu, y_BHWC, bias_C)[0]


def _normalize_forward(
    epsilon: float, relu: bool, y_BHWC: jax.Array, bias_C: jax.Array
) -> tuple[tuple, tuple]:
    wide_BHWC = y_BHWC.astype(jnp.float32)
    mean_C, square_C = (jnp.mean(x, axis=(0, 1, 2)) for x in (wide_BHWC, wide_BHWC * wide_BHWC))
    var_C = jnp.maximum(square_C - mean_C * mean_C, 0)
    scale_C = lax.rsqrt(var_C + epsilon)
    out_BHWC = (wide_BHWC - mean_C) * scale_C + bias_C
    out_BHWC = jnp.maximum(out_BHWC, 0) if relu else out_BHWC
    saved = (y_BHWC, mean_C, scale_C, bias_C)
    return (out_BHWC.astype(y_BHWC.dtype), mean_C, var_C), saved


def _normalize_backward(
    epsilon: float, relu: bool, saved: tuple, grads: tuple
) -> tuple[jax.Array, jax.Array]:
    y_BHWC, mean_C, scale_C, bias_C = saved
    normal_BHWC = (y_BHWC.astype(jnp.float32) - mean_C) * scale_C
    grad_BHWC = grads[0].astype(jnp.float32)
    if relu:
        grad_BHWC = jnp.where(normal_BHWC + bias_C > 0, grad_BHWC, 0)
    bias_grad_C = jnp.sum(grad_BHWC, axis=(0, 1, 2))
    along_C = jnp.sum(grad_BHWC * normal_BHWC, axis=(0, 1, 2))
    count = y_BHWC.size // y_BHWC.shape[-1]
    y_grad_BHWC = scale_C * (grad_BHWC - (bias_grad_C + normal_BHWC * along_C) / count)
    return y_grad_BHWC.astype(y_BHWC.dtype), bias_grad_C


_normalize.defvjp(_normalize_forward, _normalize_backward)
