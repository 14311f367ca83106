"""Makes a release of a trained network: files that load without this code, and a model card.

    python -m experiments.export --workdir=runs/cifar10 --out=release/cifar10

Writes, to a new folder:

    model.stablehlo     preprocessing and network, weights inside; runs with JAX alone
    model.safetensors   the weights and the preprocessing's arrays under the authors' layer names
    config.json         the config, class names, provenance, and the SHA-256 of the other files
    README.md           the model card, with the errors that the run recorded

`nin_jax.load('release/cifar10')` opens it again. --score also scores the run's test images with the
exported program and adds the error to the card.
"""

import pathlib

from absl import flags

from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a trained run.')
OUT = flags.DEFINE_string('out', None, 'The folder to write; new or empty.')
STEP = cli.define_step()
SCORE = flags.DEFINE_bool('score', False, 'Score the test images with the exported program.')
DATA_DIR = cli.define_data_dir()


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    folder = pathlib.Path(cli.required(WORKDIR, cli.A_RUN))
    out = pathlib.Path(cli.required(OUT, 'name a folder to make, such as --out=release/quickstart'))
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import model_card, release, stablehlo, trained

    release.check_new(out)
    use_compilation_cache()
    network = trained.load_run(folder, STEP.value)
    found = model_card.provenance(folder, network.step)
    program = stablehlo.serialize(network)
    found['largest_difference'] = stablehlo.largest_difference(program, network)
    if SCORE.value:
        test = cli.eval_images(network, DATA_DIR.value)
        errors = stablehlo.count_errors(program, test)
        found |= {'exported_error': errors / len(test), 'scored': len(test)}
        print(f'the exported program: {errors:,} of {len(test):,} wrong')
    release.write(out, network, program, found)
    for path in sorted(out.iterdir()):
        print(f'{path.stat().st_size:>12,} bytes  {path}')
    return 0


if __name__ == '__main__':
    cli.run(main)
