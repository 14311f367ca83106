"""The pictures that TensorBoard shows of a run in progress."""

import io
import struct

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from nin_jax.commands import train
from nin_jax.models.nin import apply
from nin_jax.train.pictures import SIDE, class_maps, predicted_maps, shown_examples, tile
from tests.helpers import assemble, tiny_config


@pytest.mark.parametrize('count', [1, 3])
def test_the_maps_are_those_of_the_predicted_classes(count):
    config = tiny_config()
    config.eval.pictures = count
    run = assemble(config)
    weights, examples = run.init_state(0).weights, run.eval.examples
    got_NHW = predicted_maps(weights, shown_examples(run), run.preprocess, setup=run.setup)
    logits_BK, maps_BHWK = apply(run.setup.model, weights, run.preprocess(examples.images[:count]))
    expected_NHW = [maps_BHWK[i, ..., k] for i, k in enumerate(logits_BK.argmax(-1))]
    np.testing.assert_allclose(got_NHW, expected_NHW, rtol=1e-5, atol=1e-6)


def test_images_stand_over_their_maps():
    config = tiny_config()
    config.eval.pictures = 3
    run = assemble(config)
    weights, images = run.init_state(0).weights, np.asarray(run.eval.examples.images)
    shown = shown_examples(run)
    drawn_HWC = class_maps(run, weights, shown)
    assert drawn_HWC.shape == (2 * SIDE, 3 * SIDE, 3) and drawn_HWC.dtype == np.uint8
    maps_NHW = predicted_maps(weights, shown, run.preprocess, setup=run.setup)
    for i in range(3):
        columns = slice(i * SIDE, (i + 1) * SIDE)
        np.testing.assert_array_equal(drawn_HWC[:SIDE, columns], tile(images[i]))
        np.testing.assert_array_equal(
            drawn_HWC[SIDE:, columns], tile(jax.device_get(maps_NHW[i, ..., None]))
        )


def test_a_tile_goes_from_black_to_white_and_a_flat_one_is_black():
    ramp_HW1 = np.linspace(-1, 3, SIDE * SIDE).reshape(SIDE, SIDE, 1)
    drawn_HWC = tile(ramp_HW1)
    assert drawn_HWC.min() == 0 and drawn_HWC.max() == 255
    np.testing.assert_array_equal(drawn_HWC, np.sort(drawn_HWC.ravel()).reshape(drawn_HWC.shape))
    assert not tile(np.ones((4, 4, 3))).any()


def test_a_run_writes_one_at_each_evaluation(tmp_path):
    config = tiny_config()
    config.eval.pictures, config.eval.every = 2, '2steps'
    config.train.duration, config.train.steps_per_call = '4steps', 2
    assert train(config, tmp_path / 'run', command='') == 0
    drawn = [
        (event.step, Image.open(io.BytesIO(value.image.encoded_image_string)).size)
        for path in (tmp_path / 'run' / 'tensorboard').iterdir()
        for event in events(path)
        for value in event.summary.value
        if value.tag == 'eval/class_maps'
    ]
    assert drawn == [(2, (2 * SIDE, 2 * SIDE)), (4, (2 * SIDE, 2 * SIDE))]


def events(path):
    """The records of an event file: a length, its checksum, the event and its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from('<Q', content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += length + 16
