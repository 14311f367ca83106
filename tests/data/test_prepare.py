"""Preparing TFDS datasets: from archives, damaged archives, and downloads from a local server."""

import functools
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from nin_jax.data import archives as archives_lib
from nin_jax.data import cache
from nin_jax.data.catalog import DATASETS
from nin_jax.data.datasets import load_arrays
from nin_jax.data.prepare import prepare
from nin_jax.data.tfds_without_tf import tfds_without_tensorflow
from nin_jax.errors import DataError, UserError
from tests.conftest import write_svhn_archives
from tests.pairs import free_port

REPO = Path(__file__).parents[2]


def left_behind(root: Path) -> list[str]:
    """Files under `root`, but for the lock."""
    return sorted(p.name for p in root.rglob('*') if p.is_file() and p.suffix != '.lock')


def run_entry(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'experiments.prepare', *arguments],
        cwd=REPO,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---- preparing ----


def test_prepared_dataset_is_plain_tfds(svhn_dir, svhn_archives):
    source = tfds.data_source('svhn_cropped', split='test', data_dir=svhn_dir)
    mat = scipy.io.loadmat(svhn_archives / 'test_32x32.mat')
    assert len(source) == 30
    for example in source:
        index = int(example['id'].removeprefix(b'test_'))
        np.testing.assert_array_equal(example['image'], mat['X'][..., index])
        assert example['label'] == mat['y'][index, 0] % 10


def test_a_sample_is_called_one_and_preparing_twice_does_nothing(svhn_archives, tmp_path, capsys):
    prepare('svhn_cropped', str(tmp_path), str(svhn_archives))
    first = capsys.readouterr().out
    assert 'A SAMPLE, not the published dataset: no accuracy on it means anything.' in first
    assert 'sha256 differs from the official for extra_32x32.mat, test_32x32.mat' in first
    assert 'train         60     73,257      6 -     6' in first
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.suffix != '.lock'}
    prepare('svhn_cropped', str(tmp_path))  # no archives: it would have to download
    assert f'svhn_cropped is already prepared in {tmp_path}' in capsys.readouterr().out
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.suffix != '.lock'}


def test_only_the_dataset_and_the_cache_are_left(svhn_dir):
    assert sorted(path.name for path in svhn_dir.iterdir()) == [cache.FOLDER, 'svhn_cropped']
    assert not list(svhn_dir.rglob('*incomplete*'))


def test_a_killed_run_is_cleaned_up(svhn_archives, tmp_path):
    leftover = tmp_path / cache.FOLDER / 'svhn_cropped.incomplete' / 'svhn_cropped' / '3.1.0'
    leftover.mkdir(parents=True)
    (leftover / 'dataset_info.json').write_text('{')
    prepare('svhn_cropped', str(tmp_path), str(svhn_archives))
    assert not list(tmp_path.rglob('*incomplete*'))
    assert len(load_arrays('svhn_cropped', 'test', str(tmp_path)).labels) == 30


def test_a_dataset_prepared_anew_gets_a_new_cache(svhn_dir, tmp_path):
    assert len(load_arrays('svhn_cropped', 'test', str(svhn_dir)).labels) == 30
    other = write_svhn_archives(tmp_path / 'new', (('train', 20), ('extra', 20), ('test', 10)))
    (svhn_dir / 'svhn_cropped').rename(tmp_path / 'old')
    prepare('svhn_cropped', str(svhn_dir), str(other))
    assert len(load_arrays('svhn_cropped', 'test', str(svhn_dir)).labels) == 10


def test_a_running_preparation_is_not_disturbed(svhn_archives, tmp_path):
    with (
        cache.locked(tmp_path, 'svhn_cropped', wait_s=0),
        pytest.raises(DataError, match='another process is preparing svhn_cropped'),
    ):
        prepare('svhn_cropped', str(tmp_path), str(svhn_archives))


def test_the_subset_needs_no_preparing(tmp_path, capsys):
    prepare('mnist_subset', str(tmp_path))
    assert capsys.readouterr().out == 'mnist_subset ships with the code: nothing to prepare\n'


def test_tensorflow_is_never_imported(svhn_archives, tmp_path):
    code = (
        'import sys; from nin_jax.data.prepare import prepare; '
        f'prepare("svhn_cropped", {str(tmp_path)!r}, {str(svhn_archives)!r}); '
        'print([m for m in sys.modules if m.split(".")[0] in ("tensorflow", "jax")])'
    )
    out = subprocess.check_output([sys.executable, '-c', code], text=True)
    assert out.splitlines()[-1] == '[]'


def test_the_stand_ins_are_undone():
    from tensorflow_datasets.core.download import downloader, extractor
    from tensorflow_datasets.core.features.image_feature import _ImageEncoder

    def state():
        return extractor.tf, downloader.MAX_RETRIES, _ImageEncoder._encode_image

    before = state()
    with tfds_without_tensorflow(tfds.builder_cls('cifar10')):
        assert all(a is not b for a, b in zip(state(), before, strict=True))
    assert state() == before


def test_another_tfds_is_one_sentence(monkeypatch, svhn_archives, tmp_path):
    from tensorflow_datasets.core.features.image_feature import _ImageEncoder

    monkeypatch.delattr(_ImageEncoder, '_encode_image')
    with pytest.raises(DataError, match=r'tensorflow-datasets \S+ has no .*_encode_image, which'):
        prepare('svhn_cropped', str(tmp_path), str(svhn_archives))
    assert left_behind(tmp_path) == []


# ---- real archives ----


@pytest.mark.parametrize('name', ['mnist', 'svhn_cropped', 'cifar10', 'cifar100'])
def test_plain_tfds_reads_what_we_prepared(data_dir, name):
    source = tfds.data_source(name, split='test', data_dir=data_dir)
    test = load_arrays(name, 'test', data_dir)
    assert len(source) == len(test.labels)
    ours = {image.tobytes() for image in test.images}
    assert all(source[k]['image'].tobytes() in ours for k in range(100))


def test_preparing_real_data_again_reports_it_as_published(data_dir, archives, capsys):
    prepare('cifar100', data_dir, str(archives))
    out = capsys.readouterr().out
    assert 'train     50,000     50,000    500 -   500   0.5071 0.4865 0.4409\n' in out
    assert 'Counts and channel means are the published ones.' in out


# ---- missing, damaged and unsafe archives ----


@pytest.mark.parametrize('damage', ['truncate', 'empty', 'text', 'flip'])
def test_a_damaged_mat_is_named(tmp_path, damage):
    folder = write_svhn_archives(tmp_path / 'archives')
    path = folder / 'extra_32x32.mat'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    new = {'truncate': data[:-1000], 'empty': b'', 'text': b'<html>' * 100, 'flip': data}[damage]
    path.write_bytes(new)
    with pytest.raises(DataError, match=rf'{path} is damaged .*: fetch it again'):
        prepare('svhn_cropped', str(tmp_path / 'tfds'), str(folder))
    assert left_behind(tmp_path / 'tfds') == []


def test_what_tfds_itself_refuses_is_one_sentence(tmp_path):
    folder = write_svhn_archives(tmp_path / 'archives')
    path = folder / 'train_32x32.mat'
    mat = {'X': np.zeros((32, 32, 3, 4), np.uint8), 'y': np.full((4, 1), 77, np.uint8)}
    scipy.io.savemat(path, mat)
    with pytest.raises(DataError, match=rf'svhn_cropped cannot be made from .*{path}') as error:
        prepare('svhn_cropped', str(tmp_path / 'tfds'), str(folder))
    assert '\n' not in str(error.value)
    assert left_behind(tmp_path / 'tfds') == []


def write_tar(path: Path, members: dict[str, bytes], link: str = '') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz') as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo('cifar-10-batches-bin/link')
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return path


@pytest.mark.parametrize(
    ('member', 'link'),
    [('../evil', ''), ('/tmp/evil', ''), ('a/../../evil', ''), ('fine', '/etc/passwd')],
)
def test_an_unsafe_tar_is_refused(tmp_path, member, link):
    path = write_tar(tmp_path / 'a' / 'cifar-10-binary.tar.gz', {member: b'x'}, link)
    with pytest.raises(DataError, match=rf'{path} is unsafe'):
        prepare('cifar10', str(tmp_path / 'tfds'), str(tmp_path / 'a'))
    assert left_behind(tmp_path / 'tfds') == []


def test_a_tar_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives_lib, 'MAX_UNPACKED_BYTES', 1 << 20)
    path = write_tar(tmp_path / 'cifar-10-binary.tar.gz', {'zeros': bytes(2 << 20)})
    with pytest.raises(DataError, match='unpacks to more than 1,048,576 bytes'):
        archives_lib.check(path)


@pytest.mark.skipif(not shutil.which('tar'), reason='needs tar')
def test_a_sparse_tar_is_refused(tmp_path):
    with (tmp_path / 'zeros').open('wb') as file:
        file.truncate(1 << 30)
    path = tmp_path / 'cifar-10-binary.tar.gz'
    subprocess.run(['tar', '-czSf', path, '-C', tmp_path, 'zeros'], check=True)
    assert path.stat().st_size < 1 << 10
    with pytest.raises(DataError, match='unpacks to more than'):
        archives_lib.check(path)


@pytest.mark.parametrize('name', ['cifar-10-binary.tar.gz', 'train-images-idx3-ubyte.gz'])
def test_a_truncated_gzip_is_named(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8).tobytes()
    path = write_tar(tmp_path / name, {'data': noise})
    archives_lib.check(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf'{path} is damaged'):
            archives_lib.check(path)


# ---- downloading ----


class _Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /hang never answers, /short promises more than it sends."""

    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if self.path == '/hang':
            time.sleep(10)
        elif self.path == '/short':
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'x' * 10)
        elif self.path == '/broken':
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yields the address of a server of the file `data`, on this machine."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served' / 'data').write_bytes(b'the official file')
    (tmp_path / 'served' / 'longer').write_bytes(b'the official file, and more')
    _Server.requests = 0
    handler = functools.partial(_Server, directory=str(tmp_path / 'served'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_address[1]}'
        httpd.shutdown()


SHA256 = hashlib.sha256(b'the official file').hexdigest()


def test_fetch_a_good_file(server, tmp_path):
    archives_lib.fetch(f'{server}/data', tmp_path / 'got' / 'data', SHA256, 17)
    assert (tmp_path / 'got' / 'data').read_bytes() == b'the official file'
    assert left_behind(tmp_path / 'got') == ['data']
    assert _Server.requests == 1


@pytest.mark.parametrize(
    ('page', 'sha256', 'sentence', 'requests'),
    [
        ('data', '0' * 64, f'is not the official file: sha256 {SHA256}, expected 000', 1),
        ('longer', SHA256, 'is not the official file: over 17 bytes', 1),
        ('missing', SHA256, r'cannot download .*/missing \(HTTP status 404\)', 1),
        ('broken', SHA256, r'cannot download .*/broken \(HTTP status 503\)', 3),
        ('short', SHA256, r'cannot download .*/short \((ChunkedEncoding|Connection)Error\)', 3),
        ('hang', SHA256, r'cannot download .*/hang \(ReadTimeout\)', 3),
    ],
)
def test_fetch_failures_leave_nothing(server, tmp_path, page, sha256, sentence, requests):
    path, read_s = tmp_path / 'got' / 'data', 1.0 if page == 'hang' else 60.0
    with pytest.raises(DataError, match=sentence):
        archives_lib.fetch(f'{server}/{page}', path, sha256, 17, read_s=read_s, pause_s=0.01)
    assert left_behind(tmp_path / 'got') == []
    assert _Server.requests == requests


def test_fetch_from_a_closed_port(tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with pytest.raises(DataError, match=r'cannot download .* \(ConnectionError\)'):
        archives_lib.fetch(f'http://127.0.0.1:{free_port()}/data', tmp_path / 'x', SHA256, 17)


def test_downloaded_archives_are_prepared_and_kept(server, tmp_path, monkeypatch, svhn_archives):
    """All of prepare but the address and the sha256, which are our server's."""
    served = tmp_path / 'served'
    for path in svhn_archives.iterdir():
        (served / path.name).write_bytes(path.read_bytes())
    real_fetch = archives_lib.fetch
    monkeypatch.setattr(
        archives_lib,
        'fetch',
        lambda url, path, sha256, size: real_fetch(
            f'{server}/{path.name}', path, cache.file_sha256(served / path.name), size
        ),
    )
    prepare('svhn_cropped', str(tmp_path / 'tfds'))
    assert len(load_arrays('svhn_cropped', 'test', str(tmp_path / 'tfds')).labels) == 30
    kept = sorted(p.name for p in (tmp_path / 'tfds' / 'downloads' / 'svhn_cropped').iterdir())
    assert kept == ['extra_32x32.mat', 'test_32x32.mat', 'train_32x32.mat']
    assert _Server.requests == 3


# ---- the command ----


def test_without_a_network_the_tries_end_within_ten_seconds(tmp_path, monkeypatch):
    import requests  # of the extra `prepare`

    waited = []

    def refuse(_url, *, stream, timeout):
        waited.append(timeout[0])
        raise requests.ConnectionError

    monkeypatch.setattr(requests, 'get', refuse)
    monkeypatch.setattr(archives_lib.time, 'sleep', waited.append)
    with pytest.raises(DataError, match='ConnectionError'):
        archives_lib.fetch('http://nowhere/data', tmp_path / 'x', SHA256, 17)
    assert len(waited) == 5 and sum(waited) < 10  # three connections, two pauses


def test_no_network_is_one_sentence(tmp_path):
    proxy = f'http://127.0.0.1:{free_port()}'
    done = run_entry(
        'cifar10', f'--data_dir={tmp_path}', HTTPS_PROXY=proxy, https_proxy=proxy, NO_PROXY=''
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: cannot download ')
    assert 'get cifar-10-binary.tar.gz by other means' in done.stderr
    assert '--archives=FOLDER' in done.stderr
    assert left_behind(tmp_path) == []


def test_the_command_prepares(svhn_archives, tmp_path):
    done = run_entry('svhn_cropped', f'--archives={svhn_archives}', f'--data_dir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert len(load_arrays('svhn_cropped', 'test', str(tmp_path)).labels) == 30


def test_a_folder_that_cannot_be_written_exits_with_two(tmp_path, svhn_archives):
    (tmp_path / 'file').write_text('')
    done = run_entry(
        'svhn_cropped', f'--archives={svhn_archives}', f'--data_dir={tmp_path / "file" / "tfds"}'
    )
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_help_names_the_datasets_and_loads_nothing_slow():
    code = (
        'import sys, experiments.prepare; '
        "sys.exit(bool({'jax', 'tensorflow_datasets'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=REPO).returncode == 0
    done = run_entry('--help')
    downloaded = [name for name, d in DATASETS.items() if d.storage == 'tfds']
    assert all(name in done.stdout for name in downloaded)


def test_without_tfds_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[prepare\]'"):
        prepare('mnist', str(tmp_path), str(tmp_path))
    assert not (tmp_path / 'mnist').exists()
