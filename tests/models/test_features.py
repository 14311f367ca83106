"""Activations by the authors' names: each is what the layers before it make of the image."""

import jax
import numpy as np
import pytest
from flax import nnx

from nin_jax.data import datasets
from nin_jax.errors import ConfigError
from nin_jax.models.features import features, layer_names
from nin_jax.models.nin import NIN, Block
from nin_jax.pretrained import trained
from tests.helpers import load_page, run_main

BLOCKS = (
    Block((8, 6, 5), 3, 'max', 0.5, ()),
    Block((4, 7), 5, 'avg', 0.25, ()),
    Block((6, 10), 3, init_std=()),
)
NAMES = [
    *('conv1', 'cccp1', 'cccp2', 'pool1', 'drop1', 'conv2', 'cccp3', 'pool2', 'drop2'),
    *('conv3', 'cccp4', 'gap'),
]


@pytest.fixture(scope='module', params=['inverted', 'convnet'])
def network(request):
    model = NIN(BLOCKS, 3, dropout_mode=request.param, class_bias=0.5, rngs=nnx.Rngs(0))
    return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param)), model


def images(size=(16, 16)):
    return jax.random.normal(jax.random.key(0), (2, *size, 3))


def test_names_are_the_authors():
    blocks = tuple(Block(**row) for row in load_page('cifar10').model.blocks.values())
    assert list(layer_names(blocks).values()) == [
        *('conv1', 'cccp1', 'cccp2', 'pool1', 'drop1', 'conv2', 'cccp3', 'cccp4'),
        *('pool2', 'drop2', 'conv3', 'cccp5', 'cccp6'),
    ]


@pytest.mark.parametrize('size', [(16, 16), (21, 30)])
def test_each_layer_follows_from_the_one_before(network, size):
    model, params, module = network
    found = features(model, params, images(size))
    assert list(found) == NAMES
    logits, maps = module(images(size))
    np.testing.assert_array_equal(found['gap'], logits)
    np.testing.assert_array_equal(found['cccp4'], maps)
    np.testing.assert_allclose(found['cccp4'].mean((1, 2)), logits, rtol=1e-5)
    first = module.mlpconvs['mlpconv1'].layers['conv']
    np.testing.assert_array_equal(found['conv1'], nnx.relu(first(images(size))))
    kernel, bias = (
        params['mlpconvs']['mlpconv1']['layers']['cccp2'][k] for k in ('kernel', 'bias')
    )
    by_hand = np.maximum(found['cccp1'] @ kernel[0, 0] + bias, 0)  # a 1x1 convolution
    np.testing.assert_allclose(found['cccp2'], by_hand, rtol=1e-4, atol=1e-5)
    assert found['pool1'].shape[1:3] == tuple(side // 2 for side in size)
    np.testing.assert_array_equal(found['pool1'][0, 0, 0], found['cccp2'][0, :3, :3].max((0, 1)))
    kept = 1.0 if module.dropout_mode == 'inverted' else 0.75
    np.testing.assert_allclose(found['drop2'], kept * found['pool2'], rtol=1e-6)


def test_only_what_is_asked_for_in_that_order(network):
    model, params, _ = network
    pair = features(model, params, images(), ('pool1', 'conv1'))
    assert list(pair) == ['pool1', 'conv1']
    np.testing.assert_array_equal(
        pair['conv1'], features(model, params, images(), ('conv1',))['conv1']
    )


def test_unknown_layers_are_told(network):
    model, params, _ = network
    with pytest.raises(ConfigError, match=r"^no layer 'cccp9' in the network, did you mean 'cccp"):
        features(model, params, images(), ('cccp9',))
    with pytest.raises(ConfigError, match="no layer 'pool3'"):
        features(model, params, images(), ('pool3',))


def test_features_of_a_run(tmp_path):
    assert run_main(f'--workdir={tmp_path}').returncode == 0
    network = trained.load_run(tmp_path)
    digits = datasets.load_arrays('mnist_subset', 'test').images[:5]
    found = network.features(digits, ('pool2', 'gap', 'pool1'), chunk=2)
    assert list(found) == ['pool2', 'gap', 'pool1']
    logits, maps = network.score(digits)
    np.testing.assert_allclose(found['gap'], logits, atol=1e-6)
    np.testing.assert_allclose(found['pool2'], maps, atol=1e-6)
    assert found['pool2'].shape == (5, 7, 7, 10) and found['pool1'].shape == (5, 14, 14, 8)
    larger = np.concatenate([digits[:1], digits[1:2]], axis=2)
    assert network.features(larger, ('cccp2',))['cccp2'].shape == (1, 28, 56, 8)
