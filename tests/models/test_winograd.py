"""Winograd's convolutions against the definition, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nin_jax.models import ops, winograd

# Largest error beside the largest value, by outputs per tile and axis.
TOLERANCE = {2: 2e-6, 4: 4e-5}


@pytest.mark.parametrize(('outputs', 'taps'), [(2, 3), (4, 5), (4, 3), (2, 5)])
def test_a_tile_of_one_dimension(outputs, taps):
    at_mt, g_tr, b_tt = winograd.matrices(outputs, taps)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=outputs + taps - 1), rng.normal(size=taps)
    expected = [x[i : i + taps] @ w for i in range(outputs)]
    np.testing.assert_allclose(at_mt @ ((g_tr @ w) * (b_tt @ x)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('taps', [3, 5])
@pytest.mark.parametrize(
    ('height', 'width'),
    [
        (7, 14),
        *(pytest.param(*size, marks=pytest.mark.heavy) for size in ((16, 16), (9, 3), (1, 2))),
    ],
)
def test_conv_and_gradients(taps, height, width):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, height, width, 17))
    kernel, grad = rng.normal(size=(taps, taps, 17, 20)), rng.normal(size=(3, height, width, 20))
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, grad)]
    assert winograd.suits(arrays[0], arrays[1], 1, taps // 2)

    def value_and_gradients(conv, x, kernel, grad):
        y, transpose = jax.vjp(conv, x, kernel)
        return y, *transpose(grad)

    ours = jax.jit(partial(value_and_gradients, partial(ops.conv2d, padding=taps // 2)))(*arrays)
    with jax.enable_x64(True):
        direct = partial(
            lax.conv_general_dilated,
            window_strides=(1, 1),
            padding='SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        expected = value_and_gradients(direct, *(jnp.asarray(a) for a in (x, kernel, grad)))
        expected = [np.asarray(array) for array in expected]
    for mine, exact in zip(ours, expected, strict=True):
        error = np.abs(mine - exact).max() / np.abs(exact).max()
        assert error < TOLERANCE[winograd.tile_outputs(height, width, taps)]


def test_a_larger_tile_is_used_where_it_saves_a_quarter_of_the_products():
    """8x8: 256 or 144; 10x10: 400 or 324; 6x6: 144 or 144."""
    assert [winograd.products(size, size, 2, 3) for size in (8, 10, 6)] == [256, 400, 144]
    assert [winograd.products(size, size, 4, 3) for size in (8, 10, 6)] == [144, 324, 144]
    assert [winograd.tile_outputs(size, size, 3) for size in (8, 10, 6)] == [4, 2, 2]
    assert {winograd.tile_outputs(size, size, 5) for size in range(1, 33)} == {4}


def test_only_where_it_suits():
    x = jnp.zeros((1, 8, 8, 16))
    kernel = jnp.zeros((5, 5, 16, 16))
    assert winograd.suits(x, kernel, 1, 2)
    assert not winograd.suits(x, kernel, 2, 2)  # stride
    assert not winograd.suits(x, kernel, 1, 0)  # padding
    assert not winograd.suits(x, kernel[:3], 1, 1)  # not square
    assert not winograd.suits(x[..., :3], kernel[:, :, :3], 1, 2)  # too few channels
    assert not winograd.suits(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 1, 2)


def test_precision_asks_for_the_direct_form():
    x, kernel = jnp.zeros((1, 8, 8, 16)), jnp.zeros((5, 5, 16, 16))

    def convolutions(precision):
        conv = jax.jit(partial(ops.conv2d, padding=2, precision=precision))
        return conv.lower(x, kernel).as_text().count('stablehlo.convolution')

    assert (convolutions(None), convolutions('highest')) == (0, 1)
