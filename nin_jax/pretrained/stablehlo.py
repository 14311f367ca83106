"""Exports a trained network as a StableHLO program, which JAX runs without this package.

import jax.export, numpy as np
program = jax.export.deserialize(open('model.stablehlo', 'rb').read())
logits_BK, maps_BHWK = program.call(images_BHWC)    # uint8, any number of images
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import deserialize, export, symbolic_shape

from nin_jax.console import track
from nin_jax.data.sources import Arrays
from nin_jax.errors import UserError
from nin_jax.models.nin import apply
from nin_jax.pretrained.trained import Trained

PLATFORMS = ('cpu', 'cuda', 'tpu')


def check_installed() -> None:
    """Raises UserError if flatbuffers, which `jax.export` needs, is not installed."""
    if not importlib.util.find_spec('flatbuffers'):
        raise UserError("exporting a program needs flatbuffers: pip install -e '.[export]'")


def serialize(trained: Trained) -> bytes:
    """Exports preprocessing, network and weights, for every platform of PLATFORMS.

    The program takes uint8 images_BHWC of the size of the training images, for any B, and returns
    float32 logits_BK and class maps_BHWK.
    """

    @jax.jit
    def score(images_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BK, maps_BHWK = apply(trained.model, params, fitted(images_BHWC))
        return logits_BK, maps_BHWK.astype(jnp.float32)

    # Numpy arrays become constants of the program, on any platform.
    params, fitted = jax.tree.map(np.asarray, (trained.params, trained.preprocess))
    height, width, channels = trained.image_shape
    shape = symbolic_shape(f'b, {height}, {width}, {channels}')
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(export(score, platforms=PLATFORMS)(images).serialize())


def largest_difference(program: bytes, trained: Trained, count: int = 32) -> float:
    """Returns the largest absolute difference from the network's logits on random images."""
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (count, *trained.image_shape), np.uint8)
    logits_NK, _ = deserialize(bytearray(program)).call(images_NHWC)
    return float(np.abs(logits_NK - trained(images_NHWC)).max())


def count_errors(program: bytes, split: Arrays, chunk: int = 250) -> int:
    """Returns the number of images that the program misclassifies; shows a progress bar."""
    call, errors = jax.jit(deserialize(bytearray(program)).call), 0
    for start in track(range(0, len(split), chunk), 'scoring'):
        here = slice(start, start + chunk)
        predictions = np.argmax(call(split.images[here])[0], axis=-1)
        errors += int(np.sum(predictions != split.labels[here]))
    return errors
