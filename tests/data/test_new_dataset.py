"""WORKSPACE.md's worked example of a new dataset, done as it says, on made-up images."""

import gzip
import re
import shlex
import struct

import numpy as np
import pytest
from tensorflow_datasets.image_classification import mnist

from nin_jax import commands
from nin_jax.data import catalog, datasets
from nin_jax.data.prepare import prepare
from tests.helpers import ROOT, summary, tiny_config

TEXT = (ROOT / 'WORKSPACE.md').read_text().split('## A new dataset')[1].split('\n## ')[0]
CODE, BASH = (re.search(rf'```{kind}\n(.*?)```', TEXT, re.S)[1] for kind in ('python', 'bash'))
SIZES = {'train': 80, 't10k': 40}


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Archives in the official format with few images, bright ones for odd labels."""
    monkeypatch.setattr(mnist, '_TRAIN_EXAMPLES', SIZES['train'])
    monkeypatch.setattr(mnist, '_TEST_EXAMPLES', SIZES['t10k'])
    folder = tmp_path / 'archives'
    folder.mkdir()
    for part, count in SIZES.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.random.default_rng(0).integers(0, 128, (count, 28, 28), np.uint8)
        images += 127 * (labels % 2)[:, None, None]
        for name, header, array in (
            (f'{part}-images-idx3-ubyte.gz', struct.pack('>4i', 2051, count, 28, 28), images),
            (f'{part}-labels-idx1-ubyte.gz', struct.pack('>2i', 2049, count), labels),
        ):
            (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_worked_example(archives, tmp_path, monkeypatch, capsys):
    digits = tiny_config()  # stands in for the quickstart's network, which takes a minute
    digits.train.duration = '4steps'
    assert commands.train(digits, tmp_path / 'runs' / 'quickstart', command='') == 0

    monkeypatch.setattr(catalog, 'DATASETS', dict(catalog.DATASETS))
    exec(CODE, vars(catalog))
    prepare_command, train_command = (shlex.split(line) for line in BASH.splitlines())
    name = prepare_command[3]
    prepare(name, str(tmp_path / 'tfds'), str(archives))
    assert 'A SAMPLE' in capsys.readouterr().out
    split = datasets.load_arrays(name, 'train', str(tmp_path / 'tfds'))
    assert len(split.class_names) == 10 and split.class_names[0] == 'T-shirt/top'
    np.testing.assert_array_equal(split.images.mean((1, 2, 3)) > 127, split.labels % 2)

    flags = dict(word.removeprefix('--').split('=', 1) for word in train_command[3:])
    config = tiny_config()
    assert flags.pop('config') == 'experiments/configs/quickstart.py'
    folder = tmp_path / flags.pop('workdir')
    overrides = {key.removeprefix('config.'): value for key, value in flags.items()}
    assert set(overrides) == {'data.name', 'init.weights', 'optim.backbone_lr'}
    overrides['optim.backbone_lr'] = float(overrides['optim.backbone_lr'])
    config.update_from_flattened_dict(overrides)
    config.train.duration = '2steps'
    config.init.weights = str(tmp_path / config.init.weights)
    config.data.dir = str(tmp_path / 'tfds')
    assert commands.train(config, folder, command='') == 0
    assert summary(folder)['config']['data.name'] == name and summary(folder)['eval_images'] == 40
