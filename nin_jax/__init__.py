"""Network In Network (Lin, Chen, Yan 2013; arXiv 1312.4400) in JAX and Flax NNX."""

__version__ = '0.2.0'


def load(path):
    """Opens a trained network: `nin_jax.load('release')(images)` gives class scores.

    Args:
      path: the folder that `experiments.export` wrote, or a file in it; or that of a run.

    Returns:
      A `nin_jax.trained.Trained`: called with uint8 images_NHWC it gives logits_NK; `score` gives
      the class maps too, `model` and `params` are what `nin_jax.step.apply` takes.

    Raises:
      CheckpointError: in one sentence, if anything is missing, damaged or of another kind.
    """
    from nin_jax.pretrained import release

    return release.load(path)
