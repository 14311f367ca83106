"""The paper's datasets as in-memory uint8 arrays, in official order, with the paper's splits.

`python -m experiments.prepare NAME` writes the TFDS dataset once; from then on `load` reads plain
.npy files (nin_jax/cache.py) and needs no TFDS. A fifth dataset is one more entry of `DATASETS`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from nin_jax import cache
from nin_jax.errors import ConfigError, DataError, did_you_mean

SPLITS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One TFDS image-classification dataset, and the facts published about it.

    Attributes:
      version: the TFDS version, e.g. '3.0.2'; '' means the arrays ship with this package.
      num_classes: labels are 0 .. num_classes - 1.
      image_shape: (height, width, channels).
      examples: published number of images of every TFDS part; all but 'test' are for training.
      channel_means: published mean of each channel of part 'train', pixels in 0..1, 4 decimals.
      held_out: the validation images: an int is that many last images of 'train'; a dict is that
        many first images of each class of those parts.
      resize: 0, or: these are photographs of many sizes, read from the disk as training goes (see
        photos.py), each scaled to so many pixels along its shorter side, and cut to image_shape.
      test_part: what TFDS calls the part that split 'test' is made of; for photographs only.
    """

    version: str
    num_classes: int
    image_shape: tuple[int, int, int]
    examples: dict[str, int]
    channel_means: tuple[float, ...]
    held_out: int | dict[str, int]
    resize: int = 0
    test_part: str = 'test'

    @property
    def training_parts(self) -> tuple[str, ...]:
        return tuple(part for part in self.examples if part != 'test')


# Splits: CIFAR-10 paper section 4.2 (CIFAR-100 and MNIST likewise), SVHN section 4.4.
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
    # The test set's labels were never published: errors are reported on the validation images.
    'imagenet2012': Dataset(
        version='5.1.0',
        num_classes=1000,
        image_shape=(224, 224, 3),
        examples={'train': 1_281_167, 'test': 50_000},
        channel_means=(0.485, 0.456, 0.406),
        held_out=10_000,
        resize=256,
        test_part='validation',
    ),
    # Every 11th training and every 10th test image of MNIST; see assets/README.md.
    'mnist_subset': Dataset(
        version='',
        num_classes=10,
        image_shape=(28, 28, 1),
        examples={'train': 5_000, 'test': 1_000},
        channel_means=(0.1308,),
        held_out=1_000,
    ),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C), labels int32 (N,), and the name of each class."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def like(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an image."""
        return self.images.shape[1:], self.images.dtype


def load(name: str, splits: str, data_dir: str = '') -> Split:
    """Loads one split, or several joined by '+', into memory.

    'train+valid' is the whole official training set; for MNIST and CIFAR in its official order,
    for SVHN the held-out images come last.

    Args:
      name: a key of `DATASETS`.
      splits: 'train', 'valid', 'test' or a '+' of them, e.g. 'train+valid'.
      data_dir: the TFDS folder; '' means $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      ConfigError: no such dataset or split.
      DataError: the dataset is not prepared in `data_dir`, or its files are damaged.
    """
    dataset = lookup(name)
    if dataset.resize:
        from nin_jax import photos  # which imports this

        return photos.open_split(name, splits, data_dir).load()
    wanted = parse_splits(splits)
    parts = ['test'] if 'test' in wanted else []
    if {'train', 'valid'} & set(wanted):
        parts += dataset.training_parts
    arrays, class_names = _read_parts(name, dataset, parts, data_dir)
    chosen = [rows for split in wanted for rows in _rows(dataset, split, arrays)]

    # Filled part by part, as SVHN's training images (1.8 GB) should not be in memory twice.
    total = sum(len(rows) for _, rows in chosen)
    images_NHWC = np.empty((total, *dataset.image_shape), np.uint8)
    labels_N = np.empty(total, np.int32)
    start = 0
    for part, rows in chosen:
        here = slice(start, start + len(rows))
        np.take(arrays[part][0], rows, axis=0, out=images_NHWC[here], mode='clip')
        labels_N[here] = arrays[part][1][rows]
        start += len(rows)
    return Split(images_NHWC, labels_N, class_names)


def count(name: str, splits: str) -> int:
    """How many images `load` would return, from the published numbers; reads nothing.

    Raises ConfigError for no such dataset or split.
    """
    dataset = lookup(name)
    total = 0
    for split in parse_splits(splits):
        if split == 'test':
            total += dataset.examples['test']
        for part in dataset.training_parts if split != 'test' else ():
            if isinstance(dataset.held_out, int):
                held_out = dataset.held_out if part == 'train' else 0
            else:
                held_out = dataset.num_classes * dataset.held_out.get(part, 0)
            total += held_out if split == 'valid' else dataset.examples[part] - held_out
    return total


def lookup(name: str) -> Dataset:
    """Returns `DATASETS[name]`; raises ConfigError, with the nearest name, if there is none."""
    if name not in DATASETS:
        raise ConfigError(f'no dataset {name!r}{did_you_mean(name, DATASETS)}')
    return DATASETS[name]


def parse_splits(splits: str) -> list[str]:
    """The splits that a '+' joins; ConfigError for one that there is not, or twice."""
    wanted = splits.split('+')
    for split in wanted:
        if split not in SPLITS:
            raise ConfigError(f'no split {split!r} in {splits!r}{did_you_mean(split, SPLITS)}')
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f'splits {splits!r} names a split twice')
    return wanted


def _read_parts(name: str, dataset: Dataset, parts: list[str], data_dir: str):
    """Returns {part: (images uint8 (N, H, W, C), labels int32 (N,))} and the class names."""
    if not dataset.version:
        return _read_embedded(name, dataset, parts)
    folder = cache.ready(name, dataset, cache.data_root(data_dir))
    class_names, digests = cache.read_index(folder)
    if len(class_names) != dataset.num_classes:
        raise DataError(
            f'{folder} names {len(class_names)} classes, but {name} has {dataset.num_classes}: '
            f'delete {folder}, it is rebuilt on the next start'
        )
    arrays = {part: cache.read_part(folder, part, digests) for part in parts}
    for part, (images, labels) in arrays.items():
        _check(name, dataset, part, images, labels)
    return arrays, class_names


def _read_embedded(name: str, dataset: Dataset, parts: list[str]):
    with np.load(Path(__file__).parent / 'assets' / f'{name}.npz', allow_pickle=False) as npz:
        arrays = {
            part: (npz[f'{part}_images'], npz[f'{part}_labels'].astype(np.int32)) for part in parts
        }
    return arrays, tuple(str(k) for k in range(dataset.num_classes))


def _check(name: str, dataset: Dataset, part: str, images: np.ndarray, labels: np.ndarray):
    if images.shape != (len(labels), *dataset.image_shape) or images.dtype != np.uint8:
        raise DataError(
            f'{name}/{part} holds {images.dtype} images of shape {images.shape} and {len(labels)} '
            f'labels, expected uint8 (N, {", ".join(map(str, dataset.image_shape))})'
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < dataset.num_classes:
        raise DataError(
            f'{name}/{part} holds labels {labels.min()} to {labels.max()}, '
            f'expected 0 to {dataset.num_classes - 1}'
        )


def _rows(dataset: Dataset, split: str, arrays) -> list[tuple[str, np.ndarray]]:
    """Which rows of which parts make up one split, as (part, row numbers) pairs."""
    if split == 'test':
        return [('test', np.arange(len(arrays['test'][1])))]
    rows = []
    for part in dataset.training_parts:
        held_out_N = _held_out(dataset, part, arrays[part][1])
        rows.append((part, np.flatnonzero(held_out_N == (split == 'valid'))))
    return rows


def _held_out(dataset: Dataset, part: str, labels_N: np.ndarray) -> np.ndarray:
    """Marks the validation images of a part: bool (N,). Never more than half of a small sample."""
    mask_N = np.zeros(len(labels_N), bool)
    if isinstance(dataset.held_out, int):
        if part == 'train':
            mask_N[len(labels_N) - min(dataset.held_out, len(labels_N) // 2) :] = True
        return mask_N
    for label in range(dataset.num_classes):
        rows = np.flatnonzero(labels_N == label)
        mask_N[rows[: min(dataset.held_out.get(part, 0), len(rows) // 2)]] = True
    return mask_N
