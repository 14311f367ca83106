"""Network In Network (Lin, Chen, Yan 2013; arXiv 1312.4400) in JAX and Flax NNX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nin_jax.pretrained.trained import Trained

__version__ = '0.2.0'


def load(path: str | os.PathLike) -> Trained:
    """Opens a trained network: `nin_jax.load('release')(images)` returns logits.

    Args:
      path: the folder of a release that `experiments.export` wrote, or a file in it; or the folder
        of a run.

    Returns:
      The network. Called with uint8 images_NHWC it returns float32 logits_NK; `score` returns the
      class maps too, `features` the outputs of any layer.

    Raises:
      CheckpointError: a file is missing, damaged or of another kind.
    """
    from nin_jax.pretrained import release  # lazily: JAX takes seconds to import

    return release.load(path)
