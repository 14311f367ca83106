"""The authors' own weights in our pipeline: our GCN, our ZCA, our network, real test images."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nin_jax.data import datasets
from nin_jax.pretrained import import_caffe, trained
from nin_jax.visualize import cam
from tests.helpers import run_main, run_module, summary

FLAGS = ('--config.model.blocks.mlpconv2.pool=avg', '--mode=eval')
PAGE = 'experiments/configs/cifar10.py'


pytestmark = pytest.mark.heavy


@pytest.fixture(scope='module')
def caffemodel():
    if 'NIN_CAFFEMODEL' not in os.environ:
        pytest.skip("NIN_CAFFEMODEL does not name the authors' cifar10_nin.caffemodel")
    return os.environ['NIN_CAFFEMODEL']


@pytest.fixture(scope='module')
def authors(caffemodel, data_dir, tmp_path_factory):
    """The folder of the imported run."""
    folder = tmp_path_factory.mktemp('authors')
    words = [f'--caffemodel={caffemodel}', f'--workdir={folder}', f'--data_dir={data_dir}']
    result = run_module('experiments.pretrained', *words)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert f'--workdir={folder} --mode=eval' in result.stdout
    again = run_module('experiments.pretrained', *words)
    assert again.returncode == 2 and 'holds a run already' in again.stderr
    return folder


@pytest.fixture(scope='module')
def run(authors):
    return trained.load_run(authors)


@pytest.fixture(scope='module')
def test_split(data_dir):
    return datasets.load_arrays('cifar10', 'test', data_dir)


def test_an_ordinary_run(authors, run):
    s = summary(authors)
    assert s['status'] == 'imported' and s['step'] == run.step == 0 and s['parameters'] == 966_986
    assert s['reason'].startswith('weights of cifar10_nin.caffemodel, SHA-256 ')
    assert json.loads((authors / 'config.json').read_text())['model.blocks.mlpconv2.pool'] == 'avg'
    assert run.class_names[:4] == ('airplane', 'automobile', 'bird', 'cat')


def test_first_scores_and_errors_are_the_published_networks(run, test_split):
    """Reference: the same weights in numpy alone, in float64."""
    logits, _ = run.score(test_split.images[:1000])
    reference = [21.9486, 17.7723, 22.4544, 40.8645, 15.3580]
    reference += [24.2198, 19.7033, 14.3532, 12.3609, 12.7585]
    np.testing.assert_allclose(logits[0], reference, atol=0.01, rtol=0)
    assert abs((logits.argmax(-1) != test_split.labels[:1000]).sum() - 106) <= 1


@pytest.mark.slow
def test_all_ten_thousand(authors, data_dir):
    result = run_main(f'--workdir={authors}', f'--config.data.dir={data_dir}', *FLAGS, page=PAGE)
    assert result.returncode == 0, result.stderr
    wrong = int(result.stdout.split(' of 10,000 wrong')[0].split()[-1].replace(',', ''))
    assert abs(wrong - 1043) <= 2


OBJECTS = {
    'truck': (12, 16),
    'horse': (16, 140),
    'frog': (80, 24),
    'ship': (76, 84),
    'automobile': (84, 148),
}


def test_each_object_of_a_larger_picture_lights_up(run, test_split):
    """Five test images (the first of their classes) on a blurred ground, scored in one pass."""
    ground = Image.fromarray(test_split.images[3]).resize((192, 128), Image.Resampling.BICUBIC)
    picture = np.array(ground.filter(ImageFilter.GaussianBlur(20)), np.float32)
    ramp = np.minimum(np.minimum(np.arange(1, 33), np.arange(32, 0, -1)) / 6, 1)
    opacity = np.outer(ramp, ramp)[..., None]
    for name, (top, left) in OBJECTS.items():
        first = np.flatnonzero(test_split.labels == run.class_names.index(name))[0]
        here = picture[top : top + 32, left : left + 32]
        here += opacity * (test_split.images[first] - here)
    picture = picture.astype(np.uint8)

    _, maps = run.score(picture[None])
    evidence = cam.lay_over(cam.evidence(maps[0]), picture.shape[:2], 1.0, run.stride)
    found = {run.class_names[k]: box for k, box in cam.find_objects(evidence, smallest=8)}
    assert set(found) == set(OBJECTS)
    for name, (top, left) in OBJECTS.items():
        box = found[name]
        assert top < (box[0] + box[2]) / 2 < top + 32 and left < (box[1] + box[3]) / 2 < left + 32


def test_fill_goes_from_first_to_last_and_checks_shapes():
    layers = {n: {'kernel': np.zeros((1, 1, 2, 2)), 'bias': np.zeros(2)} for n in ('cccp1', 'conv')}
    params = {'mlpconvs': {'mlpconv1': {'layers': layers}}}
    new = [(np.full((1, 1, 2, 2), v), np.full(2, v)) for v in (1.0, 2.0)]
    filled = import_caffe.fill(params, new)['mlpconvs']['mlpconv1']['layers']
    assert filled['conv']['bias'][0] == 1 and filled['cccp1']['kernel'][0, 0, 0, 0] == 2
    assert layers['conv']['bias'][0] == 0  # the tree given stays as it is
    with pytest.raises(ValueError, match='mlpconv1 cccp1 is'):
        import_caffe.fill(params, [new[0], (np.zeros((3, 3, 2, 2)), np.zeros(2))])
    with pytest.raises(ValueError, match='shorter'):
        import_caffe.fill(params, new[:1])
