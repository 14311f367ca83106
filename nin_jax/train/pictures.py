"""Pictures of a run in progress: test images and the class maps of their predicted classes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nin_jax.data.batches import Examples
from nin_jax.data.preprocess import Preprocess
from nin_jax.devices import replicated
from nin_jax.models.nin import apply
from nin_jax.train.step import Setup, preprocessed, split_over
from nin_jax.train.trainer import Trainer

SIDE = 96  # pixels of an image and of a map


def shown_examples(trainer: Trainer) -> Examples:
    """Returns the first `eval.pictures` examples of the evaluation split."""
    part = next(iter(trainer.eval.parts()))
    return jax.tree.map(lambda x: x[: trainer.config.eval.pictures], part)


def class_maps(trainer: Trainer, weights: dict, shown: Examples) -> np.ndarray:
    """Draws images over the maps of their predicted classes.

    The images may be preprocessed already. Every image and every map is scaled from its least value
    (black) to its greatest (white).

    Returns:
      uint8 (2 * SIDE, len(shown) * SIDE, 3).
    """
    maps_NHW = predicted_maps(weights, shown, trainer.preprocess, setup=trainer.setup)
    rows = (shown.images, maps_NHW[..., None])
    return np.concatenate(
        [np.concatenate([tile(x_HWC) for x_HWC in jax.device_get(row)], axis=1) for row in rows]
    )


@partial(jax.jit, static_argnames='setup')
def predicted_maps(
    weights: dict, examples: Examples, preprocess: Preprocess, *, setup: Setup
) -> jax.Array:
    """Returns the class maps_NHW of the examples' predicted classes."""
    count, devices = len(examples), setup.mesh.size
    padded_B = jnp.arange(-(-count // devices) * devices) % count
    batch = examples.take(split_over(setup.mesh, padded_B))
    logits_BK, maps_BHWK = apply(setup.model, weights, preprocessed(batch.images, preprocess))
    predicted_B = jnp.argmax(logits_BK, axis=-1)
    maps_BHW1 = jnp.take_along_axis(maps_BHWK, predicted_B[:, None, None, None], axis=-1)
    return jax.lax.with_sharding_constraint(maps_BHW1[:count, ..., 0], replicated(setup.mesh))


def tile(x_HWC: np.ndarray) -> np.ndarray:
    """Scales an image or a map to SIDE pixels and to values from 0 to 255, in three channels."""
    x_HWC = np.asarray(x_HWC, np.float32)
    if x_HWC.shape[-1] != 3:
        x_HWC = x_HWC.mean(-1, keepdims=True).repeat(3, -1)
    scaled_HWC = (x_HWC - x_HWC.min()) / max(float(np.ptp(x_HWC)), 1e-12)
    image = Image.fromarray(np.rint(255 * scaled_HWC).astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
