"""The authors' weights as an ordinary run: its checkpoint, at step 0, holds theirs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nin_jax import preprocess, workdir
from nin_jax.cache import file_sha256
from nin_jax.caffemodel import import_nin, read_caffemodel
from nin_jax.checkpoint import Checkpoints
from nin_jax.commands import PREPROCESS, use_compilation_cache, warn
from nin_jax.config import flatten, make_plan, validate
from nin_jax.errors import UserError
from nin_jax.model import count_parameters
from nin_jax.records import Stopwatch, write_json
from nin_jax.run import build, fit_preprocess, is_cpu, load_split, make_mesh


def import_caffemodel(config: ConfigDict, caffemodel: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the run into `folder`, its preprocessing fitted to the config's training split.

    Raises:
      CheckpointError: the file is missing, damaged or another network.
      UserError: the folder holds a run already.
      DataError: the training images are not prepared.
    """
    validate(config)
    layers = import_nin(read_caffemodel(caffemodel))
    use_compilation_cache()
    clock = Stopwatch()
    with workdir.locked(folder):
        if (folder / 'config.json').exists():
            raise UserError(f"'{folder}' holds a run already: name another --workdir")
        with clock('data'):
            train = load_split(config, config.data.train)
            fitted = fit_preprocess(config, train)
        mesh = make_mesh(1)
        plan = make_plan(config, len(train.labels), is_cpu(mesh))
        _, init_state = build(config, plan, mesh, train.images.shape[1:], len(train.class_names))
        state = init_state(0)
        state = state.starting_from(fill(state.params, layers))

        meta = {
            'config': workdir.jsonable(flatten(config)),
            'environment': workdir.environment(),
            'preprocess': preprocess.digest(fitted),
            'class_names': train.class_names,
        }
        preprocess.save(folder / PREPROCESS, fitted)
        with Checkpoints(folder / 'checkpoints', config.checkpoint.keep, warn) as checkpoints:
            checkpoints.save(0, state, meta, error=None)
            checkpoints.wait()
        summary = {
            'status': 'imported',
            'reason': f'weights of {caffemodel.name}, SHA-256 {file_sha256(caffemodel)}',
            'final_error': None,
            'best_error': None,
            'best_step': None,
            'step': 0,
            'epoch': 0.0,
            'seed': config.seed,
            'attempt': 0,
            'parameters': count_parameters(state.params),
            'seconds': {part: round(s, 2) for part, s in clock.seconds.items()},
            'config': meta['config'],
            **meta['environment'],
        }
        write_json(folder / 'summary.json', summary)
        workdir.settle_config(folder, config)  # last: with it, the folder counts as a run


def fill(params: dict, layers: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """A parameter tree with its convolutions' (kernel_HWIO, bias_O) replaced, first to last.

    Raises ValueError if there are not as many, or not of the same shapes.
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
