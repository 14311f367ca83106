"""A released network, written by `experiments.export` and read by `nin_jax.load`.

    config.json         config, class names, provenance; SHA-256 of the other files
    model.safetensors   weights with the authors' layer names, and arrays of the preprocessing
    model.stablehlo     preprocessing and network as a program that only needs JAX
    model.onnx          the same for ONNX runtimes, if requested
    README.md           the model card

A bundled release has no program, and its kernels are float16. Nothing is pickled. `config.json`
also contains its own checksum.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from nin_jax.config import Block
from nin_jax.data import preprocess
from nin_jax.errors import CheckpointError, UserError, did_you_mean
from nin_jax.files import file_sha256, read_json, write_json
from nin_jax.models.factory import abstract_model, join, split_weights
from nin_jax.models.features import layer_names, leaf_name
from nin_jax.pretrained import bundled, model_card
from nin_jax.pretrained.trained import Trained, load_run, open_network, read_config
from nin_jax.runs.workdir import flat_config
from nin_jax.version import __version__

FORMAT = 'nin_jax release 1'
WEIGHTS, PROGRAM, ONNX = 'model.safetensors', 'model.stablehlo', 'model.onnx'
PREPROCESS = 'preprocess.'  # prefix of its arrays among the weights


def check_new(folder: pathlib.Path) -> None:
    """Raises UserError if the folder exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' holds files already: name another --out")


def round_kernels(trained: Trained, dtype: str) -> Trained:
    """Returns the network with its kernels rounded to `dtype`, 'float32' or 'float16'.

    Biases, running averages and the preprocessing are small and stay float32.
    """
    if dtype == 'float32':
        return trained

    def rounded(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype).astype(leaf.dtype) if path[-1].key == 'kernel' else leaf

    params = jax.tree_util.tree_map_with_path(rounded, trained.params)
    return dataclasses.replace(trained, params=params)


def write(
    folder: pathlib.Path,
    trained: Trained,
    programs: dict[str, bytes],
    provenance: dict,
    dtype: str = 'float32',
) -> None:
    """Writes a release atomically: a killed process leaves no files in the folder.

    Args:
      folder: a new or empty folder.
      trained: the network, from `round_kernels` if dtype is not float32.
      programs: {PROGRAM: result of `stablehlo.serialize`, ONNX: result of `onnx_graph.build`}, or
        only one of them, or none.
      provenance: the result of `model_card.provenance`, for config.json and the model card.
      dtype: dtype of the stored kernels, 'float32' or 'float16'; `load` converts to float32.

    Raises:
      UserError: see `check_new`.
      OSError: a file cannot be written.
    """
    folder = folder.absolute()
    check_new(folder)
    temporary = folder.with_name(f'{folder.name}.{os.getpid()}.incomplete')
    temporary.mkdir(parents=True)
    try:
        arrays = named(trained.params, _layer_names(trained.config))
        arrays = {k: a.astype(dtype) if k.endswith('.kernel') else a for k, a in arrays.items()}
        arrays |= {
            f'{PREPROCESS}{name}': np.asarray(array)
            for name, array in trained.preprocess.arrays.items()
            if array is not None
        }
        card = model_card.text(trained, provenance, tuple(programs), dtype).encode()
        files = {
            WEIGHTS: safetensors.numpy.save(arrays, metadata={'format': FORMAT}),
            **programs,
            'README.md': card,
        }
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        content = {
            'format': FORMAT,
            'version': __version__,
            'step': trained.step,
            'class_names': list(trained.class_names),
            'image_shape': list(trained.image_shape),
            'preprocess': {
                'recipe': trained.preprocess.recipe,
                'gcn_scale': float(trained.preprocess.gcn_scale),
            },
            'config': flat_config(model_card.published(trained.config)),
            'provenance': provenance,
            'sha256': {name: file_sha256(temporary / name) for name in files},
        }
        write_json(temporary / 'config.json', content)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(path: str | os.PathLike, step: int | None = None) -> Trained:
    """Opens a release, or a run at `step` (None: its newest checkpoint); see `nin_jax.load`.

    Raises:
      CheckpointError: a file is missing, damaged, or not of a release or a run.
    """
    path = bundled.resolve(pathlib.Path(path))
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise CheckpointError(
            f"'{path}' does not exist, nor is it a bundled network"
            + (did_you_mean(str(path), names) if (names := bundled.names()) else '')
        )
    content = _read_content(folder)
    if 'format' not in content:
        return load_run(folder, step)
    if step not in (None, content['step']):
        raise CheckpointError(f"'{folder}' is a release of step {content['step']}, not {step}")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"'{weights}' is missing: get the release again")
    if file_sha256(weights) != content['sha256'][WEIGHTS]:
        raise CheckpointError(
            f"'{weights}' is damaged (its SHA-256 is not that in config.json): get the release "
            'again'
        )
    arrays = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in safetensors.numpy.load_file(weights).items()
    }
    config = read_config(content['config'], folder / 'config.json')
    config.devices = 1
    fitted = preprocess.Preprocess(
        content['preprocess']['recipe'],
        content['preprocess']['gcn_scale'],
        **{name: arrays.pop(f'{PREPROCESS}{name}', None) for name in preprocess.ARRAYS},
    )
    shape, class_names = tuple(content['image_shape']), tuple(content['class_names'])
    template = join(*split_weights(abstract_model(config, shape, len(class_names))))
    return open_network(
        config,
        _fill(template, arrays, _layer_names(config), weights),
        step=content['step'],
        fitted=fitted,
        class_names=class_names,
        image_shape=shape,
    )


def pretrained_weights(config: ConfigDict) -> Callable[[], dict] | None:
    """Returns a function that loads the weights of `init.weights`; None if that is empty."""
    source = os.path.expanduser(config.init.weights)
    return (lambda: load(source).params) if source else None


def _read_content(folder: pathlib.Path) -> dict:
    """Reads config.json of a release or a run."""
    path = folder / 'config.json'
    if not path.is_file():
        raise CheckpointError(
            f"'{folder}' holds no config.json: name the folder of a release or of a run"
        )
    content = read_json(path)
    if 'data.name' in content:
        return content
    if content.get('format') != FORMAT:
        raise CheckpointError(
            f"'{folder}' holds neither a release that nin_jax {__version__} can read nor a run"
        )
    return content


# ---- names ----------------------------------------------------------------------------------


def _layer_names(config: ConfigDict) -> dict[tuple[str, str], str]:
    return layer_names(tuple(Block(**row) for row in config.model.blocks.values()))


def named(tree: dict, names: dict[tuple[str, str], str]) -> dict[str, np.ndarray]:
    """Returns a parameter tree as {'conv1.kernel': array, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path, names): np.asarray(leaf) for path, leaf in leaves}


def _fill(template: dict, arrays: dict, names: dict, path: pathlib.Path) -> dict:
    """Fills a tree with named arrays; raises CheckpointError if one is missing or left."""

    def take(key_path: tuple, leaf: jax.Array) -> jax.Array:
        name = leaf_name(key_path, names)
        if name not in arrays:
            raise CheckpointError(f"'{path}' lacks {name}, which config.json requires")
        array = arrays.pop(name)
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise CheckpointError(
                f"'{path}' holds {name} as {array.dtype} {array.shape}, its config.json asks for "
                f'{leaf.dtype} {leaf.shape}'
            )
        return jnp.asarray(array)

    arrays = dict(arrays)
    params = jax.tree_util.tree_map_with_path(take, template)
    if arrays:
        raise CheckpointError(f"'{path}' holds {min(arrays)}, which config.json does not know")
    return params
