"""Datasets of photographs of different sizes, such as ImageNet, read from disk during training.

    <data_dir>/<name>/<version>/                      prepared by TFDS (array_record), or
    <data_dir>/<name>/<part>/<class>/<picture>        a folder per class

The shorter side of each photograph is resized to `Dataset.short_side` pixels. Training takes a
random crop of `Dataset.image_shape`, a pure function of (seed, attempt, step). Evaluation takes a
center crop.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from nin_jax.data import cache, images
from nin_jax.data.catalog import Dataset, lookup, parse_splits
from nin_jax.data.sources import Arrays
from nin_jax.errors import DataError, one_line


class Records(Protocol):
    """A part of a dataset in random order; `read` returns a uint8 image_HWC and its label."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, row: int) -> tuple[np.ndarray, int]: ...


class FolderRecords:
    """A folder with a folder of pictures for each class; the classes alternate."""

    def __init__(self, folder: Path):
        folders = (path for path in folder.iterdir() if path.is_dir())
        classes = sorted(path for path in folders if not path.name.startswith('.'))
        self.class_names = tuple(path.name for path in classes)
        columns = [
            [(p, k) for p in sorted(path.iterdir()) if not p.name.startswith('.')]
            for k, path in enumerate(classes)
        ]
        rows = itertools.zip_longest(*columns)
        self._files = [file for row in rows for file in row if file is not None]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, row: int) -> tuple[np.ndarray, int]:
        path, label = self._files[row]
        return images.read_image(path), label


class TfdsRecords:
    """A part of a dataset that TFDS prepared, in the order of its files."""

    def __init__(self, name: str, dataset: Dataset, root: Path, part: str):
        cache.require_tfds()
        import tensorflow_datasets as tfds  # takes seconds to import

        self._folder = root / name / dataset.version
        builder: Any = tfds.builder(
            f'{name}:{dataset.version}', data_dir=root, file_format='array_record'
        )
        with self._reading():
            self._source = builder.as_data_source(part)
        self.class_names = tuple(builder.info.features['label'].names)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, row: int) -> tuple[np.ndarray, int]:
        with self._reading():
            example = self._source[row]
        return example['image'], int(example['label'])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises DataError for a damaged file, for which array_record and TFDS raise many types."""
        try:
            yield
        except (OSError, ImportError):
            raise
        except Exception as e:
            raise DataError(f"'{self._folder}' is damaged ({one_line(e)}): prepare it again") from e


@dataclasses.dataclass(frozen=True)
class Photos:
    """A split on disk, as a `sources.Source`; `len` is its number of images.

    Attributes:
      dataset: published facts: sizes.
      pieces: records, each with its rows that belong to the split.
      class_names: names of the classes, in label order.
    """

    dataset: Dataset
    pieces: tuple[tuple[Records, range], ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.pieces)

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.dataset.image_shape

    def fingerprint(self) -> str:
        """Returns a digest of number and classes only; reading all images would take hours."""
        return hashlib.sha256(repr((len(self), self.class_names)).encode()).hexdigest()

    def take(
        self, indices_B: np.ndarray, keys_B2: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint8 images_BHWC and int32 labels_B, randomly cropped if there are keys.

        Raises:
          DataError: an image cannot be read.
        """
        images_BHWC = np.empty((len(indices_B), *self.dataset.image_shape), np.uint8)
        labels_B = np.empty(len(indices_B), np.int32)
        for i, index in enumerate(indices_B):
            image_HWC, labels_B[i] = self._read(int(index))
            key_2 = None if keys_B2 is None else keys_B2[i]
            images_BHWC[i] = cut(image_HWC, self.dataset.short_side, images_BHWC.shape[1:3], key_2)
        return images_BHWC, labels_B

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        for records, rows in self.pieces:
            if index < len(rows):
                return records.read(rows[index])
            index -= len(rows)
        raise IndexError(index)

    def load(self) -> Arrays:
        """Reads all images into memory, cropped as in evaluation."""
        return Arrays(*self.take(np.arange(len(self)), None), self.class_names)


def cut(
    image_HWC: np.ndarray, short_side: int, size: tuple[int, int], key_2: np.ndarray | None
) -> np.ndarray:
    """Resizes an image's shorter side to `short_side` pixels and crops it to `size`.

    The position of the crop is a function of the key, two integers; None is the center.
    """
    scale = short_side / min(image_HWC.shape[:2])
    height, width = (max(short_side, round(side * scale)) for side in image_HWC.shape[:2])
    scaled = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    room = np.array([height - size[0], width - size[1]])
    top, left = room // 2
    if key_2 is not None:
        generator = np.random.Generator(np.random.Philox(key=key_2.astype(np.uint64)))
        top, left = generator.integers(0, room, endpoint=True)
    return np.asarray(scaled)[top : top + size[0], left : left + size[1]]


def open_split(name: str, splits: str, data_dir: str = '', limit: int = 0) -> Photos:
    """Opens one split, or several joined by '+', with at most `limit` images (0: all).

    Raises:
      ConfigError: there is no such dataset or split.
      DataError: the dataset is missing, or has a different number of classes.
    """
    dataset, root = lookup(name), cache.data_root(data_dir)
    wanted, pieces, class_names = parse_splits(splits), [], ()
    for part, part_splits in (('train', ('train', 'valid')), ('test', ('test',))):
        if not set(part_splits) & set(wanted):
            continue
        records = _open(name, dataset, root, dataset.test_part if part == 'test' else part)
        if class_names and records.class_names != class_names:
            raise DataError(
                f'{name} in {root}: the classes of its parts have different names: give the '
                'folders of both the same names'
            )
        class_names = records.class_names
        if len(class_names) != dataset.num_classes:
            raise DataError(
                f'{name} in {root} has {len(class_names)} classes, {dataset.num_classes} are '
                'expected: complete it, or set num_classes in nin_jax/data/catalog.py'
            )
        count = len(records)
        kept = count - min(dataset.held_out_last, count // 2)
        rows = {'train': range(kept), 'valid': range(kept, count), 'test': range(count)}
        pieces += [(records, rows[split]) for split in part_splits if split in wanted]
    return _first(Photos(dataset, tuple(pieces), class_names), limit)


def _first(photos: Photos, limit: int) -> Photos:
    pieces, left = [], limit or len(photos)
    for records, rows in photos.pieces:
        pieces.append((records, rows[:left]))
        left -= len(pieces[-1][1])
    return dataclasses.replace(photos, pieces=tuple(pieces))


def _open(name: str, dataset: Dataset, root: Path, part: str) -> Records:
    folder = root / name / part
    if folder.is_dir():
        return FolderRecords(folder)
    if cache.prepared(name, dataset, root):
        return TfdsRecords(name, dataset, root, part)
    raise DataError(
        f'{name} is not in {root}: put its pictures into {folder}/CLASS/, prepare it there with '
        'TFDS as array_record, or set data.dir'
    )
