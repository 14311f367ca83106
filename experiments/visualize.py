"""Makes pictures of what a trained network sees.

    python -m experiments.visualize --workdir=runs/cifar10
    python -m experiments.visualize --workdir=runs/cifar10 --images=street.jpg --images=farm.png

The first command scores the run's test split and writes, to the folder `pictures` of the run:

    figure4.png    the paper's figure 4: class maps, of which the top 10 % of activations show
    heatmaps.png   the predicted class's map laid over the image, a box round the hottest region
    filters.png    the filters of the first convolution
    confusion.png  what was taken for what, and each class's error
    mistakes.png   the mistakes made with the highest confidence

With --images, only those pictures are looked at, whatever their size, and no dataset is needed:
each becomes a dense_<name>.png of where the likeliest classes are.
"""

import pathlib

from absl import flags

from experiments import cli
from nin_jax.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a trained run, or of a release.')
OUT = flags.DEFINE_string('out', None, 'Where to write the pictures; default WORKDIR/pictures.')
IMAGES = flags.DEFINE_multi_string('images', [], 'A picture of your own; may be given repeatedly.')
LONGEST = flags.DEFINE_integer(
    'longest',
    256,
    'Scale --images down to so many pixels; objects should come out as large as in training.',
    lower_bound=16,
    upper_bound=2048,
)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to look at; the newest if not given.')
DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Where `prepare` put the data; where the run found it if not given.'
)


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise UserError(f"unexpected argument '{argv[1]}': flags begin with --")
    if not WORKDIR.value:
        raise UserError('--workdir is missing: name the folder of a run, such as runs/quickstart')
    from nin_jax.data import images
    from nin_jax.data.pipeline import open_source
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import release
    from nin_jax.visualize import figures

    folder = pathlib.Path(WORKDIR.value)
    out = pathlib.Path(OUT.value) if OUT.value else folder / 'pictures'
    photos = [images.read_photo(path) for path in IMAGES.value]  # mistakes first
    use_compilation_cache()
    run = release.load(folder, STEP.value)
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, picture) -> None:
        picture.save(out / name, optimize=True)
        print(out / name, flush=True)

    if photos:
        figures.check_class_maps(run)
        for path, image_HWC in zip(IMAGES.value, photos, strict=True):
            image_HWC, done = images.to_channels(image_HWC, run.image_shape[-1])
            if done:
                print(f'{path}: {done}')
            image_HWC = images.shrink(image_HWC, LONGEST.value)
            write(f'dense_{pathlib.Path(path).stem}.png', figures.dense(run, image_HWC))
        return 0

    if DATA_DIR.value is not None:
        run.config.data.dir = DATA_DIR.value
    split = open_source(run.config, run.config.data.eval).load()
    print(f'scoring {len(split.labels):,} images ...', flush=True)
    scored = figures.score(run, split)
    if run.config.model.head == 'gap':
        write('figure4.png', figures.figure4(run, scored))
        write('heatmaps.png', figures.heat_maps(run, scored))
    else:
        print('no figure4.png, no heatmaps.png: before a fully connected head, maps have no class')
    write('filters.png', figures.filters(run))
    write('confusion.png', figures.confusion(scored))
    write('mistakes.png', figures.mistakes(scored))
    return 0


if __name__ == '__main__':
    cli.run(main)
