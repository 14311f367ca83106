r"""Makes a release of a trained network: files that load without this code, and a model card.

    python -m experiments.export --workdir=runs/cifar10 --out=release/cifar10

Writes, to a new folder:

    model.stablehlo     preprocessing and network, weights inside; runs with JAX alone
    model.onnx          with --onnx: the same for ONNX Runtime, images of any size
    model.safetensors   the weights and the preprocessing's arrays under the authors' layer names
    config.json         the config, class names, provenance, and the SHA-256 of the other files
    README.md           the model card, with the errors that the run recorded

`nin_jax.load('release/cifar10')` opens it again. --score also scores the run's test images with
the exported program, and adds the error to the card.

A network to come with the package is small: no program, kernels in float16, refused if that moves
the test error by more than 0.02 points.

    python -m experiments.export --workdir=runs/cifar10 --bundle \
        --out=nin_jax/pretrained/weights/cifar10
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli
from nin_jax.errors import DataError, UserError

if TYPE_CHECKING:
    from nin_jax.pretrained.trained import Trained

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a trained run.')
OUT = flags.DEFINE_string('out', None, 'The folder to write; new or empty.')
STEP = cli.define_step()
SCORE = flags.DEFINE_bool('score', False, 'Score the test images with the exported program.')
DATA_DIR = cli.define_data_dir()


BUNDLE = flags.DEFINE_bool('bundle', False, 'No program, and kernels in float16.')
DTYPE = flags.DEFINE_enum(
    'dtype', None, ('float32', 'float16'), 'Of the stored kernels; float32 if not --bundle.'
)
ONNX = flags.DEFINE_bool('onnx', False, 'Also write model.onnx, checked with ONNX Runtime.')
MOST_POINTS = 0.02  # of test error, that float16 may cost
ONNX_IMAGES = 1000
ONNX_TOLERANCE = 0.05  # of the largest logit; ONNX computes in float32 what may be bfloat16


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    folder = pathlib.Path(cli.required(WORKDIR, cli.A_RUN))
    out = pathlib.Path(cli.required(OUT, 'name a folder to make, such as --out=release/quickstart'))
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import model_card, release
    from nin_jax.pretrained.trained import load_run

    dtype = DTYPE.value or ('float16' if BUNDLE.value else 'float32')
    release.check_new(out)
    use_compilation_cache()
    run = load_run(folder, STEP.value)
    stored = release.stored_in(run, dtype)
    found = model_card.provenance(folder, run.step)
    if dtype != 'float32':
        found |= check_rounding(run, stored, DATA_DIR.value)
    programs = {}
    if not BUNDLE.value:
        programs[release.PROGRAM] = program = stablehlo_program(stored, found)
        if SCORE.value:
            found |= score_program(stored, program, DATA_DIR.value)
    if ONNX.value:
        programs[release.ONNX] = onnx_program(stored, found, DATA_DIR.value)
    release.write(out, stored, programs, found, dtype)
    for path in sorted(out.iterdir()):
        print(f'{path.stat().st_size:>12,} bytes  {path}')
    return 0


def check_rounding(run: Trained, stored: Trained, data_dir: str | None) -> dict:
    """Scores the test images with both networks; what to add to the card.

    Raises:
      UserError: the rounded kernels have another error.
    """
    try:
        split = cli.eval_images(run, data_dir)
    except DataError as e:
        print(f'not checked with the test images: {e}')
        return {}
    before, after = (
        int((network(split.images).argmax(-1) != split.labels).sum()) for network in (run, stored)
    )
    count = len(split.labels)
    print(f'float32: {before:,} of {count:,} wrong; as stored: {after:,}')
    if abs(after - before) > MOST_POINTS / 100 * count:
        raise UserError(
            f'--dtype=float16 moves the test error from {before / count:.2%} to '
            f'{after / count:.2%}, by more than {MOST_POINTS} points: export with --dtype=float32'
        )
    how = 'these weights, one view an image'
    return {'scored_error': after / count, 'scored': count, 'scored_by': how}


def stablehlo_program(network: Trained, found: dict) -> bytes:
    """The program; its largest difference goes into `found`."""
    from nin_jax.pretrained import stablehlo

    program = stablehlo.serialize(network)
    found['largest_difference'] = stablehlo.largest_difference(program, network)
    return program


def score_program(network: Trained, program: bytes, data_dir: str | None) -> dict:
    """The exported program's error on the test images, for the card."""
    from nin_jax.pretrained import stablehlo

    split = cli.eval_images(network, data_dir)
    errors, count = stablehlo.count_errors(program, split), len(split.labels)
    print(f'the exported program: {errors:,} of {count:,} wrong')
    how = 'the exported program'
    return {'scored_error': errors / count, 'scored': count, 'scored_by': how}


def onnx_program(network: Trained, found: dict, data_dir: str | None) -> bytes:
    """The ONNX model, checked on test images, or on random ones where there are no others."""
    import numpy as np

    from nin_jax.pretrained import onnx_graph

    model = onnx_graph.build(network)
    try:
        images_NHWC = cli.eval_images(network, data_dir).images
    except DataError:
        shape = (32, *network.image_shape)
        images_NHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    compared = onnx_graph.compare(model, network, images_NHWC[:ONNX_IMAGES])
    print(compared.sentence)
    if compared.largest_difference > ONNX_TOLERANCE * compared.largest_logit:
        raise UserError(
            'ONNX Runtime and the network disagree, so model.onnx would be wrong: export without '
            '--onnx, and report this with the config'
        )
    found['largest_difference'] = max(
        found.get('largest_difference', 0.0), compared.largest_difference
    )
    return model


if __name__ == '__main__':
    cli.run(main)
