"""Builds the training and evaluation splits of a config.

source on the host -> preprocessing fitted to it -> split on the device, or streamed to it
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.data import datasets, photos, preprocess
from nin_jax.data.batches import DeviceSplit, Examples, Resident, Stream
from nin_jax.data.catalog import lookup
from nin_jax.data.deferred import Deferred
from nin_jax.data.preprocess import Preprocess
from nin_jax.data.sources import Arrays, Source
from nin_jax.devices import memory_bytes, replicated
from nin_jax.errors import CheckpointError, ConfigError, DataError, SaveError
from nin_jax.files import user_cache
from nin_jax.version import __version__

CHUNK = 1000  # images that are preprocessed at a time


def open_source(config: ConfigDict, splits: str) -> Source:
    """Opens splits of the config's dataset, with at most `data.limit` images.

    Raises:
      ConfigError: there is no such dataset or split.
      DataError: the dataset is not prepared, or its files are damaged.
    """
    name, data = config.data.name, config.data
    if lookup(name).storage != 'photos':
        return datasets.load_arrays(name, splits, data.dir).first(data.limit)
    if data.residency == 'device':
        raise ConfigError(
            f"data.residency='device': {name} is read from the disk during training, "
            "set 'stream' or 'auto'"
        )
    return photos.open_split(name, splits, data.dir, data.limit)


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits of a run on the host.

    Attributes:
      train: the splits of `data.train`.
      eval: the splits of `data.eval`.
    """

    train: Source
    eval: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape

    @property
    def fingerprint(self) -> str:
        """A digest of the images and labels of both splits; of files, of number and classes."""
        return self.train.fingerprint() + self.eval.fingerprint()


def load_data(config: ConfigDict) -> Data:
    """Opens both splits, and checks that all processes of the run have the same images.

    Raises:
      ConfigError, DataError: see `open_source`; or the images of the processes differ.
    """
    with distributed.together():
        data = Data(open_source(config, config.data.train), open_source(config, config.data.eval))
        if not len(data.eval):
            raise DataError(
                f'data.eval={config.data.eval!r}: {config.data.name} has no such images'
            )
        if data.train.class_names != data.eval.class_names:
            raise DataError(
                f"{config.data.name}: the classes of '{config.data.train}' and "
                f"'{config.data.eval}' have different names: give their folders the same names"
            )
    distributed.check_same('images', lambda: data.fingerprint)
    return data


def fit_preprocess(config: ConfigDict, train: Source) -> Preprocess:
    """Fits `preprocess.recipe` to the training images.

    A fit that takes seconds is saved in the user's cache folder, for later runs on the same images.

    Raises:
      ConfigError: the recipe needs the images in memory, and they are streamed from disk.
    """
    settings = config.preprocess
    options = {'zca_bias': settings.zca_bias, 'gcn_scale': settings.gcn_scale}
    if train.in_memory:
        fit = functools.partial(preprocess.fit, settings.recipe, train.load().images, **options)
        if settings.recipe not in preprocess.PRECOMPUTED:
            return fit()
        key = json.dumps([__version__, settings.recipe, options, train.fingerprint()])
        return cached_fit(fit, key)
    if settings.recipe == 'mean':  # published, because reading all images would take hours
        return preprocess.mean_color(255 * np.array(lookup(config.data.name).channel_means))
    if settings.recipe in preprocess.FITTED:
        raise ConfigError(
            f'preprocess.recipe={settings.recipe!r}: it is fitted to images in memory, and those '
            f"of {config.data.name} are on the disk: choose 'mean', 'scale' or 'gcn_lcn'"
        )
    return Preprocess(settings.recipe)


def cached_fit(fit: Callable[[], Preprocess], key: str) -> Preprocess:
    """Returns the saved fit of `key`; fits and saves it if it is missing or damaged."""
    path = user_cache() / 'preprocess' / f'{hashlib.sha256(key.encode()).hexdigest()}.npz'
    with contextlib.suppress(CheckpointError):
        return preprocess.load(path)
    fitted = fit()
    with contextlib.suppress(SaveError):  # the cache only saves time; the run has its own copy
        preprocess.save(path, fitted)
    return fitted


def is_streamed(config: ConfigDict, mesh: jax.sharding.Mesh, data: Data) -> bool:
    """Returns whether the splits stay on the host.

    `data.residency` decides. With 'auto', they do if they need more than half of a device's memory
    (on a CPU, half of the machine's).
    """
    if not data.train.in_memory or config.data.residency != 'auto':
        return not data.train.in_memory or config.data.residency == 'stream'
    pixel_bytes = 4 if config.preprocess.recipe in preprocess.PRECOMPUTED else 1
    needed = sum(
        pixel_bytes * len(s) * int(np.prod(s.image_shape)) for s in (data.train, data.eval)
    )
    return needed > memory_bytes(mesh.local_devices[0]) / 2


def place_split(
    source: Source,
    fitted: Preprocess,
    mesh: jax.sharding.Mesh,
    *,
    placed: Preprocess,
    streamed: bool,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
) -> DeviceSplit:
    """Moves a split to the devices, or prepares to stream it.

    Most images stay uint8, and the step preprocesses them. Recipes that would be expensive in every
    step are applied once: here if the split is streamed, otherwise when an image is first needed.

    Args:
      source: the split on the host.
      fitted: the preprocessing, on the host.
      mesh: the devices.
      placed: the preprocessing, replicated over the mesh.
      streamed: whether the split stays on the host.
      seed: seed of the run.
      batch_size: images per training step.
      eval_batch_size: images per evaluation batch.
    """
    once = source.in_memory and fitted.recipe in preprocess.PRECOMPUTED
    if streamed:
        if once:
            arrays = source.load()
            source = dataclasses.replace(arrays, images=apply_in_chunks(fitted, arrays.images))
        return Stream(source, mesh, seed, batch_size, eval_batch_size)
    arrays: Arrays = source.load()
    if once:
        return Deferred(arrays, placed, mesh, seed, batch_size)
    return Resident(distributed.place(Examples.of(arrays.images, arrays.labels), replicated(mesh)))


def check_side(source: Source, side: int) -> None:
    """Raises ConfigError if images are streamed from disk, or smaller than `side` pixels."""
    if not source.in_memory or side > min(source.image_shape[:2]):
        size = 'x'.join(map(str, source.image_shape[:2]))
        raise ConfigError(
            f'train.image_sizes: cannot scale images of {size} to {side}: name fewer pixels, and '
            'a dataset that fits in memory'
        )


def resize_source(source: Source, side: int) -> Source:
    """Resizes all images to `side` x `side` pixels (bilinear, with antialiasing)."""

    @jax.jit
    def shrink(images_BHWC: jax.Array) -> jax.Array:
        shape = (images_BHWC.shape[0], side, side, images_BHWC.shape[-1])
        small_BHWC = jax.image.resize(images_BHWC.astype(jnp.float32), shape, 'linear')
        return jnp.round(small_BHWC).astype(jnp.uint8)

    arrays = source.load()
    chunks = range(0, len(arrays), CHUNK)
    small = np.concatenate([np.asarray(shrink(arrays.images[i : i + CHUNK])) for i in chunks])
    return dataclasses.replace(arrays, images=small)


def apply_in_chunks(fitted: Preprocess, images_NHWC: np.ndarray) -> np.ndarray:
    """Preprocesses uint8 images in chunks; returns float32 of the same shape."""
    apply, fitted = jax.jit(lambda fitted, images: fitted(images)), jax.device_put(fitted)
    out_NHWC = np.empty(images_NHWC.shape, np.float32)
    for start in range(0, len(images_NHWC), CHUNK):
        part = slice(start, start + CHUNK)
        out_NHWC[part] = apply(fitted, images_NHWC[part])
    return out_NHWC
