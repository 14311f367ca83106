"""Pictures of a run in progress: test images and the class maps of their predicted classes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nin_jax.data.batches import Examples
from nin_jax.data.preprocess import Preprocess
from nin_jax.models.nin import apply
from nin_jax.train.step import Setup, take_batch
from nin_jax.train.trainer import Trainer

SIDE = 96  # pixels of an image and of a map


def class_maps(trainer: Trainer, weights: dict) -> np.ndarray:
    """Draws the first `eval.pictures` test images over the maps of their predicted classes.

    The images may be preprocessed already. Every image and every map is scaled from its least value
    (black) to its greatest (white).

    Returns:
      uint8 (2 * SIDE, eval.pictures * SIDE, 3).
    """
    part = next(iter(trainer.eval.parts()))
    count = min(trainer.config.eval.pictures, len(part))
    maps_NHW = predicted_maps(weights, part, trainer.preprocess, setup=trainer.setup, count=count)
    rows = (part.images[:count], maps_NHW[..., None])
    return np.concatenate(
        [np.concatenate([tile(x_HWC) for x_HWC in jax.device_get(row)], axis=1) for row in rows]
    )


@partial(jax.jit, static_argnames=('setup', 'count'))
def predicted_maps(
    weights: dict, examples: Examples, preprocess: Preprocess, *, setup: Setup, count: int
) -> jax.Array:
    """Returns the class maps_NHW of the predicted classes of the first `count` examples."""
    padded_B = jnp.arange(-(-count // setup.mesh.size) * setup.mesh.size) % len(examples)
    x_BHWC, _ = take_batch(examples, padded_B, preprocess, setup.mesh)
    logits_BK, maps_BHWK = apply(setup.model, weights, x_BHWC)
    predicted_B = jnp.argmax(logits_BK, axis=-1)
    return jnp.take_along_axis(maps_BHWK, predicted_B[:, None, None, None], axis=-1)[:count, ..., 0]


def tile(x_HWC: np.ndarray) -> np.ndarray:
    """Scales an image or a map to SIDE pixels and to values from 0 to 255, in three channels."""
    x_HWC = np.asarray(x_HWC, np.float32)
    if x_HWC.shape[-1] != 3:
        x_HWC = x_HWC.mean(-1, keepdims=True).repeat(3, -1)
    scaled_HWC = (x_HWC - x_HWC.min()) / max(float(np.ptp(x_HWC)), 1e-12)
    image = Image.fromarray(np.rint(255 * scaled_HWC).astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
