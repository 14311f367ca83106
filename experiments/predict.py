"""Says what a trained network takes a picture of yours for.

    python -m experiments.predict --workdir=runs/cifar10 images.png
    python -m experiments.predict --workdir=runs/cifar10 images.png --heatmap=heat.png

Prints the five likeliest classes. The largest square in the middle of the picture is scaled to the
size that the network was trained on, whatever the picture's size. A network for digits gets it in
grey, and negative if its border is light: MNIST's digits are light on black. --heatmap writes the
square with the map of the likeliest class laid over it.
"""

import pathlib

from absl import flags

from experiments import cli
from nin_jax.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a trained run, or of a release.')
HEATMAP = flags.DEFINE_string('heatmap', None, 'A .png to write, of what speaks for the class.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to use; the newest if not given.')


def main(argv: list[str]) -> int:
    if not WORKDIR.value:
        raise UserError('--workdir is missing: name the folder of a run, such as runs/quickstart')
    if not argv[1:]:
        raise UserError('name a picture, such as images.png')
    if HEATMAP.value and (len(argv) > 2 or not HEATMAP.value.lower().endswith('.png')):
        raise UserError(f'--heatmap={HEATMAP.value}: must be one .png, for one picture')
    from nin_jax.data import images
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import release
    from nin_jax.visualize import figures

    photos = [images.read_photo(path) for path in argv[1:]]
    use_compilation_cache()
    run = release.load(pathlib.Path(WORKDIR.value), STEP.value)
    if HEATMAP.value:
        figures.check_class_maps(run)
    for path, image_HWC in zip(argv[1:], photos, strict=True):
        seen = figures.look(run, image_HWC)
        print(f'{path}: {seen.treatment}')
        for k in seen.ranking[:5]:
            print(f'{seen.probabilities_K[k]:8.2%}  {run.class_names[k]}')
        if HEATMAP.value:
            figures.heat_of(run, seen).save(HEATMAP.value, optimize=True)
            print(f"where it sees '{run.class_names[seen.ranking[0]]}': {HEATMAP.value}")
    return 0


if __name__ == '__main__':
    cli.run(main)
