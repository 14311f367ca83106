"""Networks that come with the package: small releases, opened by name."""

import dataclasses
import json
import shutil
import stat
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import nin_jax
from experiments import export
from nin_jax.errors import CheckpointError, ConfigError, DataError, UserError
from nin_jax.files import read_json
from nin_jax.pretrained import bundled, model_card
from nin_jax.pretrained.trained import load_run
from tests.helpers import run_main, run_module

MOST_BYTES = 6_000_000  # of all bundled networks


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    learning = ('--config.model.class_bias=1', '--config.optim.lr=0.01')
    assert run_main(f'--workdir={folder}', *learning).returncode == 0
    return folder


@pytest.fixture(scope='module')
def small(workdir, tmp_path_factory):
    """A release of the tiny run, as the bundled ones are made."""
    out = tmp_path_factory.mktemp('weights') / 'tiny'
    result = run_module('experiments.export', f'--workdir={workdir}', f'--out={out}', '--bundle')
    assert result.returncode == 0 and result.stderr == '', result.stderr
    return out


@pytest.fixture
def as_bundled(small, monkeypatch, tmp_path):
    monkeypatch.setattr(bundled, 'WEIGHTS', small.parent)
    monkeypatch.chdir(tmp_path)


def images(count=7, shape=(28, 28, 1)):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def test_listing_needs_no_jax():
    code = 'import sys, nin_jax; print(nin_jax.list_models()); assert "jax" not in sys.modules'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['cifar10', 'cifar100', 'mnist']"


def test_a_bundled_release_is_small_and_readable(small, workdir):
    assert sorted(p.name for p in small.iterdir()) == [
        'README.md',
        'config.json',
        'model.safetensors',
    ]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o644 for p in small.iterdir())
    arrays = load_file(small / 'model.safetensors')
    kinds = {name.split('.')[-1]: array.dtype for name, array in arrays.items()}
    assert kinds == {'kernel': np.float16, 'bias': np.float32}
    card = (small / 'README.md').read_text()
    assert 'float16 kernels' in card and 'stablehlo' not in card and 'onnx' not in card
    error = read_json(workdir / 'summary.json')['final_error']
    assert f'{error:.2%}' in card and 'minutes' in card


def test_it_is_the_run_rounded(small, workdir):
    ours, theirs = nin_jax.load(small), load_run(workdir)
    kernel = theirs.params['mlpconvs']['mlpconv1']['layers']['conv']['kernel']
    stored = ours.params['mlpconvs']['mlpconv1']['layers']['conv']['kernel']
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, np.asarray(kernel).astype(np.float16))
    assert not np.array_equal(stored, kernel)
    scores = theirs(images())
    np.testing.assert_allclose(ours(images()), scores, rtol=0, atol=3e-3 * np.abs(scores).max())


def test_load_by_name(small, as_bundled):
    assert nin_jax.list_models() == ['tiny']
    np.testing.assert_array_equal(nin_jax.load('tiny')(images()), nin_jax.load(small)(images()))


def test_a_folder_of_ones_own_comes_first(small, workdir, as_bundled, tmp_path):
    (tmp_path / 'tiny').mkdir()  # holds nothing: the bundled network
    bundle = nin_jax.load('tiny')(images())
    shutil.copytree(workdir, tmp_path / 'tiny', dirs_exist_ok=True)
    own = nin_jax.load('tiny')(images())
    np.testing.assert_array_equal(own, load_run(workdir)(images()))
    assert not np.array_equal(own, bundle)


def test_an_unknown_name_gets_a_suggestion(as_bundled):
    with pytest.raises(CheckpointError, match=r"'tinny' does not exist.*did you mean 'tiny'"):
        nin_jax.load('tinny')


@pytest.mark.parametrize(('before', 'after', 'refused'), [(100, 102, False), (100, 103, True)])
def test_float16_may_cost_two_images_of_ten_thousand(monkeypatch, before, after, refused):
    labels = np.arange(10_000) % 2
    split = types.SimpleNamespace(images=np.arange(10_000), labels=labels)
    monkeypatch.setattr('experiments.cli.eval_images', lambda *_: split)

    class Fake:
        def __init__(self, wrong):
            self.wrong = wrong

        def __call__(self, indices):
            right = np.eye(2)[labels[indices]]
            return np.where(indices[:, None] < self.wrong, 1 - right, right)

    if refused:
        with pytest.raises(UserError, match=r'1\.00% to 1\.03%'):
            export.check_rounding(Fake(before), Fake(after), None)
    else:
        found = export.check_rounding(Fake(before), Fake(after), None)
        assert found['scored_error'] == after / 10_000 and found['scored'] == 10_000


def test_predict_without_workdir(tmp_path):
    Image.new('RGB', (40, 40), 'green').save(tmp_path / 'photo.png')
    result = run_module('experiments.predict', tmp_path / 'photo.png')
    assert result.returncode == 0 and result.stdout.count('%') == 5


def test_all_together_are_small():
    files = [p for p in bundled.WEIGHTS.rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize('name', nin_jax.list_models())
def test_the_cards_error_is_that_of_the_test_images(name, data_dir):
    from nin_jax.data.pipeline import open_source

    trained = nin_jax.load(name)
    trained.config.data.dir = data_dir
    split = open_source(trained.config, 'test').load()
    wrong = int((trained(split.images).argmax(-1) != split.labels).sum())
    card = read_json(bundled.WEIGHTS / name / 'config.json')['provenance']
    assert abs(wrong - card['scored_error'] * len(split.labels)) <= 1  # of another machine's sums


@pytest.mark.parametrize(
    'given', [images() / np.float32(255), images(shape=(28, 28, 3)), images()[0], images(0)]
)
def test_images_that_are_not_uint8_of_its_channels_are_refused(small, given):
    network = nin_jax.load(small)
    for compute in (network, network.features):
        with pytest.raises(DataError, match=r'uint8 \(N, H, W, 1\)'):
            compute(given)


def test_the_card_of_a_fine_tuned_network_names_its_source_but_no_path():
    network = nin_jax.load('mnist')
    config = network.config.copy_and_resolve_references()
    config.init.weights = '/home/me/runs/authors'
    found = json.loads((bundled.WEIGHTS / 'mnist' / 'config.json').read_text())['provenance']
    card = model_card.text(dataclasses.replace(network, config=config), found)
    assert "fine-tuned from 'authors', whose terms apply" in card and '/home/me' not in card


def test_images_that_are_too_small_for_the_strides_are_refused():
    network = nin_jax.load('mnist')
    config = network.config.copy_and_resolve_references()
    config.model.blocks.mlpconv1.kernel, config.model.blocks.mlpconv1.stride = 11, 4
    strided = dataclasses.replace(network, config=config)
    with pytest.raises(ConfigError, match='8x40'):
        strided(np.zeros((1, 8, 40, 1), np.uint8))


def test_one_layer_can_be_named_alone():
    network, images = nin_jax.load('mnist'), np.zeros((2, 28, 28, 1), np.uint8)
    assert list(network.features(images, 'conv1')) == ['conv1']
