"""Fixtures shared by the tests.

NIN_ARCHIVES: folder holding mnist/ cifar10/ cifar100/ svhn_sample/ with the official archives; the
tests that need real data skip without it. NIN_DATA_DIR: a folder in which those are prepared
already, to save the minute it takes.
"""

import os
import pathlib

import numpy as np
import pytest
import scipy.io

# Compiled programs are shared by all tests, by the processes they start and by the next session.
CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'nin_jax' / 'tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Entries are not written atomically: a process may meet one that another is writing.
os.environ.setdefault('PYTHONWARNINGS', 'ignore:Error reading persistent compilation cache')


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> pathlib.Path:
    """A folder of all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base


@pytest.fixture(scope='session')
def tiny_run(shared) -> pathlib.Path:
    """The folder of a finished run of tests/tiny_page.py; do not write to it."""
    from nin_jax.files import lock
    from tests.helpers import run_main

    folder = shared / 'tiny_run'
    with lock(shared / 'tiny_run.lock', wait_s=300):  # another worker may be making it
        if not (folder / 'summary.json').exists():
            result = run_main(f'--workdir={folder}')
            assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='session')
def archives() -> pathlib.Path:
    """The folder of official archives."""
    if not os.environ.get('NIN_ARCHIVES'):
        pytest.skip('NIN_ARCHIVES is not set: no official archives to test with')
    return pathlib.Path(os.environ['NIN_ARCHIVES'])


@pytest.fixture(scope='session')
def data_dir(archives, shared) -> str:
    """A TFDS folder with mnist, cifar10, cifar100 and a sample of svhn_cropped prepared."""
    from nin_jax.data.prepare import prepare
    from nin_jax.files import lock

    root = os.environ.get('NIN_DATA_DIR') or str(shared / 'tfds')
    with lock(shared / 'tfds.lock', wait_s=900):  # another worker may be preparing it
        for name in ('mnist', 'cifar10', 'cifar100', 'svhn_cropped'):
            prepare(name, root, str(archives))
    return root


def write_svhn_archives(
    folder: pathlib.Path, sizes=(('train', 60), ('extra', 40), ('test', 30))
) -> pathlib.Path:
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
def svhn_archives(tmp_path_factory) -> pathlib.Path:
    """Made-up SVHN archives: 60 train, 40 extra and 30 test images; do not write to them."""
    return write_svhn_archives(tmp_path_factory.mktemp('svhn_archives'))


@pytest.fixture
def svhn_dir(svhn_archives, tmp_path) -> pathlib.Path:
    """A TFDS folder of its own with the made-up SVHN prepared."""
    from nin_jax.data.prepare import prepare

    prepare('svhn_cropped', str(tmp_path / 'tfds'), str(svhn_archives))
    return tmp_path / 'tfds'
