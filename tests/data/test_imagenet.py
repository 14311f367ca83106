"""The ImageNet NIN and its data: photographs of many sizes, from folders or from TFDS."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from nin_jax import commands
from nin_jax.config import block
from nin_jax.data import cache, catalog, photos
from nin_jax.data.photos import cut, open_split
from nin_jax.data.pipeline import load_data
from nin_jax.data.preprocess import mean_color
from nin_jax.devices import make_mesh
from nin_jax.errors import ConfigError, DataError
from nin_jax.models.factory import layer_blocks
from nin_jax.models.nin import count_parameters
from nin_jax.models.summary import layer_table
from nin_jax.plan import make_plan
from nin_jax.train.trainer import make_setup
from tests.helpers import assemble, load_page, tiny_config

SIZES = [(40, 60), (60, 40), (33, 33), (20, 90), (64, 48)]  # height, width
CLASSES = ('ant', 'bee', 'cow')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """<root>/insects/train/ant/0.jpg ...: red says a photograph's class, green its number."""
    root = tmp_path_factory.mktemp('photos')
    for part, count in (('train', 10), ('validation', 4)):
        for k, name in enumerate(CLASSES):
            here = root / 'insects' / part / name
            here.mkdir(parents=True)
            for i in range(count - k):  # classes of several sizes
                height, width = SIZES[i % len(SIZES)]
                picture = np.full((height, width, 3), (80 * k + 20, 20 * i + 10, 0), np.uint8)
                picture[..., 2] = np.linspace(0, 255, width, dtype=np.uint8)
                kind = ('jpg', 'png')[i % 2]
                Image.fromarray(picture).save(here / f'{i:03}.{kind}', quality=95)
    return root


@pytest.fixture
def insects(monkeypatch):
    entry = dataclasses.replace(
        catalog.DATASETS['imagenet2012'],
        num_classes=3,
        image_shape=(24, 24, 3),
        short_side=32,
        held_out=6,
    )
    monkeypatch.setitem(catalog.DATASETS, 'insects', entry)
    return entry


def config_of(folder):
    config = tiny_config()
    config.data.name, config.data.dir, config.data.limit = 'insects', str(folder), 0
    config.preprocess.recipe = 'mean'
    config.augment.flip = True
    config.optim.lr = 0.001
    config.train.batch_size, config.eval.batch_size = 8, 4
    config.train.duration, config.checkpoint.every = '8steps', '2steps'
    config.train.steps_per_call = 2
    rows = dict(mlpconv1=block((8, 8), kernel=7, stride=2, pool='max', init_std=()))
    rows['mlpconv2'] = block((8, 3), kernel=3, init_std=())
    config.model.blocks = ConfigDict(rows)
    return config


@pytest.mark.parametrize('wrong', ['other names', 'no images'])
def test_validation_folders_that_do_not_fit_are_refused(insects, folder, tmp_path, wrong):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for i, name in enumerate(CLASSES):
        here = tmp_path / 'insects' / 'validation' / name
        if wrong == 'other names':
            here.rename(here.with_name(str(i)))
        else:
            shutil.rmtree(here)
            here.mkdir()
    words = {'other names': 'different names', 'no images': "data.eval='test'"}[wrong]
    with pytest.raises(DataError, match=words):
        load_data(config_of(tmp_path))


# ---- the network ----------------------------------------------------------------------------


def test_layers_of_the_page():
    config = load_page('imagenet')
    blocks = layer_blocks(config, 1000)
    table = layer_table(blocks, (224, 224, 3))
    sizes = {row.name.split()[0]: row.shape for row in table}
    assert {name: shape[0] for name, shape in sizes.items()} == {
        **dict.fromkeys(('conv1', 'cccp1', 'cccp2'), 54),
        **dict.fromkeys(('pool1', 'conv2', 'cccp3', 'cccp4'), 27),
        **dict.fromkeys(('pool2', 'conv3', 'cccp5', 'cccp6'), 13),
        **dict.fromkeys(('pool3', 'conv4', 'cccp7', 'cccp8'), 6),
    }
    assert sizes['cccp8'] == (6, 6, 1000)
    assert sum(row.parameters for row in table) == 7_595_176
    assert 1.09e9 < sum(row.macs for row in table) < 1.11e9
    assert [row.stride for row in table if row.name.startswith('pool')] == [8, 16, 32]
    mesh = make_mesh(1)
    plan = make_plan(config, 1_281_167, short_calls=False)
    setup, init_state = make_setup(config, plan, mesh, (224, 224, 3), 1000)
    params = jax.eval_shape(init_state, 0).params
    assert count_parameters(params) == 7_595_176
    logits, maps = jax.eval_shape(
        lambda p: run_model(setup, p), params
    )  # what the table says is what the network does
    assert logits.shape == (2, 1000) and maps.shape == (2, 6, 6, 1000)


def run_model(setup, params):
    from nin_jax.train.step import apply

    return apply(setup.model, params, np.zeros((2, 224, 224, 3), np.float32))


def test_a_local_block_does_not_stride():
    from nin_jax.config import validate

    config = load_page('imagenet')
    config.model.blocks.mlpconv1.local = True
    with pytest.raises(ConfigError, match=r'mlpconv1\.stride=4: must be 1 or more, and 1 if local'):
        validate(config)


# ---- photographs ----------------------------------------------------------------------------


def test_splits_of_a_folder(folder, insects):
    train, valid, test = (open_split('insects', s, str(folder)) for s in ('train', 'valid', 'test'))
    assert (len(train), len(valid), len(test)) == (21, 6, 9)
    assert len(open_split('insects', 'train+valid', str(folder))) == 27
    assert train.class_names == CLASSES
    images, labels = train.take(np.arange(6), None)
    assert images.shape == (6, 24, 24, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2] and labels.dtype == np.int32  # classes alternate
    assert np.abs(images[..., 0].mean((1, 2)) - (80 * labels + 20)).max() < 4
    assert np.abs(images[3:, ..., 1].mean((1, 2)) - 30).max() < 4  # the second of each class
    seen = [train.take(np.array([i]), None)[0].mean((0, 1, 2)).tolist() for i in range(21)]
    seen += [valid.take(np.array([i]), None)[0].mean((0, 1, 2)).tolist() for i in range(6)]
    assert len({tuple(np.round(s[:2])) for s in seen}) == 27  # each photograph once
    assert len(open_split('insects', 'train+test', str(folder), limit=23)) == 23
    assert len(open_split('insects', 'test', str(folder)).load().labels) == 9


def test_cutting():
    ramp_HWC = np.add.outer(np.arange(64), np.arange(128))[..., None].repeat(3, 2).astype(np.uint8)
    middle = cut(ramp_HWC, 32, (24, 24), None)  # halved to 32 x 64, cut from row 4, column 20
    assert middle.shape == (24, 24, 3) and abs(int(middle[0, 0, 0]) - (2 * 4 + 2 * 20 + 1)) <= 1
    keys = [np.array([seed, position]) for seed in range(2) for position in range(200)]
    corners = []
    for key in keys:
        one = cut(ramp_HWC, 32, (24, 24), key)
        np.testing.assert_array_equal(one, cut(ramp_HWC, 32, (24, 24), key))
        corners.append(int(one[0, 0, 0]))
    assert min(corners) < 8 and max(corners) > 2 * (8 + 40) - 8  # from corner to corner
    assert corners[:200] != corners[200:]
    assert cut(ramp_HWC[:24, :24], 24, (24, 24), keys[0]).shape == (24, 24, 3)  # no room


def test_mean_color_is_taken_off():
    prep = mean_color((10, 20, 30))
    out = prep(np.full((1, 2, 5, 3), 40, np.uint8))
    np.testing.assert_array_equal(out[0, 1, 4], [30, 20, 10])


# ---- runs -----------------------------------------------------------------------------------


def final_digest(workdir):
    return json.loads((workdir / 'checkpoints' / '8' / 'meta' / 'metadata').read_text())['digest']


def test_a_run_on_a_folder_resumes_exactly(folder, insects, tmp_path, capsys):
    config = config_of(folder)
    whole, cut_off = tmp_path / 'whole', tmp_path / 'cut_off'
    assert commands.train(config, whole, command='') == 0
    assert '27 training images' in capsys.readouterr().out
    shutil.copytree(whole, cut_off)
    (cut_off / 'summary.json').unlink()
    shutil.rmtree(cut_off / 'checkpoints' / '8')
    assert commands.train(config, cut_off, command='') == 0
    assert 'resuming at step 6' in capsys.readouterr().out
    assert final_digest(cut_off) == final_digest(whole)
    assert commands.evaluate(config, whole, None) == 0
    summary = json.loads((whole / 'summary.json').read_text())
    assert f'top-1 error {summary["final_error"]:.2%}' in capsys.readouterr().out


@pytest.fixture
def mock_imagenet(monkeypatch):
    """What TFDS makes up for ImageNet: 6 photographs a part."""
    monkeypatch.setattr(cache, 'prepared', lambda *_: True)
    with tfds.testing.mock_data(num_examples=6, policy=tfds.testing.MockPolicy.USE_CODE):
        yield


def test_tfds_mock_data(tmp_path, mock_imagenet):
    train = open_split('imagenet2012', 'train', str(tmp_path))
    assert len(train) == 3 and len(train.class_names) == 1000
    assert len(open_split('imagenet2012', 'test', str(tmp_path))) == 6
    keys = np.array([[0, 0], [0, 1]])
    images, labels = train.take(np.arange(2), keys)
    assert images.shape == (2, 224, 224, 3) and images.std() > 1 and labels.min() >= 0
    again, _ = train.take(np.arange(2), keys)
    np.testing.assert_array_equal(images, again)
    assert (images != train.take(np.arange(2), None)[0]).any()


@pytest.mark.slow
def test_the_page_on_tfds_mock_data(tmp_path, mock_imagenet):
    """One step of the real network, 224 x 224."""
    config = load_page('imagenet')
    config.data.dir, config.data.limit = str(tmp_path / 'tfds'), 4
    config.train.batch_size, config.train.duration, config.eval.batch_size = 2, '1step', 2
    assert commands.train(config, tmp_path / 'run', command='') == 0
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['parameters'] == 7_595_176 and summary['eval_images'] == 4


# ---- mistakes -------------------------------------------------------------------------------


def test_mistakes(folder, insects, tmp_path):
    with pytest.raises(DataError, match=r'^insects is not in .*: put its pictures into'):
        open_split('insects', 'train', str(tmp_path))
    config = config_of(folder)
    config.data.residency = 'device'
    with pytest.raises(ConfigError, match="'device': insects is read from the disk"):
        assemble(config)
    config.data.residency, config.preprocess.recipe = 'auto', 'gcn_zca'
    with pytest.raises(ConfigError, match="'gcn_zca': it is fitted to images in memory"):
        assemble(config)
    broken = tmp_path / 'insects'
    shutil.copytree(folder / 'insects', broken)
    (broken / 'train' / 'bee' / '000.jpg').write_bytes(b'no picture')
    with pytest.raises(DataError, match=r"bee/000\.jpg' is not a supported image"):
        commands.train(config_of(tmp_path), tmp_path / 'run', command='')
    shutil.rmtree(broken / 'train' / 'bee')
    with pytest.raises(DataError, match='has 2 classes, 3 are expected'):
        open_split('insects', 'train', str(tmp_path))
    assert photos.open_split('insects', 'test', str(tmp_path)).class_names == CLASSES
