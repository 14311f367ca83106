"""Runs in a bucket: valid after a kill at any operation, and one process at a time.

The tests of whole runs need the clients of the stores, and emulators of them.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import fsspec
import pytest

from nin_jax.errors import RetryError, UserError
from nin_jax.runs.bucket import Bucket, check_url
from tests.chaos.lab import metrics, weights
from tests.helpers import (
    ROOT,
    TINY_PAGE,
    Result,
    assert_refused,
    command,
    run_main,
    run_process,
)
from tests.pairs import free_port

# ---- the order of operations, on fsspec's memory ------------------------------------------------


@pytest.fixture
def url() -> str:
    fsspec.filesystem('memory').store.clear()
    return 'memory://bucket/run'


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('Read timeout on endpoint URL: "https://b.example/checkpoints/14030/d"', RetryError),
        ('timeout of /bucket/run/checkpoints/403/d', RetryError),
        ('HTTP 403 for gs://b/checkpoints/8', UserError),
        ('Invalid Credentials', UserError),
    ],
)
def test_an_error_is_told_by_its_words_and_not_by_a_name(url, tmp_path, monkeypatch, text, kind):
    def failing(_: Bucket) -> None:
        raise OSError(text)

    monkeypatch.setattr(Bucket, '_read_state', failing)
    with pytest.raises(UserError) as e:
        Bucket(url).fetch(tmp_path)
    assert type(e.value) is kind


def write_run(folder: pathlib.Path, steps: tuple[int, ...], attempt: str) -> None:
    """Writes a run with these checkpoints; the names of their data files differ by attempt."""
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
    for step in steps:
        inside = folder / 'checkpoints' / str(step) / 'state'
        inside.mkdir(parents=True)
        for name in ('manifest', f'data-{attempt}'):
            (inside / name).write_text(f'{step} {attempt}')
    (folder / 'config.json').write_text('{}')
    (folder / 'metrics.jsonl').write_text('line\n' * max(steps))


def checkpoints(url: str, folder: pathlib.Path) -> dict[str, set[str]]:
    """Fetches the run; returns the contents of each checkpoint's files."""
    Bucket(url).fetch(folder)
    found: dict[str, set[str]] = {}
    for path in folder.glob('checkpoints/*/state/*'):
        found.setdefault(path.parts[-3], set()).add(path.read_text())
    return found


class KilledError(BaseException):
    """Stands for SIGKILL: nothing handles it."""


class Dying:
    """A file system that is killed at its operation number `left`, counted from zero."""

    def __init__(self, files, left: int):
        self._files, self._left = files, left

    def __getattr__(self, name):
        def operation(*args, **kwargs):
            if self._left == 0:
                raise KilledError
            self._left -= 1
            return getattr(self._files, name)(*args, **kwargs)

        return operation


def test_a_kill_at_any_operation_leaves_the_checkpoints_before_or_after(tmp_path, url):
    met = []
    for left in range(100):
        fsspec.filesystem('memory').store.clear()
        folder = tmp_path / str(left)
        folder.mkdir()
        bucket = Bucket(url)
        bucket.fetch(folder)
        write_run(folder, (8, 16), 'a')
        bucket.push(folder)

        write_run(folder, (16, 24), 'a')
        (folder / 'metrics.jsonl').write_text('line\n' * 24)
        bucket._files = Dying(bucket._files, left)
        try:
            bucket.push(folder)
            killed = False
        except KilledError:
            killed = True
        found = checkpoints(url, tmp_path / f'{left}.fetched')
        assert found in ({'8': {'8 a'}, '16': {'16 a'}}, {'16': {'16 a'}, '24': {'24 a'}})
        met.append(tuple(found))

        # The rerun goes on from what it found, and ends as if nothing had happened.
        folder = tmp_path / f'{left}.again'
        folder.mkdir()
        bucket = Bucket(url)
        bucket.fetch(folder)
        write_run(folder, (16, 24), 'b')
        bucket.push(folder)
        names = {
            n.rsplit('-')[-1] for n in fsspec.filesystem('memory').find('/bucket/run/checkpoints')
        }
        assert 'a' not in names
        assert checkpoints(url, tmp_path / f'{left}.end') == {'16': {'16 b'}, '24': {'24 b'}}
        if not killed:
            break
    else:
        raise AssertionError('push never ended')
    assert len(set(met)) == 2 and len(met) > 8, met


def test_of_two_processes_the_one_that_writes_later_stops(tmp_path, url):
    first, second = Bucket(url), Bucket(url)
    for bucket, name in ((first, 'first'), (second, 'second')):
        (tmp_path / name).mkdir()
        bucket.fetch(tmp_path / name)
        write_run(tmp_path / name, (8,), name)
    first.push(tmp_path / 'first')
    with pytest.raises(RetryError, match=f'process {os.getpid()}'):
        second.push(tmp_path / 'second')
    assert checkpoints(url, tmp_path / 'found') == {'8': {'8 first'}}
    first.push(tmp_path / 'first')


def test_a_local_folder_that_was_copied_to_a_bucket_goes_on(tmp_path, url):
    write_run(tmp_path, (8, 16), 'a')
    fsspec.filesystem('memory').put(f'{tmp_path}/', '/bucket/run/', recursive=True)
    assert checkpoints(url, tmp_path / 'found') == {'8': {'8 a'}, '16': {'16 a'}}


def test_what_is_not_of_the_run_stays_where_it_is(tmp_path, url):
    files = fsspec.filesystem('memory')
    for name in ('attempts.json', 'pictures/index.html'):
        files.pipe_file(f'/bucket/run/{name}', b'{}')
    bucket = Bucket(url)
    bucket.fetch(tmp_path)
    assert not any(tmp_path.iterdir())
    write_run(tmp_path, (8,), 'a')
    bucket.push(tmp_path)
    assert files.exists('/bucket/run/attempts.json') and files.exists('/bucket/run/pictures')


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (PermissionError('Access Denied'), 2),
        (FileNotFoundError('The specified bucket does not exist'), 2),
        (ConnectionError('Connection reset by peer'), os.EX_TEMPFAIL),
        (TimeoutError(), os.EX_TEMPFAIL),
    ],
)
def test_errors_of_the_client_are_one_sentence(tmp_path, url, error, status, monkeypatch):
    bucket = Bucket(url)
    bucket.fetch(tmp_path)
    write_run(tmp_path, (8,), 'a')

    def fail(*_):
        raise error

    monkeypatch.setattr(bucket._files, 'put_file', fail)
    with pytest.raises(UserError, match=url) as e:
        bucket.push(tmp_path)
    assert e.value.exit_status == status and '\n' not in str(e.value)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'workdir',
    ['gs:/b/run', 'gs://b', 's3://b/', 'gs://b/run?x', 'hdfs://b/run', 'file:///tmp/x', 'az://b/x'],
)
def test_a_url_that_is_not_supported(workdir):
    with pytest.raises(UserError, match='s3://BUCKET/PATH'):
        check_url(workdir)
    result = run_main(f'--workdir={workdir}')
    assert_refused(result, workdir, kind='UserError')
    assert not (ROOT / workdir.split('/')[0]).exists()


def test_several_processes_need_a_folder():
    result = run_main('--workdir=gs://b/run', '--distributed=localhost:1,2,0')
    assert_refused(result, '--workdir', 'gs://b/run', kind='UserError')


# ---- whole runs ---------------------------------------------------------------------------------

SETTINGS = ('--config.train.steps_per_call=1', '--config.train.duration=160steps')


@contextlib.contextmanager
def s3():
    moto = pytest.importorskip('moto.server')
    pytest.importorskip('s3fs')
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = dict(AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_DEFAULT_REGION='us-east-1')
    try:
        yield 's3', keys | {'AWS_ENDPOINT_URL': f'http://{host}:{port}'}
    finally:
        server.stop()


@contextlib.contextmanager
def gs():
    emulator = pytest.importorskip('gcp_storage_emulator.server')
    pytest.importorskip('gcsfs')
    port = free_port()
    server = emulator.create_server('localhost', port, in_memory=True)
    server.start()
    try:
        yield 'gs', {'STORAGE_EMULATOR_HOST': f'http://localhost:{port}'}
    finally:
        server.stop()


def steps(files, url: str) -> list[str]:
    try:
        return json.loads(files.cat_file(f'{url}/bucket.json'))['steps']
    except FileNotFoundError:
        return []


def run(*flags: str) -> Result:
    """In a process of its own, for the environment."""
    return run_process('experiments.main', f'--config={TINY_PAGE}', *SETTINGS, *flags)


@pytest.mark.slow
@pytest.mark.parametrize('store', [s3, gs])
def test_a_run_in_a_bucket_that_is_killed_ten_times(tmp_path, store, monkeypatch):
    plain = run(f'--workdir={tmp_path}/plain')
    assert plain.returncode == 0, plain.stderr
    rng, url = random.Random(0), f'{store.__name__}://bucket/runs/x'
    with store() as (scheme, env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
        files.mkdir('bucket')
        for _ in range(10):
            before = steps(files, url)
            with (tmp_path / 'log').open('a') as log:
                words = command(f'--workdir={url}', *SETTINGS)
                process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
            while steps(files, url) == before:
                assert process.poll() is None, (tmp_path / 'log').read_text()
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        ended, evaluated = run(f'--workdir={url}'), run(f'--workdir={url}', '--mode=eval')
        files.get(f'{url}/', f'{tmp_path}/copy/', recursive=True)
    assert ended.returncode == 0, ended.stderr
    assert 'resuming at step' in ended.stdout and url in ended.stdout
    log = (tmp_path / 'log').read_text()
    assert 'damaged' not in log and 'Traceback' not in log, log
    assert weights(tmp_path / 'copy') == weights(tmp_path / 'plain')
    assert metrics(tmp_path / 'copy') == metrics(tmp_path / 'plain')
    assert evaluated.stdout == run(f'--workdir={tmp_path}/copy', '--mode=eval').stdout != ''
