"""Visualizes a trained network: class activation maps, filters and mistakes.

    python -m experiments.visualize --workdir=runs/cifar10
    python -m experiments.visualize --workdir=runs/cifar10 --images=street.jpg --images=farm.png

The first command evaluates the test images and writes, to the folder `pictures` of the run:

    figure4.png    the paper's figure 4: the top 10 % of the activations in each class map
    heatmaps.png   images with the map of the predicted class, and a box around its maximum
    filters.png    the filters of the first convolution
    confusion.png  the confusion matrix, with the error of each class
    mistakes.png   the mistakes with the highest confidence
    index.html     a page with all of them, and the run's curves, config and command

The pictures are added to TensorBoard too, at the step of the weights.

With --images, it evaluates only those pictures, of any size, and needs no dataset. For each it
writes dense_<name>.png, which shows the positions of the most probable classes.
"""

import pathlib
from typing import TYPE_CHECKING

from absl import flags

from experiments import cli

if TYPE_CHECKING:
    from PIL import Image

    from nin_jax.pretrained.trained import Trained
    from nin_jax.visualize import figures

WORKDIR = flags.DEFINE_string('workdir', None, 'A run, a release or the name of a bundled network.')
OUT = flags.DEFINE_string('out', None, 'Where to write the pictures; default WORKDIR/pictures.')
IMAGES = flags.DEFINE_multi_string('images', [], 'A picture to score; can be given repeatedly.')
LONGEST = flags.DEFINE_integer(
    'longest',
    256,
    'Longest side of --images in pixels; best if objects are then as large as in training.',
    lower_bound=16,
    upper_bound=2048,
)
STEP = cli.define_step()
DATA_DIR = cli.define_data_dir()


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    workdir = cli.required(WORKDIR, cli.A_RUN)
    from nin_jax.data import images
    from nin_jax.errors import UserError
    from nin_jax.visualize import figures

    stems = [pathlib.Path(path).stem for path in IMAGES.value]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise UserError(
            f'--images: dense_{twice.pop()}.png would hold only one of two pictures: rename one'
        )
    pictures = [images.read_image(path) for path in IMAGES.value]  # mistakes show at once
    network = cli.open_network(workdir, STEP.value)
    if not OUT.value and not pathlib.Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir} is not a folder: add --out=FOLDER')
    if pictures:
        figures.check_class_maps(network)
    out = cli.local(OUT.value or f'{workdir}/pictures')
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, drawn: 'Image.Image') -> None:
        drawn.save(out / name, optimize=True)
        print(out / name, flush=True)

    if pictures:
        for path, image_HWC in zip(IMAGES.value, pictures, strict=True):
            image_HWC, done = images.to_channels(image_HWC, network.image_shape[-1])
            if done:
                print(f'{path}: {done}')
            image_HWC = images.shrink(image_HWC, LONGEST.value)
            write(f'dense_{pathlib.Path(path).stem}.png', figures.dense(network, image_HWC))
        return 0

    test = cli.eval_images(network, DATA_DIR.value)
    print(f'scoring {len(test):,} images ...', flush=True)
    scored = figures.score(network, test)
    if network.config.model.head == 'gap':
        write('figure4.png', figures.figure4(network, scored))
        write('heatmaps.png', figures.heat_maps(network, scored))
    else:
        print('no figure4.png, no heatmaps.png: a fully connected head has no class maps')
    write('filters.png', figures.filters(network))
    write('confusion.png', figures.confusion(scored))
    write('mistakes.png', figures.mistakes(scored))
    write_page(pathlib.Path(workdir), network, scored, out)
    write_tensorboard(pathlib.Path(workdir), network.step, out)
    return 0


def write_tensorboard(folder: pathlib.Path, step: int, out: pathlib.Path) -> None:
    """Adds the pictures to the TensorBoard files of a run; a release has none."""
    import numpy as np
    from PIL import Image

    from nin_jax.runs import tensorboard

    if not (folder / tensorboard.FOLDER).is_dir():
        return
    events = tensorboard.EventFile(folder / tensorboard.FOLDER)
    for path in (out / name for name in CAPTIONS if (out / name).exists()):
        with Image.open(path) as picture:
            events.write_image(step, f'pictures/{path.stem}', np.asarray(picture.convert('RGB')))
    events.close()


def write_page(
    folder: pathlib.Path, network: 'Trained', scored: 'figures.Scored', out: pathlib.Path
) -> None:
    """Writes index.html with the pictures."""
    from nin_jax.files import read_json
    from nin_jax.runs.workdir import SUMMARY
    from nin_jax.visualize import figures, html

    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    drawn = {caption: out / name for name, caption in CAPTIONS.items() if (out / name).exists()}
    error = float((scored.predictions_N != scored.split.labels).mean())
    by_class = figures.class_errors(scored)
    page = html.run_page(folder, network.config, network.step, error, summary, by_class, drawn)
    (out / 'index.html').write_text(page, encoding='utf-8')
    print(out / 'index.html')


CAPTIONS = {
    'figure4.png': 'Class maps, the top 10 % of activations (figure 4 of the paper)',
    'heatmaps.png': 'Class activation maps over the images',
    'mistakes.png': 'Mistakes with the highest confidence',
    'confusion.png': 'Confusion',
    'filters.png': 'Filters of the first convolution',
}


if __name__ == '__main__':
    cli.run(main)
