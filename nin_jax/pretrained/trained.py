"""Opens a trained network from the folder of its run, and applies it to images."""

import dataclasses
import pathlib
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nin_jax.config import unflatten, validate
from nin_jax.console import quiet_absl, track
from nin_jax.data import catalog
from nin_jax.data.pipeline import open_source
from nin_jax.data.preprocess import Preprocess
from nin_jax.errors import CheckpointError, ConfigError, DataError, UserError
from nin_jax.files import read_json
from nin_jax.models.factory import abstract_model, check_sizes
from nin_jax.models.features import features
from nin_jax.models.nin import apply
from nin_jax.models.summary import layer_table
from nin_jax.runs.recorder import restore_run
from nin_jax.runs.workdir import CONFIG, load_preprocess
from nin_jax.train.trainer import state_shapes


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network with its preprocessing.

    Attributes:
      config: config of the run.
      step: step of the checkpoint.
      model, params: arguments of `nin_jax.models.nin.apply`; params are the state's `weights`.
      preprocess: preprocessing fitted to the run's training images.
      class_names: names of the classes, in label order.
      image_shape: (height, width, channels) of the training images.
      stride: pixels between adjacent cells of the class maps.
    """

    config: ConfigDict
    step: int
    model: nnx.GraphDef
    params: dict
    preprocess: Preprocess
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    stride: int

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Returns float32 logits_NK of uint8 images; see `score`."""
        return self.score(images_NHWC)[0]

    def score(
        self, images_NHWC: np.ndarray, chunk: int = 250, progress: str = ''
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes logits and class maps.

        Args:
          images_NHWC: uint8, all of the same size. If it is not that of the training images,
            whitening is approximate (`preprocess.whiten_any_size`).
          chunk: number of images per dispatch.
          progress: text of a progress bar on stderr; '' for none.

        Returns:
          float32 logits_NK and class maps_NHWK. With global average pooling, the logits are the
          means of the maps.

        Raises:
          DataError: the images are not uint8 (N, H, W, C) with the network's number of channels.
          ConfigError: the network has a fully connected head or local filters, and the
            images have a different size; or they are too small for its strides.
        """
        self._check(images_NHWC)
        starts = range(0, len(images_NHWC), chunk)
        parts = [
            jax.device_get(
                _score(self.params, self.preprocess, images_NHWC[i : i + chunk], self.model)
            )
            for i in (track(starts, progress) if progress else starts)
        ]
        logits, maps = zip(*parts, strict=True)
        return np.concatenate(logits), np.concatenate(maps).astype(np.float32, copy=False)

    def features(
        self, images_NHWC: np.ndarray, layers: str | tuple[str, ...] = (), chunk: int = 250
    ) -> dict[str, np.ndarray]:
        """Computes the outputs of layers.

        Args:
          images_NHWC: uint8, all of the same size.
          layers: one name or several, as in `nin_jax.models.features`; () for all.
          chunk: number of images per dispatch.

        Returns:
          {name: float32 (N, H, W, C)}; logits are (N, K).

        Raises:
          DataError: as `score`.
          ConfigError: the network has no such layer.
        """
        self._check(images_NHWC)
        layers = (layers,) if isinstance(layers, str) else layers
        parts = [
            jax.device_get(
                _features(
                    self.params,
                    self.preprocess,
                    images_NHWC[i : i + chunk],
                    self.model,
                    tuple(layers),
                )
            )
            for i in range(0, len(images_NHWC), chunk)
        ]
        return {
            name: np.concatenate([part[name] for part in parts]).astype(np.float32)
            for name in layers or parts[0]
        }

    def _check(self, images_NHWC: np.ndarray) -> None:
        channels = self.image_shape[-1]
        shape, dtype = np.shape(images_NHWC), getattr(images_NHWC, 'dtype', None)
        if len(shape) != 4 or not shape[0] or shape[-1] != channels or dtype != np.uint8:
            raise DataError(
                f'images {dtype} {shape}: must be uint8 (N, H, W, {channels}), pixels from 0 to 255'
            )
        check_sizes(self.config, shape[1:3])


@partial(jax.jit, static_argnames=('model', 'layers'))
def _features(
    params: dict,
    fitted: Preprocess,
    images_BHWC: jax.Array,
    model: nnx.GraphDef,
    layers: tuple[str, ...],
) -> dict[str, jax.Array]:
    return features(model, params, fitted.any_size(images_BHWC), layers)


@partial(jax.jit, static_argnames='model')
def _score(
    params: dict, fitted: Preprocess, images_BHWC: jax.Array, model: nnx.GraphDef
) -> tuple[jax.Array, jax.Array]:
    return apply(model, params, fitted.any_size(images_BHWC))


def open_network(
    config: ConfigDict,
    weights: dict,
    *,
    step: int,
    fitted: Preprocess,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
) -> Trained:
    """Builds the network of a config with given weights (parameters and running averages)."""
    model = abstract_model(config, image_shape, len(class_names))
    return Trained(
        config=config,
        step=step,
        model=nnx.graphdef(model),
        params=weights,
        preprocess=fitted,
        class_names=class_names,
        image_shape=image_shape,
        stride=layer_table(model.blocks, image_shape)[-1].stride,
    )


def load_run(folder: pathlib.Path, step: int | None = None) -> Trained:
    """Opens a run's newest valid checkpoint, or that at `step`, on one device.

    Raises:
      CheckpointError: the folder contains no run or no such checkpoint, or is damaged.
    """
    flat = read_json(folder / CONFIG)
    config = read_config(flat, folder / CONFIG)
    config.devices = 1
    dataset, fitted = catalog.lookup(config.data.name), load_preprocess(folder)
    shapes = state_shapes(config)
    with quiet_absl():
        state, meta = restore_run(folder, shapes, flat, fitted, step)
    names = meta.get('class_names')  # version 0.1.0 did not record them
    return open_network(
        config,
        state.weights,
        step=int(state.step),
        fitted=fitted,
        class_names=tuple(names or open_source(config, 'test').class_names),
        image_shape=dataset.image_shape,
    )


def read_config(flat: dict, path: pathlib.Path) -> ConfigDict:
    """Converts the flat config that was read from `path`.

    Raises:
      CheckpointError: it is not the config of a run.
    """
    try:
        config = unflatten(flat)
        validate(config)
    except (ConfigError, AttributeError, LookupError, TypeError, ValueError) as e:
        reason = e if isinstance(e, UserError) else repr(e)
        raise CheckpointError(f"'{path}' is not a run's config ({reason})") from e
    return config
