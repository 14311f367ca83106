"""Convolution and pooling against XLA's own operations, float64 loops, and on several devices."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.test_util import check_grads

from nin_jax.models import ops
from nin_jax.models.factory import make_model
from nin_jax.models.nin import Conv
from tests.helpers import load_page


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def lax_conv2d(x_BHWC, kernel_HWIO, stride=1, padding=0):
    return lax.conv_general_dilated(
        x_BHWC,
        kernel_HWIO,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
    )


def slow_pool(x_BHWC, window, stride, reduce):
    """One window at a time, with the two references' own arithmetic for the output's size."""

    def starts(size):
        last = max(0, int(np.ceil((size - window) / stride)))
        return [s * stride for s in range(last + 1) if s * stride < size]

    return np.stack(
        [
            np.stack(
                [
                    reduce(x_BHWC[:, r : r + window, c : c + window], axis=(1, 2))
                    for c in starts(x_BHWC.shape[2])
                ],
                1,
            )
            for r in starts(x_BHWC.shape[1])
        ],
        1,
    )


# (batch, height, width, in, out, kernel height, kernel width, stride, padding)
CONVS = {
    'cifar conv1': (4, 32, 32, 3, 6, 5, 5, 1, 2),
    'mnist conv1': (4, 28, 28, 1, 6, 5, 5, 1, 2),
    'conv3': (4, 8, 8, 7, 5, 3, 3, 1, 1),
    'cccp': (4, 8, 8, 7, 5, 1, 1, 1, 0),
    'odd, batch 1': (1, 9, 7, 3, 4, 5, 5, 1, 2),
    'smaller than the kernel': (2, 3, 2, 3, 4, 5, 5, 1, 2),
    'oblong kernel': (3, 8, 9, 2, 4, 3, 5, 1, 1),
    'even kernel': (2, 8, 9, 2, 4, 4, 4, 1, 1),
    'unpadded': (2, 8, 8, 2, 4, 3, 3, 1, 0),
    'padding past the kernel': (2, 5, 6, 2, 4, 3, 3, 1, 4),
    'padded 1x1': (2, 5, 6, 2, 4, 1, 1, 1, 1),
    'strided 1x1': (2, 7, 6, 2, 4, 1, 1, 2, 0),
    'stride 2': (3, 11, 8, 3, 4, 3, 3, 2, 1),
    'imagenet conv1': (2, 43, 39, 3, 4, 11, 11, 4, 0),
    'prime batch': (13, 6, 6, 2, 3, 3, 3, 1, 1),
}


@pytest.mark.parametrize('case', CONVS.values(), ids=CONVS)
def test_conv2d_and_gradients_equal_lax(case):
    batch, height, width, c_in, c_out, kernel_h, kernel_w, stride, padding = case
    x, kernel = normal(batch, height, width, c_in), normal(kernel_h, kernel_w, c_in, c_out, seed=1)
    grad = normal(*lax_conv2d(x, kernel, stride, padding).shape, seed=2)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        y, transpose = jax.vjp(lambda x, k: conv(x, k, stride=stride, padding=padding), x, kernel)
        return y, *transpose(grad)

    ours = value_and_gradients(partial(ops.conv2d, precision='highest'), x, kernel)
    assert all(array.dtype == jnp.float32 for array in ours)
    expected = value_and_gradients(lax_conv2d, x, kernel)
    for mine, theirs in zip(ours, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine / scale, theirs / scale, rtol=0, atol=3e-6)


def test_kernel_gradient_sums_over_chunks(monkeypatch):
    x, kernel = normal(12, 6, 6, 2), normal(3, 3, 2, 3, seed=1)

    def kernel_gradient():
        return jax.grad(lambda k: jnp.sum(ops.conv2d(x, k, padding=1) ** 2))(kernel)

    whole = kernel_gradient()
    monkeypatch.setattr(ops, '_CHUNK_BYTES', 3 * 6 * 6 * 18 * 4)  # three images to a chunk
    np.testing.assert_allclose(kernel_gradient(), whole, rtol=1e-5)


@pytest.mark.parametrize('kernel_size', [1, 5])
def test_conv2d_bfloat16(kernel_size):
    x = normal(64, 8, 8, 4, dtype=jnp.bfloat16)
    kernel = normal(kernel_size, kernel_size, 4, 3, seed=1, dtype=jnp.bfloat16)
    padding = kernel_size // 2
    y, transpose = jax.vjp(lambda x, k: ops.conv2d(x, k, padding=padding), x, kernel)
    # The same rounded inputs in float32: bfloat16 may differ by the rounding of the result only.
    exact, exact_transpose = jax.vjp(
        lambda x, k: lax_conv2d(x, k, 1, padding), *(a.astype(jnp.float32) for a in (x, kernel))
    )
    grad = normal(*y.shape, seed=2, dtype=jnp.bfloat16)
    pairs = zip(
        (y, *transpose(grad)), (exact, *exact_transpose(grad.astype(jnp.float32))), strict=True
    )
    for ours, expected in pairs:
        assert ours.dtype == jnp.bfloat16
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            ours.astype(jnp.float32) / scale, expected / scale, rtol=2**-8, atol=2**-10
        )


def test_conv2d_gradients_numerically():
    with jax.enable_x64(True):
        for stride, padding in ((1, 0), (1, 2), (2, 1)):
            x = normal(2, 6, 5, 2, dtype=np.float64)
            kernel = normal(3, 3, 2, 3, seed=1, dtype=np.float64)
            # Bilinear, so that central differences have no error but rounding.
            check_grads(
                lambda x, k, s=stride, p=padding: ops.conv2d(x, k, stride=s, padding=p),
                (x, kernel),
                order=1,
                modes=['rev'],
                atol=1e-3,
                rtol=1e-3,
            )


def test_unneeded_input_gradient_is_not_computed():
    x, kernel = normal(2, 8, 8, 3), normal(3, 3, 3, 4, seed=1)

    def convolutions(argnums):
        grad = jax.jit(jax.grad(lambda x, k: jnp.sum(ops.conv2d(x, k, padding=1) ** 2), argnums))
        return grad.lower(x, kernel).compile().as_text().count('conv_general_dilated"')

    assert convolutions(1) < convolutions((0, 1))


SIZES = [(28, 27), (6, 5), (2, 1)]
WINDOWS = [(3, 2), (2, 2), (3, 1), (2, 3)]


@pytest.mark.parametrize(('window', 'stride'), WINDOWS)
@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_pools_equal_loops(height, width, window, stride):
    x = np.asarray(normal(2, height, width, 3))
    np.testing.assert_array_equal(
        ops.max_pool(x, window, stride), slow_pool(x, window, stride, np.max)
    )
    np.testing.assert_allclose(
        ops.avg_pool(x, window, stride), slow_pool(x, window, stride, np.mean), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        (55, 27),
        (54, 27),
        (32, 16),
        (28, 14),
        (27, 13),
        (16, 8),
        (14, 7),
        (5, 2),
        (3, 1),
        (2, 1),
        (1, 1),
    ],
)
def test_pool_output_size(size, expected):
    assert ops.max_pool(jnp.zeros((1, size, 32, 1))).shape == (1, expected, 16, 1)
    assert ops.avg_pool(jnp.zeros((1, 32, size, 1))).shape == (1, 16, expected, 1)


def test_average_divides_by_pixels_inside_the_image():
    np.testing.assert_allclose(ops.avg_pool(jnp.ones((2, 32, 28, 3))), 1.0, rtol=1e-6)


def xla_pool(x_BHWC, window, stride, init, reduce):
    overhang = ops._overhang(x_BHWC, window, stride)
    shapes = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x_BHWC, init, reduce, *shapes, overhang)


def xla_max_pool(x_BHWC, window, stride):
    return xla_pool(x_BHWC, window, stride, -jnp.inf, lax.max)


def xla_avg_pool(x_BHWC, window, stride):
    pixels = xla_pool(jnp.ones_like(x_BHWC), window, stride, 0.0, lax.add)
    return xla_pool(x_BHWC, window, stride, 0.0, lax.add) / pixels


@pytest.mark.parametrize(('window', 'stride'), WINDOWS)
@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_pool_gradients_equal_xla(height, width, window, stride):
    x = jnp.round(2 * normal(2, height, width, 3))  # many ties
    for pools in ((ops.max_pool, xla_max_pool), (ops.avg_pool, xla_avg_pool)):
        grad = jnp.round(8 * normal(*pools[0](x, window, stride).shape, seed=1))

        @partial(jax.jit, static_argnums=0)
        def value_and_gradient(pool, x, grad):
            y, transpose = jax.vjp(lambda x: pool(x, window, stride), x)
            return y, transpose(grad)[0]

        ours, xla = (value_and_gradient(pool, x, grad) for pool in pools)
        for a, b in zip(ours, xla, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)


def test_tied_maxima_give_their_gradient_to_the_first():
    grad = jax.grad(lambda x: jnp.sum(ops.max_pool(x)))(jnp.zeros((1, 5, 5, 1)))
    expected = np.zeros((5, 5))
    expected[::2, ::2][:2, :2] = 1
    np.testing.assert_array_equal(grad[0, :, :, 0], expected)


def test_pool_gradients_numerically():
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 7 * 6 * 2).reshape(2, 7, 6, 2), float)
    for pool in (ops.max_pool, ops.avg_pool):
        check_grads(pool, (x,), order=1, modes=['rev'], eps=0.25, atol=1e-2, rtol=1e-2)


@pytest.mark.heavy
def test_large_window_positions_do_not_wrap():
    x = jnp.arange(17.0 * 17).reshape(1, 17, 17, 1)
    grad = jax.grad(lambda x: ops.max_pool(x, 17, 17).sum())(x)
    assert int(grad.argmax()) == 17 * 17 - 1  # does not fit in a byte


@pytest.mark.parametrize('pool', [ops.max_pool, ops.avg_pool])
def test_pool_bfloat16_and_nan(pool):
    x = normal(2, 7, 6, 3, dtype=jnp.bfloat16)
    y, transpose = jax.vjp(pool, x)
    assert y.dtype == jnp.bfloat16
    assert transpose(y)[0].dtype == jnp.bfloat16
    assert bool(jnp.isnan(pool(x.at[0, 1, 1, 0].set(jnp.nan))[0, 0, 0, 0]))


def network(implementation):
    def loss(kernels, x_BHWC):
        x_BHWC = implementation.max_pool(implementation.conv2d(x_BHWC, kernels[0], padding=2))
        x_BHWC = implementation.avg_pool(implementation.conv2d(x_BHWC, kernels[1], padding=0))
        return jnp.mean(jnp.sin(x_BHWC))

    return jax.value_and_grad(loss)


def test_same_under_jit_scan_and_vmap():
    kernels = [normal(5, 5, 3, 4, seed=1), normal(1, 1, 4, 5, seed=2)]
    x = normal(3, 4, 9, 9, 3)
    step = network(ops)
    expected = [step(kernels, batch) for batch in x]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    _, scanned = jax.jit(lambda: lax.scan(lambda _, batch: (None, step(kernels, batch)), None, x))()
    mapped = jax.jit(jax.vmap(step, (None, 0)))(kernels, x)
    for results in (scanned, mapped):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results, expected
        )


def test_the_other_backends_give_the_same(monkeypatch):
    kernels = [normal(5, 5, 3, 4, seed=1), normal(1, 1, 4, 5, seed=2)]
    x = normal(4, 9, 9, 3)
    ours = network(ops)(kernels, x)
    chosen = []

    def other_backend(*arrays, default, **_):
        chosen.append(default)
        return default(*arrays)

    monkeypatch.setattr(lax, 'platform_dependent', other_backend)
    others = network(ops)(kernels, x)
    names = [getattr(function, '__name__', '') for function in chosen]
    assert names.count('xla') == 2 < len(names)  # max pooling and its gradient, convolutions
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, others)


_EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from nin_jax.models import ops

def loss(kernels, x):
    x = ops.max_pool(ops.conv2d(x, kernels[0], padding=2))
    return jnp.mean(jnp.sin(ops.avg_pool(ops.conv2d(x, kernels[1]))))

keys = jax.random.split(jax.random.key(0), 3)
kernels = [jax.random.normal(keys[0], (5, 5, 3, 4)), jax.random.normal(keys[1], (1, 1, 4, 5))]
x = jax.random.normal(keys[2], (16, 9, 9, 3))
step = jax.jit(jax.value_and_grad(loss))
alone = jax.device_get(step(kernels, x))
mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
kernels = jax.device_put(kernels, NamedSharding(mesh, PartitionSpec()))
spread = step(kernels, jax.device_put(x, NamedSharding(mesh, PartitionSpec('data'))))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), alone, spread)
assert len(jax.devices()) == 8
"""


def test_batch_spread_over_eight_devices():
    env = dict(
        os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8'
    )
    result = subprocess.run(
        [sys.executable, '-c', _EIGHT_DEVICES], env=env, timeout=120, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_mixed_products_round_only_the_operands():
    """Against float32 products of rounded operands; the gradient is rounded before it is used."""
    keys = jax.random.split(jax.random.key(0), 3)
    x_BHWC, kernel_HWIO, grad_BHWO = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(4, 9, 9, 48), (1, 1, 48, 32), (4, 9, 9, 32)], strict=True)
    )
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x_BHWC, kernel_HWIO, grad_BHWO)]
    expected, transpose = jax.vjp(ops.conv2d, *rounded[:2])
    actual, mixed_transpose = jax.vjp(
        lambda x, kernel: ops.mixed_conv1x1(x, kernel, jnp.bfloat16), x_BHWC, kernel_HWIO
    )
    pairs = zip(
        (actual, *mixed_transpose(grad_BHWO)), (expected, *transpose(rounded[2])), strict=True
    )
    for mixed, wide in pairs:
        assert mixed.dtype == jnp.float32
        np.testing.assert_allclose(mixed, wide, rtol=0, atol=1e-5 * np.abs(wide).max())


@pytest.mark.parametrize('dtype', ['float32', 'mixed'])
def test_mixed_is_of_1x1_convolutions_only(dtype):
    config = load_page('quickstart')
    config.dtype = dtype
    network = make_model(config, (28, 28, 1), 10, jax.random.key(0))
    layers = network.mlpconvs['mlpconv1'].layers
    operands = {name: layer.operand_dtype for name, layer in layers.items()}
    bfloat16 = jnp.dtype('bfloat16') if dtype == 'mixed' else None
    assert operands == {'conv': None, 'cccp1': bfloat16, 'cccp2': bfloat16}
    assert layers['conv'].dtype == jnp.float32


def test_mixed_keeps_the_stride_of_a_1x1_convolution():
    wide = dict(init_std=None, operand_dtype=jnp.dtype('bfloat16'))
    conv = Conv(3, 4, 1, stride=2, rngs=nnx.Rngs(0), **wide)
    assert conv(jnp.ones((2, 9, 9, 3))).shape == (2, 5, 5, 4)
