"""Fine-tuning: what is taken over, what is new, what learns how fast, and what does not fit."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import commands
from nin_jax.config import block
from nin_jax.data import catalog, datasets
from nin_jax.errors import CheckpointError, ConfigError
from nin_jax.pretrained import trained
from nin_jax.runs.checkpoint import digest
from nin_jax.train import optimizer
from tests.helpers import assemble, plan_of, run_main, run_module, tiny_config

HEAD = ('mlpconvs', 'mlpconv2', 'layers', 'cccp2')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('source') / 'run'
    assert run_main(f'--workdir={folder}', '--config.optim.lr=0.01').returncode == 0
    return folder


@pytest.fixture(scope='module')
def weights(source):
    return trained.load_run(source).params


def config_from(source, **changes):
    config = tiny_config()
    config.seed = 7
    config.init.weights = str(source)
    config.update_from_flattened_dict(changes)
    return config


def leaves_of(params):
    return {
        tuple(k.key for k in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def split(params):
    """(the last layer's leaves, all others) by path."""
    leaves = leaves_of(params)
    head = {path: leaf for path, leaf in leaves.items() if path[:-1] == HEAD}
    return head, {path: leaf for path, leaf in leaves.items() if path not in head}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_all_layers_but_the_last_are_taken_over(source, weights):
    assembled = assemble(config_from(source))
    state, fresh = assembled.initial_state(0), assembled.init_state(0)
    (head, backbone), (fresh_head, _) = split(state.params), split(fresh.params)
    assert_equal(backbone, split(weights)[1])
    assert_equal(head, fresh_head)
    assert np.abs(head[(*HEAD, 'kernel')] - split(weights)[0][(*HEAD, 'kernel')]).max() > 0.01
    assert digest(dataclasses.replace(state, params=0)) == digest(
        dataclasses.replace(fresh, params=0)
    )


def test_the_last_layer_too_if_asked_for(source, weights):
    assembled = assemble(config_from(source, **{'init.new_head': False}))
    assert digest(assembled.initial_state(0).params) == digest(weights)


def test_without_init_weights_nothing_changes():
    assembled = assemble(tiny_config())
    assert digest(assembled.initial_state(0)) == digest(assembled.init_state(0))


@pytest.fixture
def two_classes(monkeypatch):
    """The embedded digits as a dataset of another number of classes: even and odd."""
    digits = catalog.DATASETS['mnist_subset']
    parity = dataclasses.replace(digits, num_classes=2)
    monkeypatch.setitem(catalog.DATASETS, 'parity', parity)
    read = datasets._read_bundled

    def read_parity(name, dataset, parts):
        arrays, names = read('mnist_subset', digits, parts)
        if name == 'parity':
            arrays = {part: (images, labels % 2) for part, (images, labels) in arrays.items()}
            names = ('even', 'odd')
        return arrays, names

    monkeypatch.setattr(datasets, '_read_bundled', read_parity)


def test_a_frozen_backbone_stays_as_it_was(source, weights, two_classes, tmp_path):
    """From ten digits to two classes, through a whole run."""
    config = config_from(source, **{'data.name': 'parity', 'optim.last_layer_lr': 1.0})
    config.optim.backbone_lr = 0.0
    config.train.duration = '8steps'
    config.model.blocks.mlpconv2.features = (8, 8, 2)
    assert commands.train(config, tmp_path / 'run', command='') == 0
    tuned = trained.load_run(tmp_path / 'run')
    head, backbone = split(tuned.params)
    assert_equal(backbone, split(weights)[1])
    first_head, _ = split(assemble(config).init_state(0).params)
    assert head[(*HEAD, 'bias')].shape == (2,)
    assert np.abs(head[(*HEAD, 'kernel')] - first_head[(*HEAD, 'kernel')]).max() > 1e-4
    assert tuned.config.init.weights == str(source) and tuned.class_names == ('even', 'odd')


def test_learning_rates_by_group():
    config = tiny_config()
    params = assemble(config).init_state(0).params
    gradients = jax.tree.map(jnp.ones_like, params)
    config.optim.weight_decay = 0.0

    def first_update(backbone_lr):
        config.optim.backbone_lr = backbone_lr
        optimiser = optimizer.make_optimizer(config.optim, params, HEAD, plan_of())
        updates, _ = optimiser.update(gradients, optimiser.init(params), params, value=0.0)
        return split(updates)

    for backbone_lr in (1.0, 0.25, 0.0):
        head, backbone = first_update(backbone_lr)
        for group, factor in ((head, 0.1), (backbone, backbone_lr)):
            for path, update in group.items():
                bias = 2 if path[-1] == 'bias' else 1
                np.testing.assert_allclose(update, -0.1 * factor * bias, rtol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c.model.blocks.mlpconv1.update(kernel=3), 'has conv1.kernel of shape (5, 5, 1'),
        (lambda c: c.model.blocks.mlpconv1.update(features=(8, 8, 9)), 'has cccp2.bias of shape'),
        (lambda c: c.model.blocks.mlpconv1.update(features=(8,) * 4), 'has no cccp3.bias'),
    ],
)
def test_what_does_not_fit_is_named(source, change, words):
    config = config_from(source)
    change(config)
    with pytest.raises(ConfigError) as e:
        assemble(config).initial_state(0)
    assert f'init.weights={str(source)!r} {words}' in str(e.value)
    assert 'repeat its model.blocks' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ('change', 'last'),
    [
        (lambda c: c.model.blocks.update(mlpconv3=block((10,), 1, init_std=())), 'mlpconv3'),
        (lambda c: c.model.update(head='fc'), 'fc'),
        (lambda c: c.model.blocks.update(mlpconv2=block((10,), 3, init_std=())), 'mlpconv2'),
    ],
)
def test_the_old_last_layer_is_an_inner_one_or_not_needed(source, weights, change, last):
    config = config_from(source)
    change(config)
    state = assemble(config).initial_state(0)
    inner = {path: leaf for path, leaf in leaves_of(state.params).items() if last not in path}
    theirs = leaves_of(weights)
    assert inner and len(inner) == len(theirs) - 6 * (last == 'mlpconv2')
    assert_equal(inner, {path: theirs[path] for path in inner})


def test_no_such_run(tmp_path):
    with pytest.raises(CheckpointError, match='nope'):
        assemble(config_from(tmp_path / 'nope')).initial_state(0)
    result = run_main(f'--workdir={tmp_path / "run"}', f'--config.init.weights={tmp_path}')
    assert result.returncode == 2 and result.stderr.count('\n') == 1


def test_from_a_release_and_resumed_without_it(source, tmp_path):
    """Once a checkpoint is written, the weights it started from are not needed again."""
    release = tmp_path / 'release'
    result = run_module('experiments.export', f'--workdir={source}', f'--out={release}')
    assert result.returncode == 0, result.stderr
    flags = [f'--config.init.weights={release}', '--config.checkpoint.every=4steps']
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert run_main(f'--workdir={whole}', *flags).returncode == 0
    shutil.copytree(whole, cut)
    (cut / 'summary.json').unlink()
    shutil.rmtree(cut / 'checkpoints' / '24')
    shutil.rmtree(release)
    result = run_main(f'--workdir={cut}', *flags)
    assert result.returncode == 0 and 'resuming at step 20' in result.stdout, result.stderr
    assert digest(trained.load_run(cut).params) == digest(trained.load_run(whole).params)
