"""Releases: a program without this code, weights that load again, damage that is reported."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import nin_jax
from nin_jax.data.preprocess import Preprocess
from nin_jax.errors import CheckpointError
from nin_jax.files import file_sha256, read_json, write_json
from nin_jax.models.nin import NIN, Block
from nin_jax.pretrained import model_card, stablehlo, trained
from tests.helpers import ROOT, metrics, run_main, run_module, tiny_config

# What somebody without this project types; cwd is elsewhere.
STRANGER = """
import sys
import jax.export, numpy as np
program = jax.export.deserialize(open('model.stablehlo', 'rb').read())
images = np.load('images.npy')
logits, maps = program.call(images)
one, _ = program.call(images[:1])
np.savez('scores.npz', logits=logits, maps=maps, one=one)
assert 'nin_jax' not in sys.modules
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'seed0'
    learning = ('--config.model.class_bias=1', '--config.optim.lr=0.01')
    assert run_main(f'--workdir={folder}', *learning).returncode == 0
    return folder


@pytest.fixture(scope='module')
def released(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp('release') / 'tiny'
    result = run_module('experiments.export', f'--workdir={workdir}', f'--out={out}', '--score')
    assert result.returncode == 0 and result.stderr == '', result.stderr
    wrong = metrics(workdir, 'eval')[-1]['errors']
    assert f'the exported program: {wrong} of 256 wrong' in result.stdout
    return out


@pytest.fixture
def copy(released, tmp_path):
    return pathlib.Path(shutil.copytree(released, tmp_path / 'copy'))


def images(count=7, shape=(28, 28, 1)):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def test_the_program_runs_without_this_project(workdir, released, tmp_path):
    shutil.copy(released / 'model.stablehlo', tmp_path)
    np.save(tmp_path / 'images.npy', images())
    result = subprocess.run(
        [sys.executable, '-P', '-c', STRANGER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    scores = np.load(tmp_path / 'scores.npz')
    logits, maps = trained.load_run(workdir).score(images())
    np.testing.assert_allclose(scores['logits'], logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores['maps'], maps, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores['one'], logits[:1], rtol=0, atol=1e-6)
    assert np.ptp(logits, axis=0).min() > 1e-3  # not all the same anyway


def test_the_program_is_for_every_platform(released):
    program = jax.export.deserialize((released / 'model.stablehlo').read_bytes())
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    assert [str(a) for a in program.in_avals] == ['uint8[b,28,28,1]']


def test_one_line_brings_the_same_network_back(workdir, released):
    expected = trained.load_run(workdir)
    for path in (workdir, released, released / 'model.safetensors', str(released / 'config.json')):
        network = nin_jax.load(path)
        np.testing.assert_array_equal(network(images()), expected(images()))
    for ours, theirs in zip(network.score(images()), expected.score(images()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert network.class_names == expected.class_names and network.stride == expected.stride
    assert network.score(images(1, (40, 56, 1)))[1].shape == (1, 10, 14, 10)  # any size
    assert network.model == expected.model


def test_weights_have_the_authors_names(released):
    arrays = load_file(released / 'model.safetensors')
    layers = ('conv1', 'cccp1', 'cccp2', 'conv2', 'cccp3', 'cccp4')
    assert set(arrays) == {f'{layer}.{kind}' for layer in layers for kind in ('kernel', 'bias')}
    assert arrays['conv2.kernel'].shape == (3, 3, 8, 8)


def test_the_card_says_what_the_records_say(workdir, released):
    text = (released / 'README.md').read_text()
    error = metrics(workdir, 'eval')[-1]['error']
    assert f'| test error | {error:.2%} (seed 0, by the run itself); {error:.2%} (the ex' in text
    assert "train.duration = '24steps'" in text and '1,098 parameters' in text
    assert str(workdir) not in text + (released / 'config.json').read_text()
    assert max(map(len, text.splitlines())) < 120


def test_the_card_knows_other_seeds_and_steps(workdir, tmp_path):
    final = metrics(workdir, 'eval')[-1]['error']
    for name, change in (
        ('a', {'seed': 1}),
        ('b', {'seed': 2}),
        ('c', {'seed': 3, 'optim.lr': 0.05}),
    ):
        shutil.copytree(workdir, tmp_path / name)
        path = tmp_path / name / 'summary.json'
        summary = read_json(path)
        summary['config'] |= change
        write_json(path, summary | {'final_error': 0.5 if name == 'b' else 0.25})
    found = model_card.provenance(tmp_path / 'a', 24)
    assert found['other_errors'] == [0.5] and found['error'] == final
    network = trained.load_run(tmp_path / 'a')
    text = model_card.text(network, found | {'largest_difference': 0.0})
    mean, deviation = 100 * (final + 0.5) / 2, 100 * abs(final - 0.5) / 2**0.5
    assert f'over 2 seeds {mean:.2f} ± {deviation:.2f} %' in text
    assert (
        model_card.provenance(tmp_path / 'a', 16)['error'] == metrics(workdir, 'eval')[1]['error']
    )
    earlier = model_card.provenance(tmp_path / 'a', 17)
    assert earlier['error'] is None and earlier['other_errors'] == []  # those are final errors


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda f: flip(f / 'model.safetensors'), 'is damaged (its SHA-256'),
        (lambda f: (f / 'model.safetensors').write_bytes(b''), 'is damaged (its SHA-256'),
        (lambda f: (f / 'model.safetensors').unlink(), 'is missing: get the release again'),
        (lambda f: (f / 'config.json').unlink(), 'holds no config.json'),
        (lambda f: (f / 'config.json').write_text('{"format": "x"'), 'is damaged'),
        (lambda f: (f / 'config.json').write_text('[]'), 'is damaged'),
        (lambda f: (f / 'config.json').write_text('{"optim.lr": 0.1}'), 'holds neither a release'),
        (lambda f: (f / 'config.json').write_text('{"data.name": 3}'), "is not a run's config"),
        (lambda f: flip(f / 'config.json'), 'is damaged'),
    ],
)
def test_damage_is_one_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(CheckpointError) as e:
        nin_jax.load(copy)
    assert words in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda a: a.pop('cccp2.bias'), 'lacks cccp2.bias'),
        (lambda a: a.update(extra=np.zeros(2)), 'holds extra, which'),
        (lambda a: a.update({'conv1.bias': np.zeros(9, np.float32)}), 'holds conv1.bias as'),
    ],
)
def test_foreign_weights_are_named(copy, change, words):
    """With right digests: somebody made the files anew."""
    arrays = load_file(copy / 'model.safetensors')
    change(arrays)
    save_file(arrays, copy / 'model.safetensors')
    content = read_json(copy / 'config.json')
    content['sha256']['model.safetensors'] = file_sha256(copy / 'model.safetensors')
    write_json(copy / 'config.json', content)
    with pytest.raises(CheckpointError, match=words):
        nin_jax.load(copy)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ([], '--workdir is missing'),
        (['--workdir=x'], '--out is missing'),
        (['--workdir=/nowhere', '--out=nope'], "'/nowhere/config.json' is missing"),
        (['--workdir=/nowhere', f'--out={ROOT}'], 'holds files already: name another --out'),
    ],
)
def test_mistakes_of_the_command(flags, words):
    result = run_module('experiments.export', *flags)
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


@pytest.mark.parametrize(('head', 'recipe'), [('gap', 'gcn_zca'), ('fc', 'gcn_lcn')])
@pytest.mark.heavy
def test_every_head_and_recipe_exports(head, recipe):
    """Any number of images, arrays of the preprocessing inside."""
    rng, shape = np.random.default_rng(0), (12, 12, 3)
    whiten = rng.normal(size=(432, 432)).astype(np.float32) / 20
    fitted = Preprocess(recipe)
    if recipe == 'gcn_zca':
        fitted = Preprocess(recipe, 55.0, rng.normal(size=shape).astype(np.float32), whiten)
    blocks = (Block((8, 8, 4), 5, 'avg', 0.5, (), pieces=2, local=head == 'fc'),)
    blocks += (Block((6, 10), 3, 'max_rnorm', init_std=()),)
    fc = dict(fc_classes=10, image_size=shape[:2]) if head == 'fc' else {}
    model = NIN(blocks, 3, dropout_mode='convnet', class_bias=1.0, rngs=nnx.Rngs(0), **fc)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    network = trained.Trained(
        tiny_config(), 0, nnx.graphdef(model), params, fitted, ('a',) * 10, shape, 4
    )
    assert stablehlo.largest_difference(stablehlo.serialize(network), network) < 1e-5
