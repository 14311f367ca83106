"""Fixtures shared by the tests.

NIN_ARCHIVES: folder holding mnist/ cifar10/ cifar100/ svhn_sample/ with the official archives; the
tests that need real data skip without it. NIN_DATA_DIR: a folder in which those are prepared
already, to save the minute it takes.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io


@pytest.fixture(scope='session')
def archives() -> Path:
    """The folder of official archives."""
    if not os.environ.get('NIN_ARCHIVES'):
        pytest.skip('NIN_ARCHIVES is not set: no official archives to test with')
    return Path(os.environ['NIN_ARCHIVES'])


@pytest.fixture(scope='session')
def data_dir(archives, tmp_path_factory) -> str:
    """A TFDS folder with mnist, cifar10, cifar100 and a sample of svhn_cropped prepared."""
    from nin_jax.data.prepare import prepare

    root = os.environ.get('NIN_DATA_DIR') or str(tmp_path_factory.mktemp('tfds'))
    for name in ('mnist', 'cifar10', 'cifar100', 'svhn_cropped'):
        prepare(name, root, str(archives))
    return root


def write_svhn_archives(folder: Path, sizes=(('train', 60), ('extra', 40), ('test', 30))) -> Path:
    """Writes made-up archives in SVHN's format, small enough to prepare in a second."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in sizes:
        images = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1).reshape(-1, 1)
        scipy.io.savemat(
            folder / f'{part}_32x32.mat', {'X': images, 'y': labels}, do_compression=True
        )
    return folder


@pytest.fixture(scope='session')
def svhn_archives(tmp_path_factory) -> Path:
    """Made-up SVHN archives: 60 train, 40 extra and 30 test images; do not write to them."""
    return write_svhn_archives(tmp_path_factory.mktemp('svhn_archives'))


@pytest.fixture
def svhn_dir(svhn_archives, tmp_path) -> Path:
    """A TFDS folder of its own with the made-up SVHN prepared."""
    from nin_jax.data.prepare import prepare

    prepare('svhn_cropped', str(tmp_path / 'tfds'), str(svhn_archives))
    return tmp_path / 'tfds'
