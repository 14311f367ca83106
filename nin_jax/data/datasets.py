"""Loads datasets that fit in memory, as uint8 arrays in the official order.

`python -m experiments.prepare NAME` writes the TFDS dataset and .npy files (cache.py) once.
`load_arrays` reads only the .npy files and does not need TFDS.
"""

from pathlib import Path

import numpy as np

from nin_jax.data import cache
from nin_jax.data.catalog import Dataset, lookup, parse_splits
from nin_jax.data.sources import Arrays
from nin_jax.errors import DataError

_Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # part -> images, labels
_Parts = tuple[_Arrays, tuple[str, ...]]


def load_arrays(name: str, splits: str, data_dir: str = '') -> Arrays:
    """Loads one split, or several joined by '+', into memory.

    'train+valid' is the whole official training set. MNIST and CIFAR are in the official order. For
    SVHN, the validation images are last.

    Args:
      name: a key of `DATASETS`.
      splits: 'train', 'valid', 'test', or several of them such as 'train+valid'.
      data_dir: the TFDS folder; '' means $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      ConfigError: there is no such dataset or split.
      DataError: the dataset is not prepared in `data_dir`, or its files are damaged.
    """
    dataset = lookup(name)
    wanted = parse_splits(splits)
    parts = ['test'] if 'test' in wanted else []
    if {'train', 'valid'} & set(wanted):
        parts += dataset.training_parts
    arrays, class_names = _read_parts(name, dataset, parts, data_dir)
    chosen = [rows for split in wanted for rows in _rows(dataset, split, arrays)]

    # Filled part by part, so that SVHN's training images (1.8 GB) are not in memory twice.
    total = sum(len(rows) for _, rows in chosen)
    images_NHWC = np.empty((total, *dataset.image_shape), np.uint8)
    labels_N = np.empty(total, np.int32)
    start = 0
    for part, rows in chosen:
        here = slice(start, start + len(rows))
        np.take(arrays[part][0], rows, axis=0, out=images_NHWC[here], mode='clip')
        labels_N[here] = arrays[part][1][rows]
        start += len(rows)
    return Arrays(images_NHWC, labels_N, class_names)


def check_prepared(name: str, data_dir: str = '') -> None:
    """Raises DataError if a dataset that `experiments.prepare` makes is missing in `data_dir`."""
    dataset = lookup(name)
    if dataset.storage == 'tfds':
        cache.ready(name, dataset, cache.data_root(data_dir))


def _read_parts(name: str, dataset: Dataset, parts: list[str], data_dir: str) -> _Parts:
    """Returns {part: (images uint8 (N, H, W, C), labels int32 (N,))} and the class names."""
    if dataset.storage == 'bundled':
        return _read_bundled(name, dataset, parts)
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


def _read_bundled(name: str, dataset: Dataset, parts: list[str]) -> _Parts:
    with np.load(Path(__file__).parent / 'assets' / f'{name}.npz', allow_pickle=False) as npz:
        arrays = {
            part: (npz[f'{part}_images'], npz[f'{part}_labels'].astype(np.int32)) for part in parts
        }
    return arrays, tuple(str(k) for k in range(dataset.num_classes))


def _check(name: str, dataset: Dataset, part: str, images: np.ndarray, labels: np.ndarray) -> None:
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


def _rows(dataset: Dataset, split: str, arrays: _Arrays) -> list[tuple[str, np.ndarray]]:
    """Returns the rows of one split, as (part, row numbers) pairs."""
    if split == 'test':
        return [('test', np.arange(len(arrays['test'][1])))]
    rows = []
    for part in dataset.training_parts:
        held_out_N = _held_out(dataset, part, arrays[part][1])
        rows.append((part, np.flatnonzero(held_out_N == (split == 'valid'))))
    return rows


def _held_out(dataset: Dataset, part: str, labels_N: np.ndarray) -> np.ndarray:
    """Returns a mask of the validation images of a part, bool (N,): at most half of the images."""
    mask_N = np.zeros(len(labels_N), bool)
    if isinstance(dataset.held_out, int):
        if part == 'train':
            mask_N[len(labels_N) - min(dataset.held_out, len(labels_N) // 2) :] = True
        return mask_N
    for label in range(dataset.num_classes):
        rows = np.flatnonzero(labels_N == label)
        mask_N[rows[: min(dataset.held_out.get(part, 0), len(rows) // 2)]] = True
    return mask_N
