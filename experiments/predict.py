"""Classifies pictures with a trained network.

    python -m experiments.predict photo.png
    python -m experiments.predict --workdir=runs/cifar10 photo.png --heatmap=heat.png
    python -m experiments.predict --workdir=runs/cifar10 holiday/ a.jpg b.jpg --json

Without --workdir, it uses the CIFAR-10 network of the package.

It prints the five most probable classes of each picture; a folder stands for all pictures in it.
The largest center square of a picture is resized to the size of the training images. For a network
of digits it is converted to gray, and inverted if its border is light, because MNIST's digits are
light on black.

--json prints a JSON object per line: path, treatment, and the probability of each class, highest
first. --heatmap writes the square with the class activation map of the most probable class. If a
picture cannot be read, it prints an error message, classifies the others and exits with
status 2.
"""

import json
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli
from nin_jax.errors import DataError, UserError

if TYPE_CHECKING:
    from nin_jax.visualize import figures

WORKDIR = flags.DEFINE_string('workdir', None, 'A run, a release or the name of a bundled network.')
HEATMAP = flags.DEFINE_string('heatmap', None, 'A .png to write, for one picture.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per picture.')
STEP = cli.define_step()


def main(argv: list[str]) -> int:
    if not argv[1:]:
        raise UserError('name a picture or a folder of pictures, such as photo.png')
    from nin_jax.data import images

    paths = images.find(argv[1:])
    heatmap = HEATMAP.value
    if heatmap and (len(paths) > 1 or not heatmap.lower().endswith('.png')):
        raise UserError(f'--heatmap={heatmap}: must be one .png, for one picture')
    if heatmap and paths[0].resolve() == pathlib.Path(heatmap).resolve():
        raise UserError(f'--heatmap={heatmap}: is the picture itself, name another file')
    if len(paths) == 1:
        images.read_image(paths[0])  # a mistake shows before JAX is imported
    from nin_jax.console import track
    from nin_jax.pretrained import bundled
    from nin_jax.visualize import figures

    network = cli.open_network(WORKDIR.value or bundled.DEFAULT, STEP.value)
    if heatmap:
        figures.check_class_maps(network)
    status = 0
    for path in paths if sys.stdout.isatty() else track(paths, 'classifying'):
        try:
            image_HWC = images.read_image(path)
        except DataError as e:
            status = cli.print_error(str(e))
            continue
        found = figures.predict(network, image_HWC)
        print(as_json(path, found) if JSON.value else as_text(path, found), flush=True)
        if heatmap:
            figures.heat_map(network, found).save(heatmap, optimize=True)
            if not JSON.value:
                print(f"class activation map of '{found.ranking()[0][0]}': {heatmap}")
    return status


def as_text(path: pathlib.Path, found: 'figures.Prediction') -> str:
    """Formats the five most probable classes, one per line."""
    lines = [f'{p:8.2%}  {name}' for name, p in found.ranking()[:5]]
    return '\n'.join([f'{path}: {found.treatment}', *lines])


def as_json(path: pathlib.Path, found: 'figures.Prediction') -> str:
    """Formats one JSON object: path, treatment, and classes with their probabilities."""
    classes = [{'class': name, 'probability': p} for name, p in found.ranking()]
    return json.dumps({'path': str(path), 'treatment': found.treatment, 'classes': classes})


if __name__ == '__main__':
    cli.run(main)
