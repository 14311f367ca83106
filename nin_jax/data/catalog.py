"""The published sizes of the datasets and the paper's splits.

To add a dataset, add an entry to `DATASETS`.
"""

import dataclasses

from nin_jax.errors import ConfigError, did_you_mean

SPLITS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Published facts about an image classification dataset.

    Attributes:
      num_classes: labels are 0 .. num_classes - 1.
      image_shape: (height, width, channels).
      examples: published number of images of each TFDS part; all parts but 'test' are for training.
      channel_means: published mean of each channel of part 'train', pixels in 0..1, 4 decimals.
      held_out: number of validation images: an int counts from the end of 'train'; a dict counts
        from the start of each class of each part.
      storage: 'tfds' (prepared, then cached as arrays), 'bundled' (arrays in this package), or
        'photos' (images of different sizes that stay on disk; see photos.py).
      version: the TFDS version, e.g. '3.0.2'; '' for bundled arrays.
      short_side: for photos, the shorter side in pixels to which they are resized before the crop.
      test_part: for photos, the TFDS name of the part of split 'test'.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    examples: dict[str, int]
    channel_means: tuple[float, ...]
    held_out: int | dict[str, int]
    storage: str = 'tfds'
    version: str = ''
    short_side: int = 0
    test_part: str = 'test'

    @property
    def held_out_last(self) -> int:
        """Number of validation images at the end of 'train'."""
        return self.held_out if isinstance(self.held_out, int) else 0

    @property
    def training_parts(self) -> tuple[str, ...]:
        return tuple(part for part in self.examples if part != 'test')


# Validation images: CIFAR-10 section 4.2, SVHN section 4.4; of CIFAR-100 and MNIST, ours.
DATASETS: dict[str, Dataset] = {
    'mnist': Dataset(
        version='3.0.1',
        num_classes=10,
        image_shape=(28, 28, 1),
        examples={'train': 60_000, 'test': 10_000},
        channel_means=(0.1307,),
        held_out=10_000,
    ),
    'svhn_cropped': Dataset(
        version='3.1.0',
        num_classes=10,
        image_shape=(32, 32, 3),
        examples={'train': 73_257, 'extra': 531_131, 'test': 26_032},
        channel_means=(0.4377, 0.4438, 0.4728),
        held_out={'train': 400, 'extra': 200},
    ),
    'cifar10': Dataset(
        version='3.0.2',
        num_classes=10,
        image_shape=(32, 32, 3),
        examples={'train': 50_000, 'test': 10_000},
        channel_means=(0.4914, 0.4822, 0.4465),
        held_out=10_000,
    ),
    'cifar100': Dataset(
        version='3.0.2',
        num_classes=100,
        image_shape=(32, 32, 3),
        examples={'train': 50_000, 'test': 10_000},
        channel_means=(0.5071, 0.4865, 0.4409),
        held_out=10_000,
    ),
    # The test labels are not public, so the error is that of the official validation images.
    'imagenet2012': Dataset(
        version='5.1.0',
        num_classes=1000,
        image_shape=(224, 224, 3),
        examples={'train': 1_281_167, 'test': 50_000},
        channel_means=(0.485, 0.456, 0.406),
        held_out=10_000,
        storage='photos',
        short_side=256,
        test_part='validation',
    ),
    # Every 11th training and every 10th test image of MNIST; see assets/README.md.
    'mnist_subset': Dataset(
        storage='bundled',
        num_classes=10,
        image_shape=(28, 28, 1),
        examples={'train': 5_000, 'test': 1_000},
        channel_means=(0.1308,),
        held_out=1_000,
    ),
}


def lookup(name: str) -> Dataset:
    """Returns `DATASETS[name]`.

    Raises:
      ConfigError: there is no such dataset; suggests the closest name.
    """
    if name not in DATASETS:
        raise ConfigError(f'no dataset {name!r}{did_you_mean(name, DATASETS)}')
    return DATASETS[name]


def parse_splits(splits: str) -> list[str]:
    """Parses 'train+valid' into split names.

    Raises:
      ConfigError: a split is unknown or named twice.
    """
    wanted = splits.split('+')
    for split in wanted:
        if split not in SPLITS:
            raise ConfigError(f'no split {split!r} in {splits!r}{did_you_mean(split, SPLITS)}')
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f'splits {splits!r} names a split twice')
    return wanted


def count(name: str, splits: str, limit: int = 0) -> int:
    """Returns the published number of images of the splits, or `limit` (`data.limit`) if less.

    Raises:
      ConfigError: there is no such dataset or split.
    """
    dataset = lookup(name)
    total = 0
    for split in parse_splits(splits):
        if split == 'test':
            total += dataset.examples['test']
        for part in dataset.training_parts if split != 'test' else ():
            if isinstance(dataset.held_out, int):
                held_out = dataset.held_out_last if part == 'train' else 0
            else:
                held_out = dataset.num_classes * dataset.held_out.get(part, 0)
            total += held_out if split == 'valid' else dataset.examples[part] - held_out
    return min(total, limit or total)
