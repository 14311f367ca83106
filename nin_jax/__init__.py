"""Network In Network (Lin, Chen, Yan 2013; arXiv 1312.4400) in JAX and Flax NNX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nin_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from nin_jax.pretrained.trained import Trained


def load(path: str | os.PathLike) -> Trained:
    """Opens a trained network: `nin_jax.load('cifar10')(images)` gives class scores.

    Args:
      path: the name of a bundled network (see `list_models`); the folder that `experiments.export`
        wrote, or a file in it; or the folder of a run. A folder that holds a run or a release
        takes precedence over a bundled network of the same name.

    Returns:
      A `nin_jax.pretrained.trained.Trained`. Called with uint8 images_NHWC, it returns float32
      logits_NK; `score` also returns the class maps; `model` and `params` are the arguments of
      `nin_jax.models.nin.apply`.

    Raises:
      CheckpointError: there is no such network, or it is damaged.
    """
    from nin_jax.pretrained import release

    return release.load(path)


def list_models() -> list[str]:
    """Returns the names of the bundled networks, for `load`."""
    from nin_jax.pretrained import bundled

    return bundled.names()
