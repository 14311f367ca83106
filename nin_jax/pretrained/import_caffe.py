"""Converts the authors' weights to a run with one checkpoint, at step 0."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nin_jax.config import validate
from nin_jax.data import preprocess
from nin_jax.data.pipeline import fit_preprocess, open_source
from nin_jax.devices import is_cpu, make_mesh, use_compilation_cache
from nin_jax.errors import UserError
from nin_jax.files import file_sha256, write_json
from nin_jax.models.nin import count_parameters
from nin_jax.plan import make_plan
from nin_jax.pretrained.caffemodel import import_nin, read_caffemodel
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.display import warn
from nin_jax.runs.environment import environment
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.summary import summary
from nin_jax.runs.workdir import CONFIG, PREPROCESS, SUMMARY, flat_config, locked
from nin_jax.train.trainer import make_setup


def import_caffemodel(config: ConfigDict, caffemodel: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes a run to `folder`, with preprocessing fitted to the config's training split.

    Raises:
      CheckpointError: the file is missing, damaged or of another network.
      UserError: the folder already contains a run.
      DataError: the training images are not prepared.
    """
    validate(config)
    layers = import_nin(read_caffemodel(caffemodel))
    use_compilation_cache()
    clock = Stopwatch()
    with locked(folder):
        if (folder / CONFIG).exists():
            raise UserError(f"'{folder}' holds a run already: name another --workdir")
        with clock('data'):
            train = open_source(config, config.data.train)
            fitted = fit_preprocess(config, train)
        mesh = make_mesh(1)
        plan = make_plan(config, len(train), is_cpu(mesh))
        _, init_state = make_setup(config, plan, mesh, train.image_shape, len(train.class_names))
        state = init_state(0)
        state = state.starting_from(fill(state.params, layers))

        flat = flat_config(config)
        meta = {
            'config': flat,
            'environment': environment(),
            'preprocess': preprocess.digest(fitted),
            'class_names': train.class_names,
        }
        preprocess.save(folder / PREPROCESS, fitted)
        with Checkpoints(folder / 'checkpoints', config.checkpoint.keep, warn) as checkpoints:
            checkpoints.save(0, state, meta, error=None)
            checkpoints.wait()
        imported = summary(
            'imported',
            config,
            reason=f'weights of {caffemodel.name}, SHA-256 {file_sha256(caffemodel)}',
            parameters=count_parameters(state.params),
            seconds=clock.seconds,
        )
        write_json(folder / SUMMARY, imported)
        write_json(folder / CONFIG, flat)  # last: with it, the folder counts as a run


def fill(params: dict, layers: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Replaces (kernel_HWIO, bias_O) of all convolutions in a parameter tree, in forward order.

    Raises:
      ValueError: the number of layers or a shape is different.
    """
    convs = [
        (block, name)
        for block in sorted(params['mlpconvs'])
        for name in sorted(params['mlpconvs'][block]['layers'], key=lambda n: (n != 'conv', n))
    ]
    params = jax.tree.map(lambda x: x, params)  # a copy of the dicts
    for (block, name), (kernel, bias) in zip(convs, layers, strict=True):
        layer = params['mlpconvs'][block]['layers'][name]
        if layer['kernel'].shape != kernel.shape or layer['bias'].shape != bias.shape:
            raise ValueError(
                f'{block} {name} is {layer["kernel"].shape}, the weights {kernel.shape}'
            )
        layer |= {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}
    return params
