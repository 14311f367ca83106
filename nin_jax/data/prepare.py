"""Prepares a TFDS dataset without TensorFlow, from the official archives or by downloading them.

It works in a temporary folder under <data_dir>/nin_jax_cache, which is renamed to
<data_dir>/<name>/<version> at the end, so a killed process leaves no incomplete dataset.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax.data import archives, cache
from nin_jax.data.catalog import Dataset, lookup
from nin_jax.errors import DataError, one_line, status_of


def prepare(name: str, data_dir: str = '', archives_dir: str = '') -> None:
    """Prepares a dataset for training, and prints its counts beside the published ones.

    Args:
      name: a key of `catalog.DATASETS`.
      data_dir: the TFDS folder to write; '' means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      archives_dir: folder with the official archives; '' to download them.

    Raises:
      ConfigError: there is no such dataset.
      DataError: an archive is missing, damaged or cannot be downloaded.
      OSError: `data_dir` cannot be written.
    """
    dataset = lookup(name)
    if dataset.storage == 'bundled':
        print(f'{name} ships with the code: nothing to prepare')
        return
    root = cache.data_root(data_dir)
    if dataset.storage == 'photos':
        raise DataError(
            f'{name} is read as it is from {root / name}: nin_jax/data/photos.py has the layout'
        )
    if cache.prepared(name, dataset, root):
        print(f'{name} is already prepared in {root}')
    else:
        with cache.locked(root, name, wait_s=0):
            if not cache.prepared(name, dataset, root):  # another process may have done it
                _build(name, dataset, root, archives_dir)
    folder = cache.ready(name, dataset, root)
    print(_report(name, dataset, root, folder))


def _build(name: str, dataset: Dataset, root: Path, archives_dir: str) -> None:
    """Runs the TFDS builder in a temporary folder, and renames the result."""
    cache.require_tfds()
    final = root / name / dataset.version
    if final.exists():
        raise DataError(f'{final} is there without a dataset_info.json: delete it and start again')
    work = root / cache.FOLDER / f'{name}.incomplete'
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process, since we hold the lock
    work.mkdir(parents=True)
    try:
        _run_tfds(name, dataset, work, root, archives_dir)
        final.parent.mkdir(parents=True, exist_ok=True)
        cache.record_files(name, dataset, root, work / name / dataset.version)
        (work / name / dataset.version).rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_tfds(name: str, dataset: Dataset, work: Path, root: Path, archives_dir: str) -> None:
    import tensorflow_datasets as tfds  # takes seconds to import

    from nin_jax.data.tfds_without_tf import tfds_without_tensorflow

    with tfds_without_tensorflow(tfds.builder_cls(name)):
        builder: Any = tfds.builder(
            f'{name}:{dataset.version}', data_dir=work, file_format='array_record'
        )
        files = _official_files(name, builder, root, archives_dir)
        for url, path in files.items():
            _stage(name, url, builder.url_infos[url], path, work / 'downloads')
        print(f'{name}: running the TFDS builder', flush=True)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it names the temporary folder
                builder.download_and_prepare(
                    download_dir=work / 'downloads',
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
        except Exception as error:  # of any type: a full disk, a truncated file, ...
            paths = ', '.join(str(path) for path in files.values())
            reason = f'{type(error).__name__}: {one_line(error)}'
            failure = DataError(f'{name} cannot be made from {paths} ({reason})')
            failure.exit_status = status_of(error)  # a full disk is temporary
            raise failure from error


def _official_files(name: str, builder: Any, root: Path, archives_dir: str) -> dict[str, Path]:
    """Returns {url: file}, found or downloaded, for the URLs that TFDS registers."""
    infos = {info.filename: (url, info) for url, info in sorted(builder.url_infos.items())}
    if archives_dir:
        files = archives.find(archives_dir, list(infos))
    else:
        folder = root / 'downloads' / name
        files = {filename: folder / filename for filename in infos}
    unofficial = []
    for filename, (url, info) in infos.items():
        path = files[filename]
        if not archives_dir and not path.exists():
            try:
                archives.fetch(url, path, info.checksum, int(info.size))
            except DataError as error:
                raise DataError(
                    f'{error}: fix the network or proxy, or get {", ".join(infos)} by other means '
                    f'and run  python -m experiments.prepare {name} --archives=FOLDER'
                ) from error
        if cache.file_sha256(path) != info.checksum:
            archives.check(path)
            unofficial.append(filename)
    if unofficial:
        print(f'{name}: sha256 differs from the official for {", ".join(unofficial)}')
    return {url: files[filename] for filename, (url, _) in infos.items()}


def _stage(name: str, url: str, info: Any, path: Path, downloads: Path) -> None:
    """Links a file into the download folder of TFDS."""
    from tensorflow_datasets.core.download import resource

    staged = downloads / name / resource.get_dl_fname(url, info.checksum)
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.symlink_to(path.absolute())
    staged.with_name(f'{staged.name}.INFO').write_text(json.dumps({'original_fname': path.name}))


def _report(name: str, dataset: Dataset, root: Path, folder: Path) -> str:
    """Formats the dataset's counts and channel means beside the published ones."""
    class_names, digests = cache.read_index(folder)
    lines = [
        f'{name} {dataset.version} in {root}, {len(class_names)} classes',
        f'  {"part":6} {"examples":>9} {"published":>10} {"per class":>14}   channel means',
    ]
    same_counts, means = True, {}
    for part, published in dataset.examples.items():
        images, labels = cache.read_part(folder, part, digests)
        counts = np.bincount(labels, minlength=dataset.num_classes)
        means[part] = _channel_means(images)
        same_counts &= len(labels) == published
        lines.append(
            f'  {part:6} {len(labels):9,} {published:10,} {counts.min():6,} -{counts.max():6,}   '
            + ' '.join(f'{mean:.4f}' for mean in means[part])
        )
    if not same_counts:
        lines.append('  A SAMPLE, not the published dataset: no accuracy on it means anything.')
    elif tuple(np.round(means['train'], 4)) != dataset.channel_means:
        lines.append(f'  NOT the published images: theirs have means {dataset.channel_means}.')
    else:
        lines.append('  Counts and channel means are the published ones.')
    return '\n'.join(lines)


def _channel_means(images_NHWC: np.ndarray) -> np.ndarray:
    """Returns the mean of each channel, float64 (C,), of pixels in 0..1, from exact sums."""
    sums = np.zeros(images_NHWC.shape[-1], np.int64)
    for start in range(0, len(images_NHWC), 10_000):
        sums += images_NHWC[start : start + 10_000].sum(axis=(0, 1, 2), dtype=np.int64)
    return sums / (255 * np.prod(images_NHWC.shape[:3]))
