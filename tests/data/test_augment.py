"""Random crops and flips against a slow reference, and on several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data import augment
from nin_jax.data.augment import crop_and_flip
from nin_jax.data.batches import example_order, random_streams


def images(batch, height=8, width=10, channels=3, seed=0):
    shape = (batch, height, width, channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_crop_and_flip(key, x_BHWC, pad, flip):
    """One image at a time in numpy, driven by the same draws."""
    offset_B2, flip_B = jax.device_get(augment._draw(key, len(x_BHWC), pad))
    out_BHWC = np.zeros_like(x_BHWC)
    _, height, width, _ = x_BHWC.shape
    for image, out, (top, left), flipped in zip(x_BHWC, out_BHWC, offset_B2, flip_B, strict=True):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + top - pad, x + left - pad
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[y, width - 1 - x if flip and flipped else x] = image[from_y, from_x]
    return out_BHWC


@pytest.mark.parametrize('pad', [0, 1, 4])
@pytest.mark.parametrize('flip', [False, True])
def test_equals_the_slow_reference(pad, flip):
    key, x_BHWC = jax.random.key(3), images(64)
    fast = jax.jit(crop_and_flip, static_argnums=(2, 3))(key, x_BHWC, pad, flip)
    np.testing.assert_array_equal(fast, slow_crop_and_flip(key, x_BHWC, pad, flip))


def test_without_pad_and_flip_is_the_identity():
    x_BHWC = images(16)
    np.testing.assert_array_equal(crop_and_flip(jax.random.key(0), x_BHWC, 0, False), x_BHWC)


def test_every_offset_and_both_sides_occur_about_equally_often():
    batch, height, width, pad = 8100, 9, 9, 4
    # A value names its place, so where the middle pixel comes from tells offset and flip.
    place_HW = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    x_BHWC = jnp.broadcast_to(place_HW[None, :, :, None], (batch, height, width, 1))
    out_BHWC = np.asarray(crop_and_flip(jax.random.key(1), x_BHWC, pad, True))
    middle_B = out_BHWC[:, 4, 4, 0].astype(int)
    counts = np.bincount(middle_B, minlength=82)[1:]
    assert len(counts) == 81
    assert counts.min() > 55 and counts.max() < 145  # 100 +- 4.5 standard deviations
    right_B, left_B = out_BHWC[:, 4, 5, 0], out_BHWC[:, 4, 3, 0]
    flipped_B = (right_B == middle_B - 1) | (left_B == middle_B + 1)
    assert abs(flipped_B.mean() - 0.5) < 4.5 * 0.5 / batch**0.5


def test_alternating_flips_show_an_image_both_ways_in_two_epochs():
    """Through the batches of a run: 30 images in batches of 8, so that some straddle two epochs."""
    examples, batch, epochs = 30, 8, 4
    x_NHWC = images(examples)
    augmentation = augment.Augment(examples=examples, flip=True, alternate_flips=True)
    order_key, augment_key, _ = random_streams(seed=3, attempt=0)
    visits: dict[int, list[bool]] = {index: [] for index in range(examples)}
    for step in range(epochs * examples // batch):
        (indices_B,) = np.asarray(example_order(order_key, jnp.int32(step), 1, batch, examples))
        x_BHWC, _ = augmentation(augment_key, step, x_NHWC[indices_B], indices_B, indices_B)
        for index, x_HWC in zip(indices_B, np.asarray(x_BHWC), strict=True):
            is_mirrored = np.array_equal(x_HWC, x_NHWC[index, :, ::-1])
            assert is_mirrored or np.array_equal(x_HWC, x_NHWC[index])
            visits[index].append(is_mirrored)
    assert all(v in ([True, False] * 2, [False, True] * 2) for v in visits.values())
    assert {v[0] for v in visits.values()} == {True, False}


def test_a_random_half_is_mirrored_first():
    indices_B, zero_B = jnp.arange(8000), jnp.zeros(8000, jnp.int32)
    one_B, other_B = (
        np.asarray(augment.alternating_flips(jax.random.key(k), indices_B, zero_B)) for k in (1, 2)
    )
    sigma = 0.5 / 8000**0.5
    assert abs(one_B.mean() - 0.5) < 4.5 * sigma
    assert abs((one_B == other_B).mean() - 0.5) < 4.5 * sigma  # it depends on the seed


def test_borders_are_zeros():
    pad, x_BHWC = 4, np.ones((256, 8, 8, 2), np.float32)
    key = jax.random.key(5)
    out_BHWC = np.asarray(crop_and_flip(key, x_BHWC, pad, False))
    offset_B2, _ = jax.device_get(augment._draw(key, 256, pad))
    inside = (8 - abs(offset_B2[:, 0] - pad)) * (8 - abs(offset_B2[:, 1] - pad)) * 2
    np.testing.assert_array_equal(out_BHWC.sum((1, 2, 3)), inside)
    assert set(np.unique(out_BHWC)) == {0, 1}


def test_is_a_function_of_the_key():
    x_BHWC = images(32)
    one, again, other = (crop_and_flip(jax.random.key(k), x_BHWC) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_crops_and_cutout_are_scaled_with_the_images():
    x_BHWC, key = images(16, 16, 16), jax.random.key(5)
    scaled = augment.Augment(image_side=32, crop_pad=4, cutout=8)
    plain = augment.Augment(crop_pad=2, cutout=4)
    results = [a(key, 0, x_BHWC, jnp.zeros(16, int), jnp.arange(16))[0] for a in (scaled, plain)]
    np.testing.assert_array_equal(*results)
    assert (np.asarray(results[0]) == 0).all(-1).sum((1, 2)).min() >= 16  # the square of cutout


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_keeps_the_dtype(dtype):
    assert crop_and_flip(jax.random.key(0), jnp.ones((2, 6, 6, 3), dtype)).dtype == dtype


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from nin_jax.data.augment import crop_and_flip
x = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype(np.float32)
whole = jax.jit(crop_and_flip)(jax.random.key(7), x)
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
x = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
compiled = jax.jit(crop_and_flip).lower(jax.random.key(7), x).compile()
assert 'f32[32,' not in compiled.as_text()  # no device ever holds the whole batch
spread = compiled(jax.random.key(7), x)
assert len(spread.sharding.device_set) == 4
np.testing.assert_array_equal(whole, spread)
"""


@pytest.mark.processes
def test_is_the_same_on_four_devices():
    flags = '--xla_force_host_platform_device_count=4'
    env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(
        [sys.executable, '-c', SHARDED], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
