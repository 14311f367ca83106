"""Preprocessing against slow float64 references, damaged files, and the whole of CIFAR-10."""

import os
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from scipy.signal import convolve2d

from nin_jax.config import default_config
from nin_jax.data import preprocess
from nin_jax.data.pipeline import fit_preprocess
from nin_jax.data.preprocess import (
    Preprocess,
    digest,
    fit,
    fit_patch_zca,
    fit_zca,
    load,
    save,
    whiten_any_size,
)
from nin_jax.data.sources import Arrays
from nin_jax.errors import CheckpointError, ConfigError, DataError


def smooth_images(count, height=8, width=8, channels=3, seed=0):
    """Random uint8 pictures whose neighbours are alike, as a photograph's are."""
    rng = np.random.default_rng(seed)
    small = rng.normal(size=(count, height // 2, width // 2, channels))
    smooth = small.repeat(2, axis=1).repeat(2, axis=2)
    noisy = 128 + 40 * smooth + 8 * rng.normal(size=smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def slow_gcn(images, scale):
    out = []
    for image in images.astype(np.float64):
        image = image - image.mean()
        divisor = np.sqrt((image**2).sum()) / scale
        out.append(image / (divisor if divisor >= 1e-8 else 1.0))
    return np.stack(out)


def slow_lcn(x_BHWC):
    distance = np.arange(7) - 3.0
    kernel = np.exp(-(distance[:, None] ** 2 + distance[None, :] ** 2) / (2 * 2.0**2))
    kernel /= kernel.sum()
    out = np.empty_like(x_BHWC)
    for b in range(x_BHWC.shape[0]):
        for c in range(x_BHWC.shape[3]):
            plane = x_BHWC[b, :, :, c]
            blurred = convolve2d(plane, kernel, 'full')[3:-3, 3:-3]
            rms = np.sqrt(convolve2d(plane**2, kernel, 'full')[3:-3, 3:-3])
            out[b, :, :, c] = (plane - blurred) / np.maximum(np.maximum(rms, rms.mean()), 1e-4)
    return out


@pytest.mark.parametrize('scale', [1.0, 55.0])
@pytest.mark.parametrize('shape', [(8, 8, 3), (28, 28, 1), (12, 40, 3)])
def test_gcn_equals_the_slow_reference(scale, shape):
    images = smooth_images(5, *shape)
    got = jax.jit(preprocess.global_contrast_normalize)(images.astype(np.float32), scale)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_gcn(images, scale), rtol=0, atol=2e-6 * scale)


def test_a_flat_image_becomes_zeros():
    """A compiled mean is off by one rounding for some greys and sizes (many at 5x7x3): divided
    by its own norm, that would come out as an image of norm 55."""
    grey_B111 = np.arange(256, dtype=np.uint8)[:, None, None, None]
    for shape in ((5, 7, 3), (9, 21, 3), (32, 32, 3)):
        flat = np.broadcast_to(grey_B111, (256, *shape))
        assert not np.any(jax.jit(preprocess.global_contrast_normalize)(flat.astype(np.float32)))
        assert not np.any(jax.jit(fit('gcn_lcn', flat))(flat))


@pytest.mark.parametrize('shape', [(32, 32, 3), (9, 21, 2), (4, 4, 1)])
def test_gcn_lcn_equals_the_slow_reference(shape):
    images = smooth_images(4, *shape) if min(shape[:2]) > 8 else smooth_images(4)
    got = jax.jit(fit('gcn_lcn', images))(images)
    expected = slow_lcn(slow_gcn(images, 1.0))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_lcn_normalises_every_channel_alone():
    x_BHWC = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    together = np.asarray(preprocess.local_contrast_normalize(x_BHWC))
    for c in range(3):
        alone = preprocess.local_contrast_normalize(x_BHWC[..., c : c + 1])
        np.testing.assert_allclose(together[..., c : c + 1], alone, rtol=0, atol=1e-6)
        assert np.abs(together[..., c] - x_BHWC[..., c]).max() > 0.5


def test_lcn_divides_by_no_less_than_the_threshold():
    x_BHWC = np.full((1, 8, 8, 1), 1e-6, np.float32)
    x_BHWC[0, 4, 4] = 3e-6
    got = preprocess.local_contrast_normalize(x_BHWC)
    assert 0 < np.abs(got).max() < 3e-6 / 1e-4


def test_scale_divides_by_255():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got = fit('scale', images)(images)
    expected = np.arange(256, dtype=np.float32).reshape(got.shape) / 255
    np.testing.assert_array_max_ulp(np.asarray(got), expected, maxulp=1)


def test_zca_equals_the_slow_reference():
    images = smooth_images(700)
    prep = fit('gcn_zca', images, zca_bias=0.3, gcn_scale=20.0)
    x_ND = slow_gcn(images, 20.0).reshape(700, -1)
    mean_D = x_ND.mean(0)
    covariance_DD = np.cov(x_ND.T, bias=True) + 0.3 * np.eye(192)
    assert prep.mean_HWC.dtype == prep.whiten_DD.dtype == np.float32
    np.testing.assert_array_equal(prep.whiten_DD, prep.whiten_DD.T)
    # whiten is the one symmetric positive matrix whose square is the covariance's inverse.
    whiten_DD = prep.whiten_DD.astype(np.float64)
    np.testing.assert_allclose(
        whiten_DD @ covariance_DD @ whiten_DD, np.eye(192), rtol=0, atol=1e-5
    )
    assert np.linalg.eigvalsh(whiten_DD).min() > 0
    expected = ((x_ND - mean_D) @ whiten_DD).reshape(images.shape)
    got = jax.jit(lambda prep, x: prep(x))(prep, images)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('chunk', [1000, 2])
def test_patch_zca_equals_the_slow_reference(chunk):
    """Of every second image, the patches whose corner lies on a grid of 3 pixels."""
    images = smooth_images(7, 8, 10)
    x_NHWC = slow_gcn(images[::2], (8 * 10 * 3) ** 0.5)
    patches = [
        x_HWC[top : top + 3, left : left + 3].ravel()
        for x_HWC in x_NHWC
        for top in (0, 3)
        for left in (0, 3, 6)
    ]
    covariance_DD = sum(np.outer(p, p) for p in patches) / len(patches) + 0.2 * np.eye(27)
    eigenvalues_D, vectors_DD = np.linalg.eigh(covariance_DD)
    whiten_DD = vectors_DD @ np.diag(1 / np.sqrt(eigenvalues_D)) @ vectors_DD.T
    middle = slice(4 * 3, 5 * 3)  # the fifth of nine pixels
    kernel_HWIO = fit_patch_zca(images, 0.2, side=3, every=2, chunk=chunk)
    np.testing.assert_allclose(kernel_HWIO.reshape(27, 3), whiten_DD[:, middle], rtol=0, atol=1e-6)


def test_patch_whiten_equals_the_slow_reference():
    images = smooth_images(2, 6, 8)
    kernel_HWIO = np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float32)
    expected = np.zeros(images.shape)
    x_NHWC = slow_gcn(images, (6 * 8 * 3) ** 0.5)
    for y in range(6):
        for x in range(8):
            for i in range(3):
                for j in range(3):  # outside, the nearest pixel of the image
                    pixel_NC = x_NHWC[:, np.clip(y + i - 1, 0, 5), np.clip(x + j - 1, 0, 7)]
                    expected[:, y, x] += pixel_NC @ kernel_HWIO[i, j]
    fitted = Preprocess('patch_zca', kernel_HWIO=kernel_HWIO)
    np.testing.assert_allclose(fitted(images), expected, rtol=0, atol=1e-4)


def test_zca_does_not_depend_on_the_chunks():
    images = smooth_images(50, 4, 4)
    for a, b in zip(fit_zca(images, chunk=50), fit_zca(images, chunk=7), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_bad_options_and_images_are_one_sentence():
    images = smooth_images(4)
    with pytest.raises(ConfigError, match="unknown preprocessing 'zca': choose scale, gcn_zca"):
        fit('zca', images)
    with pytest.raises(ConfigError, match="unknown preprocessing 'zca'"):
        Preprocess('zca')(images)
    for options in ({'zca_bias': 0.0}, {'gcn_scale': -1.0}, {'zca_bias': float('nan')}):
        with pytest.raises(ConfigError, match='finite number above 0'):
            fit('gcn_zca', images, **options)
    with pytest.raises(ConfigError, match='zca_bias is 1e-30: too small'):
        fit('gcn_zca', images, zca_bias=1e-30)
    for bad in (images[0], images.astype(np.float32), images[:0]):
        with pytest.raises(DataError, match='uint8 images of shape'):
            fit('gcn_zca', bad)
    prep = fit('gcn_zca', images)
    with pytest.raises(DataError, match='fitted to 8x8x3 images but was given 4x16x3'):
        prep(images.reshape(4, 4, 16, 3))
    with pytest.raises(DataError, match=r'\(8, 8, 3\): expected'):
        prep(images[0])


@pytest.mark.parametrize('recipe', preprocess.RECIPES)
def test_saved_is_loaded(recipe, tmp_path):
    images = smooth_images(40)
    prep = fit(recipe, images, gcn_scale=50.0)
    path = tmp_path / 'new folder' / 'preprocess.npz'
    save(path, prep)
    save(path, prep)  # over an old one
    again = load(path)
    assert digest(again) == digest(prep) and len(digest(prep)) == 64
    assert (again.recipe, again.gcn_scale) == (prep.recipe, prep.gcn_scale)
    np.testing.assert_array_equal(again(images), prep(images))
    assert [p.name for p in path.parent.iterdir()] == ['preprocess.npz']


def test_the_digest_tells_preprocessings_apart():
    images = smooth_images(40)
    one = fit('gcn_zca', images)
    others = [
        fit('scale', images),
        fit('gcn_lcn', images),
        fit('gcn_zca', images, zca_bias=0.2),
        fit('gcn_zca', images, gcn_scale=54.0),
        fit('gcn_zca', images[:39]),
        Preprocess('gcn_zca', 54.0, one.mean_HWC, one.whiten_DD),
    ]
    assert len({digest(prep) for prep in [one, *others]}) == 7
    assert digest(jax.device_put(one)) == digest(one)


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message and '\n' not in message
    return message


def test_damage_at_every_place_is_noticed_or_harmless(tmp_path):
    prep = fit('gcn_zca', smooth_images(40, 2, 2, 1))
    whole, path = tmp_path / 'whole.npz', tmp_path / 'damaged.npz'
    save(whole, prep)
    data = whole.read_bytes()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        refused(path)
    noticed = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert digest(load(path)) == digest(prep)  # dates and the like carry nothing
        except CheckpointError:
            noticed += 1
    assert noticed > len(data) / 2


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / 'x.npz'
    assert 'is missing' in refused(path)
    path.write_text('not a zip')
    refused(path)
    np.savez(path, recipe='gcn_zca')
    refused(path)
    np.savez(path, recipe=np.array(['a', None], dtype=object))  # pickled
    assert 'allow_pickle=False' in refused(path)
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))
    refused(path)
    refused(tmp_path)


def test_a_right_digest_over_wrong_arrays_is_refused(tmp_path):
    prep, path = fit('gcn_zca', smooth_images(40)), tmp_path / 'x.npz'
    mean, whiten = prep.mean_HWC, prep.whiten_DD
    for wrong in (
        Preprocess('gcn_zca', 55.0, mean[:4], whiten),
        Preprocess('gcn_zca', 55.0, mean.ravel(), whiten),
        Preprocess('gcn_zca', 55.0, mean, whiten.astype(np.float64)),
        Preprocess('bogus'),
    ):
        save(path, wrong)
        assert 'damaged' in refused(path)


def test_an_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot write'):
        save(tmp_path / 'file' / 'x.npz', fit('scale', smooth_images(1)))


@pytest.fixture(scope='module')
def small_zca():
    images = smooth_images(300)
    return images, fit('gcn_zca', images)


def test_whiten_any_size_is_exact_in_the_middle(small_zca):
    images, prep = small_zca
    exact, slid = prep(images), jax.jit(whiten_any_size)(prep, images)
    assert slid.shape == exact.shape and slid.dtype == np.float32
    np.testing.assert_allclose(slid[:, 4, 4], exact[:, 4, 4], rtol=0, atol=1e-5)
    # Tiling changes neither mean nor RMS, and the tile's own middle sees the tile alone.
    tiled = whiten_any_size(prep, np.tile(images[:10], (1, 3, 2, 1)))
    assert tiled.shape == (10, 24, 16, 3)
    np.testing.assert_allclose(tiled[:, 12, 4], exact[:10, 4, 4], rtol=0, atol=1e-5)


def test_whiten_any_size_ignores_how_bright_a_window_is(small_zca):
    _, prep = small_zca
    halves = np.zeros((1, 16, 40, 3), np.uint8)
    halves[:, :, 20:] = 200
    slid = whiten_any_size(prep, halves)
    np.testing.assert_allclose(slid[0, 8, 10], slid[0, 8, 30], rtol=0, atol=1e-4)


def test_whiten_any_size_refuses_in_one_sentence(small_zca):
    images, prep = small_zca
    with pytest.raises(DataError, match='3-channel images but was given 1'):
        whiten_any_size(prep, images[..., :1])
    with pytest.raises(ConfigError, match="'scale' has no ZCA"):
        whiten_any_size(fit('scale', images), images)


@pytest.fixture(scope='module')
def cifar10():
    """Official archive -> (train, test) uint8 images, and the ZCA of the paper fitted to train."""
    if 'NIN_ARCHIVES' not in os.environ:
        pytest.skip('NIN_ARCHIVES does not name the folder of the official archives')
    path = pathlib.Path(os.environ['NIN_ARCHIVES']) / 'cifar10' / 'cifar-10-binary.tar.gz'
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith('.bin'):
                records = np.frombuffer(archive.extractfile(member).read(), np.uint8)
                planes = records.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)
                files[member.name.split('/')[-1]] = planes.transpose(0, 2, 3, 1)
    train = np.concatenate([files[f'data_batch_{i}.bin'] for i in range(1, 6)])
    return train, files['test_batch.bin'], fit('gcn_zca', train)


def rms(prep, images):
    whitened = jax.jit(lambda prep, x: prep(x))
    squares = [float((whitened(prep, images[i : i + 1000]) ** 2).mean())
               for i in range(0, len(images), 1000)]  # fmt: skip
    return np.mean(squares) ** 0.5


@pytest.mark.heavy
def test_golden_zca_of_cifar10(cifar10):
    train, test, prep = cifar10
    eigenvalues = np.linalg.eigvalsh(prep.whiten_DD.astype(np.float64)) ** -2  # with the bias
    assert eigenvalues.sum() - 0.1 * 3072 == pytest.approx(2943.65, abs=0.005)
    assert eigenvalues.max() == pytest.approx(467.0596, abs=1e-4)
    assert eigenvalues.min() == pytest.approx(0.1, abs=1e-6)
    # What whitening with a bias leaves of the variance, summed over the eigenvalues.
    train_rms = (1 - 0.1 / eigenvalues).mean() ** 0.5
    assert train_rms == pytest.approx(0.52069, abs=1e-5)
    assert rms(prep, train[:10000]) == pytest.approx(0.51883, abs=1e-5)
    assert rms(prep, test) == pytest.approx(0.52722, abs=1e-5)


@pytest.mark.heavy
def test_whiten_any_size_on_cifar10(cifar10):
    _, test, prep = cifar10
    exact, slid = np.asarray(prep(test[:200])), np.asarray(whiten_any_size(prep, test[:200]))
    np.testing.assert_allclose(slid[:, 16, 16], exact[:, 16, 16], rtol=0, atol=1e-5)
    error = ((slid - exact) ** 2).mean((0, 3)) ** 0.5 / (exact**2).mean() ** 0.5
    assert error[12:20, 12:20].max() < 0.15 and error.mean() < 0.3


def test_a_fit_is_kept_for_the_next_run_and_refitted_if_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    fits = []
    monkeypatch.setattr(preprocess, 'fit', lambda *a, **k: fits.append(k) or fit(*a, **k))
    config = default_config()
    train = Arrays(smooth_images(40), np.zeros(40, np.int32))
    first = fit_preprocess(config, train)
    assert digest(fit_preprocess(config, train)) == digest(first) and len(fits) == 1
    config.preprocess.zca_bias = 0.2
    assert digest(fit_preprocess(config, train)) != digest(first) and len(fits) == 2
    fit_preprocess(config, train.first(39))
    assert len(fits) == 3
    for path in (tmp_path / 'nin_jax' / 'preprocess').iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    config.preprocess.zca_bias = 0.1
    assert digest(fit_preprocess(config, train)) == digest(first) and len(fits) == 4
