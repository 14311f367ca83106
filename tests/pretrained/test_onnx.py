"""ONNX: ONNX Runtime's answers are the network's, for every recipe, layer and size."""

import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from ml_collections import ConfigDict

import nin_jax
from experiments import export
from nin_jax.config import block, default_config
from nin_jax.data.preprocess import Preprocess
from nin_jax.data.sources import Arrays
from nin_jax.errors import ConfigError, UserError
from nin_jax.models.factory import join, make_model, split_weights
from nin_jax.pretrained import onnx_graph
from nin_jax.pretrained.trained import Trained, open_network
from tests.helpers import run_main, run_module

SHAPE = (12, 12, 3)


def fitted(recipe: str) -> Preprocess:
    rng = np.random.default_rng(0)
    whiten = rng.normal(size=(432, 432)).astype(np.float32) / 20
    arrays = {
        'gcn_zca': dict(mean_HWC=rng.normal(size=SHAPE).astype(np.float32), whiten_DD=whiten),
        'patch_zca': dict(kernel_HWIO=rng.normal(size=(5, 5, 3, 3)).astype(np.float32) / 5),
        'mean': dict(mean_HWC=np.array([[[120, 110, 100]]], np.float32)),
    }
    return Preprocess(recipe, 55.0, **arrays.get(recipe, {}))


def network(recipe: str = 'scale', head: str = 'gap', **model: object) -> Trained:
    """A small network with every kind of layer, and running averages that are not 0 and 1."""
    config = default_config()
    config.model.update(model, head=head)
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((8, 6), kernel=5, pool='avg', dropout=0.5, init_std=()),
            mlpconv2=block((8, 6), kernel=3, pool='max_rnorm', init_std=(), pieces=2),
            mlpconv3=block((6, 10), kernel=3, pool='max', init_std=()),
        )
    )
    if head == 'fc':
        config.model.blocks.mlpconv1.stride = 2

    weights = join(*split_weights(make_model(config, SHAPE, 10, jax.random.key(0))))
    rng = np.random.default_rng(1)
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)
            if path[-1].key != 'kernel'
            else leaf
        ),
        weights,
    )
    return open_network(
        config,
        weights,
        step=0,
        fitted=fitted(recipe),
        class_names=tuple('abcdefghij'),
        image_shape=SHAPE,
    )


def images(size=SHAPE[:2], count=3):
    return np.random.default_rng(2).integers(0, 256, (count, *size, 3), np.uint8)


def check(trained: Trained, size: tuple[int, int], count: int = 3) -> None:
    session = onnxruntime.InferenceSession(onnx_graph.build(trained))
    given = images(size, count)
    logits, maps = session.run(['logits', 'maps'], {'images': given})
    for ours, theirs in zip(trained.score(given), (logits, maps), strict=True):
        assert ours.shape == theirs.shape and np.ptp(ours) > 0
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize(
    'recipe',
    [
        'patch_zca',
        *(
            pytest.param(recipe, marks=pytest.mark.heavy)
            for recipe in ('scale', 'mean', 'gcn_lcn', 'gcn_zca')
        ),
    ],
)
def test_every_recipe_and_any_size(recipe):
    trained = network(recipe)
    for size, count in (((12, 12), 1), ((12, 12), 5), ((13, 31), 2)):
        check(trained, size, count)


@pytest.mark.parametrize(
    'model', [{'norm': 'batch'}, {'dropout_mode': 'convnet'}, {'class_maps': 'linear'}]
)
def test_every_kind_of_layer(model):
    check(network(**model), (12, 12))
    check(network(**model), (9, 14))


def test_a_fully_connected_head():
    check(network(head='fc'), (12, 12))
    check(network(head='fc', head_dropout=0.25, dropout_mode='convnet'), (12, 12))


def test_a_flat_image_is_not_blown_up():
    trained = network('patch_zca')
    flat = np.full((1, 12, 12, 3), 77, np.uint8)
    session = onnxruntime.InferenceSession(onnx_graph.build(trained))
    np.testing.assert_allclose(
        session.run(['logits'], {'images': flat})[0], trained(flat), rtol=0, atol=1e-4
    )


def test_layers_are_the_features():
    trained = network(dropout_mode='convnet')
    session = onnxruntime.InferenceSession(onnx_graph.build(trained, layers=True))
    names = onnx_graph.layer_outputs(trained)
    expected = trained.features(images())
    assert {*names, 'gap'} == set(expected) and 'drop1' in names and 'drop2' not in names
    for name, theirs in zip(names, session.run(names, {'images': images()}), strict=True):
        ours = expected[name].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_a_local_layer_is_refused():
    trained = network()
    trained.config.model.blocks.mlpconv1.local = True
    with pytest.raises(ConfigError, match='local=True'):
        onnx_graph.build(trained)


def test_compare_sees_a_difference():
    trained = network()
    model = onnx_graph.build(trained)
    same = onnx_graph.compare(model, trained, images())
    assert same.changed == 0 and same.largest_difference < 1e-4 and same.images == 3
    last = trained.params['mlpconvs']['mlpconv3']['layers']['cccp1']
    last['bias'] = last['bias'].at[3].add(100.0)
    other = onnx_graph.compare(model, trained, images())
    assert other.changed == 3 and other.largest_difference > 50


@pytest.mark.parametrize(('difference', 'refused'), [(0.4, False), (0.6, True)])
def test_a_graph_that_disagrees_is_not_written(monkeypatch, difference, refused):
    trained, found = network(), {}
    monkeypatch.setattr('experiments.cli.eval_images', lambda *_: Arrays(images(), np.zeros(3)))
    monkeypatch.setattr(
        onnx_graph, 'compare', lambda *_: onnx_graph.Comparison(32, difference, 10.0, 1)
    )
    if refused:
        with pytest.raises(UserError, match='disagree'):
            export.onnx_program(trained, found, None)
    else:
        assert export.onnx_program(trained, found, None) and found == {'largest_difference': 0.4}


def test_the_command(tmp_path):
    assert run_main(f'--workdir={tmp_path}/run').returncode == 0
    out = tmp_path / 'release'
    result = run_module('experiments.export', f'--workdir={tmp_path}/run', f'--out={out}', '--onnx')
    assert result.returncode == 0, result.stderr
    assert '0 changed top-1' in result.stdout
    model = onnx.load(out / 'model.onnx')
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata['image_shape']) == [28, 28, 1] and len(metadata) == 4
    assert 'onnxruntime' in (out / 'README.md').read_text()
    assert nin_jax.load(out).class_names == tuple(json.loads(metadata['class_names']))
