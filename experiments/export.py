r"""Exports a trained network as a release: files that load without this code, and a model card.

    python -m experiments.export --workdir=runs/cifar10 --out=release/cifar10

Writes, to a new folder:

    model.stablehlo     preprocessing, network and weights; needs only JAX to run
    model.onnx          with --onnx: the same for ONNX Runtime, for images of any size
    model.safetensors   weights with the authors' layer names, and arrays of the preprocessing
    config.json         config, class names, provenance, and the SHA-256 of the other files
    README.md           the model card, with the errors that the run recorded

`nin_jax.load('release/cifar10')` loads it. --score also evaluates the exported program on the run's
test images, and adds its error to the card.

--bundle makes the small release that the package contains: without a program, and with float16
kernels. It is refused if these change the test error by more than 0.02 points.

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
OUT = flags.DEFINE_string('out', None, 'A new or empty folder to write.')
STEP = cli.define_step()
SCORE = flags.DEFINE_bool('score', False, 'Evaluate the exported program on the test images.')
DATA_DIR = cli.define_data_dir()
BUNDLE = flags.DEFINE_bool('bundle', False, 'Write no program, and float16 kernels.')
DTYPE = flags.DEFINE_enum(
    'dtype', None, ('float32', 'float16'), 'Dtype of the stored kernels; float32 without --bundle.'
)
ONNX = flags.DEFINE_bool('onnx', False, 'Also write model.onnx, checked with ONNX Runtime.')
MOST_POINTS = 0.02  # largest change of the test error by float16, in points
ONNX_IMAGES = 1000
ONNX_TOLERANCE = 0.05  # share of the largest logit; ONNX is float32, the network may be bfloat16


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    folder = pathlib.Path(cli.required(WORKDIR, cli.A_RUN))
    out = pathlib.Path(cli.required(OUT, 'name a folder to make, such as --out=release/quickstart'))
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import model_card, release, stablehlo
    from nin_jax.pretrained.trained import load_run

    if SCORE.value and BUNDLE.value:
        raise UserError('--score needs a program, and --bundle exports none: leave one out')
    dtype = DTYPE.value or ('float16' if BUNDLE.value else 'float32')
    release.check_new(out)
    if not BUNDLE.value:
        stablehlo.check_installed()
    use_compilation_cache()
    run = load_run(folder, STEP.value)
    stored = release.round_kernels(run, dtype)
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
    """Evaluates both networks on the test images; returns what to add to the card.

    Raises:
      UserError: the errors of the networks differ by more than MOST_POINTS.
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
    how = 'these weights, one view per image'
    return {'scored_error': after / count, 'scored': count, 'scored_by': how}


def stablehlo_program(network: Trained, found: dict) -> bytes:
    """Returns the program, and adds its largest difference to `found`."""
    from nin_jax.pretrained import stablehlo

    program = stablehlo.serialize(network)
    found['largest_difference'] = stablehlo.largest_difference(program, network)
    return program


def score_program(network: Trained, program: bytes, data_dir: str | None) -> dict:
    """Returns the error of the exported program on the test images, for the card."""
    from nin_jax.pretrained import stablehlo

    split = cli.eval_images(network, data_dir)
    errors, count = stablehlo.count_errors(program, split), len(split.labels)
    print(f'the exported program: {errors:,} of {count:,} wrong')
    how = 'the exported program'
    return {'scored_error': errors / count, 'scored': count, 'scored_by': how}


def onnx_program(network: Trained, found: dict, data_dir: str | None) -> bytes:
    """Returns the ONNX model, after a comparison on test images (random ones without a dataset)."""
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
    if not compared.largest_difference <= ONNX_TOLERANCE * compared.largest_logit:  # or NaN
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
