"""Normalization, bias and ReLU: the forms for GPUs and TPUs against automatic differentiation."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nin_jax.models import fused, ops


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def gradients(layer, *arrays):
    y, transpose = jax.vjp(layer, *arrays)
    return y, *transpose(normal(*y.shape, seed=7, dtype=y.dtype))


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('form', [fused._bias_relu, fused._tpu_bias_relu])
def test_bias_and_relu_have_the_bits_of_the_plain_form(form, relu):
    y_BHWC, bias_C = normal(4, 6, 5, 8), normal(8, seed=1)
    ours = gradients(lambda y, b: form(relu, y, b), y_BHWC, bias_C)
    plain = gradients(lambda y, b: fused._plain(y, b, relu=relu), y_BHWC, bias_C)
    for a, b in zip(ours[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(ours[2], plain[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('form', [fused._bias_relu, fused._tpu_bias_relu])
def test_relu_of_nothing_and_of_nan_is_that_of_the_plain_form(form):
    # 1.2e-38 is the least positive number of either dtype that is not subnormal.
    y_BHWC = jnp.asarray([[[[0.0, -0.0, jnp.nan, -1.0, 1.2e-38, jnp.inf]]]])
    bias_C = jnp.zeros(6)
    ours = gradients(lambda y, b: form(True, y, b), y_BHWC, bias_C)
    plain = gradients(lambda y, b: fused._plain(y, b, relu=True), y_BHWC, bias_C)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('relu', [True, False])
def test_tpus_have_the_bits_of_the_plain_form_in_bfloat16(relu):
    y_BHWC, bias_C = normal(16, 16, 16, 4, dtype=jnp.bfloat16), normal(4, seed=1)
    ours = gradients(lambda y, b: fused._tpu_bias_relu(relu, y, b), y_BHWC, bias_C)
    plain = gradients(lambda y, b: fused._plain(y, b, relu=relu), y_BHWC, bias_C)
    for a, b in zip(ours[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(ours[2], plain[2], rtol=1e-5, atol=1e-5)


def test_bias_in_bfloat16_rounds_and_its_gradient_does_not():
    y_BHWC, bias_C = normal(16, 16, 16, 4, dtype=jnp.bfloat16), normal(4, seed=1)
    y, y_grad, bias_grad = gradients(lambda y, b: fused._bias_relu(False, y, b), y_BHWC, bias_C)
    assert (y.dtype, y_grad.dtype, bias_grad.dtype) == ('bfloat16', 'bfloat16', 'float32')
    np.testing.assert_allclose(
        y.astype(np.float32), fused._plain(y_BHWC, bias_C).astype(np.float32), rtol=0, atol=0.05
    )
    exact = np.sum(np.asarray(y_grad, np.float64), axis=(0, 1, 2))
    np.testing.assert_allclose(bias_grad, exact, rtol=1e-4, atol=1e-3)
    rounded = jnp.sum(y_grad, axis=(0, 1, 2))  # the sum that this avoids
    assert np.abs(np.asarray(rounded, np.float64) - exact).max() > 0.01


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 2e-2)])
def test_batch_normalization_agrees_with_flax(relu, dtype, tolerance):
    y_BHWC = 3 + 2 * normal(8, 6, 5, 8)
    bias_C = normal(8, seed=1)

    def flax(y, bias):
        norm = batch_norm()
        return fused._plain(norm(y), bias, jnp.float32, relu)

    def ours(y, bias):
        return fused._normalize(1e-5, relu, y.astype(dtype), bias)[0].astype(jnp.float32)

    rounded = y_BHWC.astype(dtype).astype(jnp.float32)
    for a, b in zip(
        gradients(ours, rounded, bias_C), gradients(flax, rounded, bias_C), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


def batch_norm() -> nnx.BatchNorm:
    return nnx.BatchNorm(8, momentum=0.9, use_bias=False, use_scale=False, rngs=nnx.Rngs(0))


def test_training_updates_the_running_averages_and_evaluation_uses_them():
    y_BHWC, bias_C = 3 + 2 * normal(8, 6, 5, 8), normal(8, seed=1)
    norm, flax = batch_norm(), batch_norm()
    for _ in range(2):
        fused.normalize_bias_relu(y_BHWC, norm, bias_C, training=True, relu=True)
        flax(y_BHWC, use_running_average=False)
    for ours, theirs in ((norm.mean, flax.mean), (norm.var, flax.var)):
        np.testing.assert_array_equal(ours[...], theirs[...])
    scored = fused.normalize_bias_relu(y_BHWC, norm, bias_C, training=False, relu=False)
    np.testing.assert_array_equal(scored, flax(y_BHWC, use_running_average=True) + bias_C)
    np.testing.assert_array_equal(norm.mean[...], flax.mean[...])


def operations(function, platform, *arrays) -> collections.Counter:
    """Counts the operations of the gradient, as lowered for a platform."""

    def loss(*arrays):
        return jnp.sum(function(*arrays) ** 2)

    traced = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays))))).trace(*arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    counts = collections.Counter(re.findall(r'stablehlo\.(\w+)', text))
    # XLA removes a case with one branch, and the constants in place of other platforms' residuals.
    removed = ('case', 'return', 'constant', 'broadcast_in_dim')
    return counts - collections.Counter(dict.fromkeys(removed, 10**9))


@pytest.mark.parametrize(
    ('platform', 'normalized', 'ours'),
    [
        ('cuda', False, True),
        ('cuda', True, True),
        ('tpu', False, True),
        ('tpu', True, False),
        ('cpu', False, False),
        ('cpu', True, False),
    ],
)
def test_forms_by_platform(platform, normalized, ours):
    def layer(y, bias):
        norm = batch_norm() if normalized else None
        return fused.normalize_bias_relu(y, norm, bias, training=True, relu=True)

    def plain(y, bias):
        return fused._plain(batch_norm()(y) if normalized else y, bias, relu=True)

    arrays = normal(2, 4, 4, 8), normal(8)
    same = operations(layer, platform, *arrays) == operations(plain, platform, *arrays)
    assert same != ours


@pytest.mark.parametrize(('platform', 'scatters'), [('cuda', 0), ('cpu', 0), ('tpu', 1)])
def test_max_pool_scatters_on_tpus_alone(platform, scatters):
    found = operations(ops.max_pool, platform, normal(2, 8, 8, 4))
    assert found['select_and_scatter'] == scatters
