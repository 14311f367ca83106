"""The network: exact sizes, class maps, any image size, both kinds of dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nin_jax.data.catalog import lookup
from nin_jax.models.factory import fc_classes, layer_blocks
from nin_jax.models.nin import NIN, Block, MLPConv, dropout, global_average_pooling
from nin_jax.models.summary import layer_table
from tests.helpers import PAGES, load_page

# Sums over the authors' cuda-convnet layer files (NIN/*_def).
PARAMETERS = {
    'mnist': 349_674,
    'svhn': 1_986_026,
    'cifar10': 966_986,
    'cifar100': 984_356,
    'quickstart': 349_674,
    'ablations': 966_986,
    'imagenet': 7_595_176,  # the model zoo's prototxt
    'hinton': 360_074,  # by hand, with every variant, in test_baselines.py
}
SMALL = (Block((8, 6, 4), 5, 'max', 0.5), Block((6, 5, 3), 3))


def build(blocks, channels, **kwargs):
    return NIN(blocks, channels, rngs=nnx.Rngs(0), **kwargs)


def test_every_page_has_its_size_asserted():
    assert set(PAGES) == set(PARAMETERS)


@pytest.mark.parametrize('page', PAGES)
def test_parameter_counts(page):
    config = load_page(page)
    dataset = lookup(config.data.name)
    classes, shape = dataset.num_classes, dataset.image_shape
    blocks = layer_blocks(config, classes)
    fc = fc_classes(config, classes)
    params = nnx.eval_shape(lambda: build(blocks, shape[-1], image_size=shape[:2], fc_classes=fc))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(params))) == PARAMETERS[page]
    rows = layer_table(blocks, shape, fc)
    assert sum(row.parameters for row in rows) == PARAMETERS[page]


def test_layer_table_of_cifar10():
    rows = layer_table(layer_blocks(load_page('cifar10'), 10), (32, 32, 3))
    assert [r.name for r in rows] == [
        'conv1',
        'cccp1',
        'cccp2',
        'pool1 (max)',
        'conv2',
        'cccp3',
        'cccp4',
        'pool2 (max)',
        'conv3',
        'cccp5',
        'cccp6',
    ]
    assert [r.parameters for r in rows if r.parameters] == [
        14_592,
        30_880,
        15_456,
        460_992,
        37_056,
        37_056,
        331_968,
        37_056,
        1_930,
    ]
    assert sum(r.macs for r in rows) == 222_486_528  # 222.49 M
    assert (rows[-1].receptive_field, rows[-1].stride, rows[-1].shape) == (27, 4, (8, 8, 10))


@pytest.mark.parametrize('size', [(32, 32), (27, 45), (5, 5), (64, 32)])
def test_logits_are_the_means_of_the_class_maps_at_any_size(size):
    model = build(SMALL, 3)
    x_BHWC = jax.random.normal(jax.random.key(0), (2, *size, 3))
    logits_BK, maps_BHWK = model(x_BHWC)
    assert maps_BHWK.shape == (2, -(-(size[0] - 3) // 2) + 1, -(-(size[1] - 3) // 2) + 1, 3)
    np.testing.assert_allclose(logits_BK, maps_BHWK.mean((1, 2)), rtol=1e-6)
    assert (maps_BHWK >= 0).all() and (maps_BHWK > 0).any()  # ReLU on the class maps as well


def test_mlpconv_is_a_small_mlp_at_every_pixel():
    """Section 3.1: each output pixel is the same perceptron applied to its window."""
    mlpconv = MLPConv(2, Block((7, 5, 4), 3, init_std=(0.5, 0.5, 0.5)), rngs=nnx.Rngs(1))
    x_BHWC = jax.random.normal(jax.random.key(2), (1, 6, 6, 2))
    window = x_BHWC[0, 1:4, 2:5].reshape(-1)
    for name in ('conv', 'cccp1', 'cccp2'):
        layer = mlpconv.layers[name]
        window = nnx.relu(
            window @ layer.kernel[...].reshape(-1, layer.bias.shape[0]) + layer.bias[...]
        )
    np.testing.assert_allclose(mlpconv(x_BHWC)[0, 2, 3], window, rtol=1e-5)


def test_initial_weights_have_the_stated_spread_and_biases_are_zero():
    block = Block((200, 300, 10), 5, init_std=(0.001, 0.01, 0.05))
    layers = build((block,), 3).mlpconvs['mlpconv1'].layers
    for name, std in zip(('conv', 'cccp1', 'cccp2'), block.init_std, strict=True):
        assert np.std(layers[name].kernel[...]) == pytest.approx(std, rel=0.05)
        assert not layers[name].bias[...].any()
    he = build((Block((200, 300, 10), 5, init_std=()),), 3).mlpconvs['mlpconv1'].layers
    assert np.std(he['cccp1'].kernel[...]) == pytest.approx((2 / 200) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ('mode', 'kept', 'at_test'), [('inverted', 1 / 0.7, 1), ('convnet', 1, 0.7)]
)
def test_dropout_modes(mode, kept, at_test):
    x = jnp.ones((400, 500))
    dropped = dropout(x, 0.3, jax.random.split(jax.random.key(0), len(x)), mode=mode)
    np.testing.assert_allclose(np.unique(dropped), [0, kept], rtol=1e-6)
    assert np.mean(dropped == 0) == pytest.approx(0.3, abs=0.005)  # 5 standard deviations
    np.testing.assert_allclose(dropout(x, 0.3, None, mode=mode), at_test, rtol=1e-6)
    # The expectation at training is what evaluation uses.
    assert dropped.mean() == pytest.approx(at_test, rel=0.01)


def test_what_an_image_drops_depends_on_its_own_key_only():
    model = build(SMALL, 3)
    x_BHWC = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    keys_B = jax.random.split(jax.random.key(1), 3)
    together = model(x_BHWC, keys_B)[0]
    alone = jnp.concatenate([model(x_BHWC[i : i + 1], keys_B[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert (together != model(x_BHWC, keys_B[::-1])[0]).any()


def test_bfloat16_computes_in_half_and_pools_in_float32():
    model = build(SMALL, 3, dtype=jnp.bfloat16)
    x_BHWC = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    logits_BK, maps_BHWK = model(x_BHWC)
    assert maps_BHWK.dtype == jnp.bfloat16 and logits_BK.dtype == jnp.float32
    full = build(SMALL, 3)(x_BHWC)[0]
    assert float(jnp.abs(full - logits_BK).max()) < 0.02 * float(jnp.abs(full).max())


def test_global_average_pooling_of_bfloat16_maps_is_exact():
    maps = jnp.full((1, 16, 16, 1), 1 + 2**-7, jnp.bfloat16)
    assert global_average_pooling(maps) == 1 + 2**-7
