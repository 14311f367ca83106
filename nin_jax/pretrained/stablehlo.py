"""A trained network as one StableHLO program that needs JAX to run, but no code of ours.

import jax.export, numpy as np
program = jax.export.deserialize(open('model.stablehlo', 'rb').read())
logits_BK, maps_BHWK = program.call(images_BHWC)    # uint8, any number of images
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nin_jax.data.sources import Arrays
from nin_jax.pretrained.trained import Trained
from nin_jax.train.step import apply

PLATFORMS = ('cpu', 'cuda', 'tpu')


def serialise(trained: Trained) -> bytes:
    """Preprocessing and network, weights inside, for every platform of PLATFORMS.

    The program takes uint8 images (B, H, W, C) of the size trained on and any B, and returns
    float32 logits_BK and class maps_BHWK.
    """

    @jax.jit
    def score(images_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BK, maps_BHWK = apply(trained.model, params, fitted(images_BHWC))
        return logits_BK, maps_BHWK.astype(jnp.float32)

    # Numpy arrays become constants of the program, wherever it will run.
    params, fitted = jax.tree.map(np.asarray, (trained.params, trained.preprocess))
    height, width, channels = trained.image_shape
    shape = jax.export.symbolic_shape(f'b, {height}, {width}, {channels}')
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(jax.export.export(score, platforms=PLATFORMS)(images).serialize())


def largest_difference(program: bytes, trained: Trained, count: int = 32) -> float:
    """How far the program's logits are from the network's, at most, on `count` random images."""
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (count, *trained.image_shape), np.uint8)
    logits_NK, _ = jax.export.deserialize(program).call(images_NHWC)
    return float(np.abs(logits_NK - trained(images_NHWC)).max())


def count_errors(program: bytes, split: Arrays, chunk: int = 250) -> int:
    """How many images of a split the program takes for another class."""
    call, errors = jax.jit(jax.export.deserialize(program).call), 0
    for start in range(0, len(split.labels), chunk):
        here = slice(start, start + chunk)
        predictions = np.argmax(call(split.images[here])[0], axis=-1)
        errors += int(np.sum(predictions != split.labels[here]))
    return errors
