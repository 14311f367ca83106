"""A trained run as something that scores pictures; its folder says all, no config page needed."""

import dataclasses
import pathlib
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nin_jax import datasets, preprocess
from nin_jax.checkpoint import Checkpoints, read_json
from nin_jax.commands import PREPROCESS, restore, settled_preprocess, warn
from nin_jax.config import block, default_config, make_plan, validate
from nin_jax.describe import layer_table
from nin_jax.errors import CheckpointError, ConfigError, UserError
from nin_jax.features import features
from nin_jax.run import build, load_split, make_mesh, model_blocks
from nin_jax.step import apply


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is left of a run when it is over.

    Attributes:
      config: the run's own.
      step: of the checkpoint.
      model, params: as `nin_jax.step.apply` takes them; params are the state's `weights`.
      preprocess: as fitted for the run.
      class_names: in label order.
      image_shape: height, width, channels it was trained on.
      stride: pixels between neighbouring cells of the class maps.
    """

    config: ConfigDict
    step: int
    model: nnx.GraphDef
    params: dict
    preprocess: preprocess.Preprocess
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    stride: int

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """The logits_NK alone of `score`."""
        return self.score(images_NHWC)[0]

    def score(self, images_NHWC: np.ndarray, chunk: int = 250) -> tuple[np.ndarray, np.ndarray]:
        """Scores uint8 images, all of one size, whichever it is.

        Returns float32 logits_NK and the class maps_NHWK whose means they are. Images of another
        size than the network was trained on are whitened approximately (`whiten_any_size`).
        """
        parts = [
            _score(self.params, self.preprocess, images_NHWC[i : i + chunk], self.model)
            for i in range(0, len(images_NHWC), chunk)
        ]
        logits, maps = zip(*jax.device_get(parts), strict=True)
        return np.concatenate(logits), np.concatenate(maps).astype(np.float32)

    def features(
        self, images_NHWC: np.ndarray, layers: tuple[str, ...] = (), chunk: int = 250
    ) -> dict[str, np.ndarray]:
        """What the named layers put out, or all, for uint8 images, all of one size.

        Returns {name: float32 (N, H, W, C)}; the names are those of `nin_jax.features`.
        """
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
            for name in parts[0]
        }


@partial(jax.jit, static_argnames=('model', 'layers'))
def _features(params, fitted, images_BHWC, model, layers):
    return features(model, params, preprocess_any_size(fitted, images_BHWC), layers)


@partial(jax.jit, static_argnames='model')
def _score(params, fitted, images_BHWC, model):
    return apply(model, params, preprocess_any_size(fitted, images_BHWC))


def preprocess_any_size(fitted: preprocess.Preprocess, images_BHWC):
    """The run's preprocessing; where its ZCA does not fit the size, the sliding approximation."""
    if fitted.recipe == 'gcn_zca' and images_BHWC.shape[1:] != fitted.mean_HWC.shape:
        return preprocess.whiten_any_size(fitted, images_BHWC)
    return fitted(images_BHWC)


def load(folder: pathlib.Path, step: int | None = None) -> Trained:
    """Opens a run's newest whole checkpoint, or that at `step`, on one device.

    Raises:
      CheckpointError: `folder` is not that of a run, or is damaged.
    """
    config = read_config(folder)
    config.devices = 1
    dataset = datasets.lookup(config.data.name)
    fitted = settled_preprocess(folder)
    if fitted is None:
        raise CheckpointError(f"'{folder}' holds no {PREPROCESS}: is this the --workdir of a run?")
    # Only the state's shape matters here, and that does not hang on the number of images.
    plan = make_plan(config, sum(dataset.examples.values()), on_cpu=True)
    mesh = make_mesh(config.devices)
    setup, init_state = build(config, plan, mesh, dataset.image_shape, dataset.num_classes)
    with Checkpoints(
        folder / 'checkpoints', config.checkpoint.keep, warn, read_only=True
    ) as checkpoints:
        saved = read_json(folder / 'config.json')
        restored = restore(checkpoints, setup, init_state, fitted, saved, step)
    if restored is None:
        raise CheckpointError(f"no checkpoints in '{folder}': train the run first")
    state, meta = restored
    return Trained(
        config,
        int(state.step),
        setup.model,
        state.weights,
        fitted,
        tuple(
            meta.get('class_names') or load_split(config, 'test').class_names
        ),  # old runs lack it
        dataset.image_shape,
        layer_table(model_blocks(config, dataset.num_classes), dataset.image_shape)[-1].stride,
    )


def read_config(folder: pathlib.Path) -> ConfigDict:
    """The config that a run left in its folder; CheckpointError if it is none."""
    path = folder / 'config.json'
    return config_of(read_json(path), path)


def config_of(flat: dict, path: pathlib.Path) -> ConfigDict:
    """The config that `flat`, read from `path`, stands for; CheckpointError if for none."""
    try:
        config = default_config()
        blocks: dict[str, dict] = {}
        for key, value in flat.items():
            value = tuple(value) if isinstance(value, list) else value
            *parents, name = key.split('.')
            if parents[:2] == ['model', 'blocks']:
                blocks.setdefault(parents[2], {})[name] = value
            else:
                config.update_from_flattened_dict({key: value})
        if not blocks:
            raise KeyError('model.blocks')
        config.model.blocks = ConfigDict({name: block(**row) for name, row in blocks.items()})
        validate(config)
    except (ConfigError, AttributeError, LookupError, TypeError, ValueError) as e:
        reason = e if isinstance(e, UserError) else repr(e)
        raise CheckpointError(f"'{path}' is not a run's config ({reason})") from e
    return config
