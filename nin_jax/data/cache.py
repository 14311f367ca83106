"""A cache of uint8 arrays beside a TFDS folder, so that the PNGs are decoded only once.

    <data_dir>/nin_jax_cache/<name>/<version>/
        train_images.npy  uint8 (N, H, W, C), official order     train_labels.npy  int32 (N,)
        ... and the other TFDS parts ...
        index.json        class names, SHA-256 of each file and of TFDS's dataset_info.json

A cache is written to a temporary folder, which is then renamed, so it is never incomplete. The
SHA-256 of a file is verified each time it is opened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nin_jax.errors import DataError, UserError, status_of
from nin_jax.files import LockedError, file_sha256, lock, verify_checksum, write_json

if TYPE_CHECKING:
    from nin_jax.data.catalog import Dataset

FOLDER = 'nin_jax_cache'
BUILD_WAIT_S = 1800.0  # for another process that builds the cache; SVHN takes minutes


def data_root(data_dir: str = '') -> Path:
    """Returns the TFDS folder: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    if '://' in chosen:
        raise DataError(f'data_dir {chosen!r} is not a local folder: copy or mount it first')
    return Path(os.path.expanduser(chosen)).absolute()  # an unknown ~user stays


def prepared(name: str, dataset: Dataset, root: Path) -> bool:
    """Returns whether TFDS has prepared the dataset in `root`.

    Raises:
      DataError: the dataset is in a format that needs TensorFlow, or its files are damaged.
    """
    info = root / name / dataset.version / 'dataset_info.json'
    if not info.exists():
        return False
    try:
        file_format = json.loads(info.read_text()).get('fileFormat', 'tfrecord')
    except ValueError as error:
        raise DataError(
            f'{info} is damaged: delete {info.parent} and run  python -m experiments.prepare {name}'
        ) from error
    if file_format != 'array_record':
        raise DataError(
            f'{info.parent} holds {file_format} files, which need TensorFlow: delete it, or choose '
            f'another data_dir, and run  python -m experiments.prepare {name}'
        )
    return True


def require_tfds() -> None:
    """Raises UserError if TensorFlow Datasets, which training does not need, is not installed."""
    if not importlib.util.find_spec('tensorflow_datasets'):
        raise UserError(
            "preparing a dataset needs tensorflow-datasets: run  pip install -e '.[prepare]'"
        )


def ready(name: str, dataset: Dataset, root: Path) -> Path:
    """Returns the cache folder of a dataset, and builds it from TFDS if it does not exist.

    Raises:
      DataError: the dataset is not prepared in `root`, or the cache cannot be written.
    """
    folder = root / FOLDER / name / dataset.version
    source = root / name / dataset.version / 'dataset_info.json'
    if _up_to_date(folder, source):
        return folder
    if not prepared(name, dataset, root):
        raise DataError(
            f'{name} is not prepared in {root}: run  python -m experiments.prepare {name}  '
            '(or set data.dir)'
        )
    try:
        with locked(root, name, BUILD_WAIT_S):
            if not _up_to_date(folder, source):
                _build(name, dataset, root, folder, source)
    except OSError as error:
        failure = DataError(f'the cache {folder} cannot be written: {error}')
        failure.exit_status = status_of(error)  # a full disk is temporary
        raise failure from error
    return folder


@contextlib.contextmanager
def locked(root: Path, name: str, wait_s: float) -> Iterator[None]:
    """Holds the lock on a dataset; the system releases it when the process dies.

    Raises:
      DataError: another process still holds it after `wait_s` seconds.
    """
    path = root / FOLDER / f'{name}.lock'
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path, wait_s):
            yield
    except LockedError:
        raise DataError(
            f'another process is preparing {name} in {root}: wait until it is done'
        ) from None


def read_index(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the class names, and the SHA-256 of each file of a cache."""
    try:
        index = verify_checksum(json.loads((folder / 'index.json').read_text()))
        return tuple(index['class_names']), dict(index['sha256'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / 'index.json') from error


def read_part(folder: Path, part: str, digests: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns verified images, uint8 (N, H, W, C) and mapped from disk, and labels, int32 (N,)."""
    arrays = []
    for path in (folder / f'{part}_images.npy', folder / f'{part}_labels.npy'):
        try:
            if file_sha256(path) != digests[path.name]:
                raise _damaged(path)
            arrays.append(np.load(path, mmap_mode='r', allow_pickle=False))
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path) from error
    return arrays[0], arrays[1]


def _record(name: str, dataset: Dataset, root: Path) -> Path:
    """Returns the file with the digests of what `prepare` wrote, because TFDS stores none."""
    return root / FOLDER / f'{name}-{dataset.version}.json'


def record_files(name: str, dataset: Dataset, root: Path, folder: Path) -> None:
    """Records the SHA-256 of every file of a prepared TFDS folder."""
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    write_json(_record(name, dataset, root), digests)


def _check_files(name: str, dataset: Dataset, root: Path) -> None:
    """Raises DataError if a file has changed since `prepare` recorded its digest."""
    record, folder = _record(name, dataset, root), root / name / dataset.version
    if not record.exists():
        return
    fix = f'delete {folder} and run  python -m experiments.prepare {name}'
    try:
        for file, digest in verify_checksum(json.loads(record.read_text())).items():
            if file_sha256(folder / file) != digest:
                raise DataError(f'{folder / file} is damaged: {fix}')
    except (OSError, ValueError) as error:
        raise DataError(f'{folder} is damaged ({error}): {fix}') from error


def _damaged(path: Path) -> DataError:
    return DataError(f'{path} is damaged: delete {path.parent}, it is rebuilt on the next start')


def _up_to_date(folder: Path, source: Path) -> bool:
    """Returns whether a cache exists, made from the TFDS dataset beside it, if there is one."""
    if not (folder / 'index.json').exists():
        # The rename is atomic, so a folder without its index was damaged later.
        return folder.exists()
    if not source.exists():
        return True
    try:
        made_from = json.loads((folder / 'index.json').read_text())['made_from']
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / 'index.json') from error
    return made_from == file_sha256(source)


def _build(name: str, dataset: Dataset, root: Path, folder: Path, source: Path) -> None:
    require_tfds()
    from nin_jax.data import tfds_reader

    _check_files(name, dataset, root)
    print(f'decoding {name} once into {folder} ...', flush=True)
    temporary = folder.with_name(f'{folder.name}.incomplete')
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process, since we hold the lock
    temporary.mkdir(parents=True)
    try:
        for part in dataset.examples:
            images, labels = tfds_reader.read_part(name, dataset, root, part)
            np.save(temporary / f'{part}_images.npy', images)
            np.save(temporary / f'{part}_labels.npy', labels)
        index = {
            'class_names': tfds_reader.class_names(name, dataset, root),
            'sha256': {path.name: file_sha256(path) for path in sorted(temporary.glob('*.npy'))},
            'made_from': file_sha256(source),
        }
        write_json(temporary / 'index.json', index)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
