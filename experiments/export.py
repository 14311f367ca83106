"""Makes a release of a trained network: files that load without this code, and a model card.

    python -m experiments.export --workdir=runs/cifar10 --out=release/cifar10

Writes, to a new folder:

    model.stablehlo     preprocessing and network, weights inside; runs with JAX alone
    model.safetensors   the weights and the preprocessing's arrays under the authors' layer names
    config.json         the config, class names, provenance, and the SHA-256 of the other files
    README.md           the model card, its figures from the run's own records

`nin_jax.load('release/cifar10')` opens it again. --score also lets the exported program score the
run's test images, and says so in the card.
"""

import pathlib

from absl import flags

from experiments import cli
from nin_jax.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a trained run.')
OUT = flags.DEFINE_string('out', None, 'The folder to write; new or empty.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to export; the newest if not given.')
SCORE = flags.DEFINE_bool('score', False, 'Score the test images with the exported program.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data is, if not where the run had it.')


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise UserError(f"unexpected argument '{argv[1]}': flags begin with --")
    if not WORKDIR.value:
        raise UserError('--workdir is missing: name the folder of a run, such as runs/quickstart')
    if not OUT.value:
        raise UserError('--out is missing: name a folder to make, such as release/quickstart')
    from nin_jax.data.pipeline import open_source
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import model_card, release, stablehlo, trained

    folder, out = pathlib.Path(WORKDIR.value), pathlib.Path(OUT.value)
    release.check_new(out)
    use_compilation_cache()
    run = trained.load(folder, STEP.value)
    found = model_card.provenance(folder, run.step)
    program = stablehlo.serialise(run)
    found['largest_difference'] = stablehlo.largest_difference(program, run)
    if SCORE.value:
        if DATA_DIR.value is not None:
            run.config.data.dir = DATA_DIR.value
        split = open_source(run.config, run.config.data.eval).load()
        errors = stablehlo.count_errors(program, split)
        found |= {'exported_error': errors / len(split.labels), 'scored': len(split.labels)}
        print(f'the exported program: {errors:,} of {len(split.labels):,} wrong')
    release.write(out, run, program, found)
    for path in sorted(out.iterdir()):
        print(f'{path.stat().st_size:>12,} bytes  {path}')
    return 0


if __name__ == '__main__':
    cli.run(main)
