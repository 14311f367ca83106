"""Preprocessing on first use: each image as if all had been preprocessed before the first step."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from nin_jax.data.batches import example_order, random_streams
from nin_jax.data.deferred import Deferred
from nin_jax.data.preprocess import fit
from nin_jax.data.sources import Arrays
from nin_jax.devices import mesh_of
from tests.helpers import ROOT

IMAGES = 600


@pytest.fixture(scope='module')
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    return Arrays(images, np.arange(IMAGES, dtype=np.int32) % 10, ('a',) * 10)


@pytest.fixture(scope='module')
def fitted(arrays):
    return jax.device_put(fit('gcn_zca', arrays.images))


def deferred(arrays, fitted, devices=1):
    return Deferred(arrays, fitted, mesh_of(jax.devices()[:devices]), seed=3, batch_size=32)


@pytest.mark.parametrize('first_step', [0, 17])  # step 18 begins the second epoch
def test_only_the_images_of_the_call(arrays, fitted, first_step):
    split, expected = deferred(arrays, fitted), np.asarray(fitted(arrays.images))
    feed, done = split.feed(0, first_step), set()
    order_key, *_ = random_streams(3, 0)
    for call in range(4):
        examples = feed(2)
        start = first_step + 2 * call
        done |= set(np.asarray(example_order(order_key, start, 2, 32, IMAGES)).ravel().tolist())
        rows = sorted(done)
        np.testing.assert_allclose(examples.images[np.array(rows)], expected[rows], atol=1e-5)
        others = np.setdiff1d(np.arange(IMAGES), rows)
        assert not np.asarray(examples.images[others]).any()
        np.testing.assert_array_equal(examples.labels, arrays.labels)


def test_orders_are_computed_before_the_first_call(arrays, fitted, monkeypatch):
    feed = deferred(arrays, fitted).feed(0, 17)

    def too_late(*args):
        raise AssertionError('an order was computed between calls')

    monkeypatch.setattr('nin_jax.data.batches.epoch_order', too_late)
    for _ in range(2 * IMAGES // 64 + 1):  # from step 17 to the third epoch
        examples = feed(2)
    np.testing.assert_allclose(examples.images, np.asarray(fitted(arrays.images)), atol=1e-5)


def test_evaluation_preprocesses_all(arrays, fitted):
    split = deferred(arrays, fitted)
    split.feed(0, 0)(1)
    (part,) = split.parts()
    np.testing.assert_allclose(part.images, np.asarray(fitted(arrays.images)), atol=1e-5)


def test_shapes_are_those_of_the_calls(arrays, fitted):
    split = deferred(arrays, fitted)
    for shapes, examples in (
        (split.feed_shapes(2), split.feed(0, 0)(2)),
        (split.part_shapes()[0], split.parts()[0]),
    ):
        described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), (shapes, examples))
        assert described[0] == described[1]


def images_on(devices):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    split = Arrays(images, np.zeros(IMAGES, np.int32), ('a',) * 10)
    placed = jax.device_put(
        fit('gcn_zca', images), jax.NamedSharding(mesh_of(jax.devices()), jax.P())
    )
    return np.asarray(deferred(split, placed, devices).parts()[0].images)


@pytest.mark.processes
def test_devices_share_the_work(tmp_path, arrays, fitted):
    """Three devices do not divide the 256 images of one program."""
    program = (
        'import numpy, sys; from tests.data.test_deferred import images_on; '
        'numpy.save(sys.argv[1], images_on(3))'
    )
    env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}
    path = tmp_path / 'images.npy'
    subprocess.run([sys.executable, '-c', program, path], check=True, cwd=ROOT, env=env)
    np.testing.assert_allclose(np.load(path), np.asarray(fitted(arrays.images)), atol=1e-5)
