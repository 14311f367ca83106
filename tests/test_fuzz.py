"""Any bytes and any words: a result or a UserError, never another exception, in bounded memory."""

import contextlib
import gzip
import io
import json
import resource
import tarfile

import numpy as np
import pytest
import scipy.io
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from PIL import Image

from experiments import cli
from nin_jax import files
from nin_jax.config import default_config, flatten, validate
from nin_jax.data import archives, cache, images, preprocess
from nin_jax.errors import CheckpointError, ConfigError, DataError, UserError
from nin_jax.plan import make_plan
from nin_jax.pretrained import caffemodel, trained
from nin_jax.runs.metrics import Metrics, Stopwatch
from tests.helpers import plan_of

MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(MANY, max_examples=12)


@pytest.fixture(scope='module', autouse=True)
def bounded_memory():
    """Not one of these inputs, a few kilobytes each, may take a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def mutated(*originals: bytes) -> st.SearchStrategy[bytes]:
    """Files with bytes changed, cut short or put in; and files of nothing but noise."""

    @st.composite
    def draw(draw_from):
        data = bytearray(draw_from(st.sampled_from(originals)))
        for _ in range(draw_from(st.integers(1, 6))):
            at = draw_from(st.integers(0, len(data)))
            kind = draw_from(st.sampled_from(['set', 'cut', 'insert', 'remove']))
            if kind == 'set' and at < len(data):
                data[at] = draw_from(st.integers(0, 255))
            elif kind == 'cut':
                del data[at:]
            elif kind == 'insert':
                data[at:at] = draw_from(st.binary(max_size=9))
            else:
                del data[at : at + draw_from(st.integers(1, 40))]
        return bytes(data)

    return draw() | st.binary(max_size=300)


def one_line(error: UserError) -> None:
    assert str(error) and '\n' not in str(error)


def try_reading(read, path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read(path)
    except UserError as e:
        one_line(e)


# ---- the config -----------------------------------------------------------------------------

UNITS = st.sampled_from(['ep', 'epochs', 'steps', 'step', '%', ' ep', '', 'e', 'ep ep'])
NUMBERS = st.text('0123456789.eE+-_ ', max_size=12) | st.floats().map(str) | st.integers().map(str)
DURATIONS = st.text(max_size=12) | st.tuples(NUMBERS, UNITS).map(''.join)


@MANY
@given(DURATIONS, DURATIONS, st.lists(DURATIONS, max_size=3).map(' '.join))
def test_any_duration_is_whole_steps_or_a_sentence(train, every, drops):
    config = default_config()
    config.train.duration, config.eval.every, config.optim.drops = train, every, drops
    try:
        plan = make_plan(config, 1000, short_calls=True)
    except ConfigError as e:
        one_line(e)
        return
    assert plan.total_steps >= 1 and plan.eval_every >= 1
    assert all(isinstance(d, int) and d >= 1 for d in plan.drops)


KEYS = st.sampled_from([*flatten(default_config())]) | st.text(max_size=12)
VALUES = NUMBERS | st.text(max_size=12) | st.sampled_from(['True', '()', '(1,2)', '[]', 'None'])


@MANY
@given(overrides=st.lists(st.tuples(KEYS, VALUES), max_size=3), variant=st.text(max_size=5))
def test_any_override_is_parsed_or_a_sentence(overrides, variant, monkeypatch, capsys):
    words = ['main', '--config=experiments/configs/cifar10.py' + (variant and f':{variant}')]
    words += [f'--config.{key}={value}' for key, value in overrides]
    fresh = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=fresh, sys_argv=words)
    monkeypatch.setattr(cli.flags, 'FLAGS', fresh)
    try:
        cli.parse(words)
        validate(holder.value)
        make_plan(holder.value, 1000, short_calls=True)
    except UserError as e:
        one_line(e)
    except SystemExit as e:
        assert e.code == cli.EXIT_USAGE
        told = capsys.readouterr().err
        assert told.startswith('error: ') and told.count('\n') == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@MANY
@given(st.dictionaries(KEYS | st.just('model.blocks.a.kernel'), JSON, max_size=6) | JSON)
def test_any_json_is_a_config_or_a_sentence(tmp_path, value):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(value))
    try:
        validate(trained.read_config(files.read_json(path), path))
    except UserError as e:
        one_line(e)


# ---- files ----------------------------------------------------------------------------------


def saved(write, *args, **kwargs) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *args, **kwargs)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
PHOTOS = [saved(NOISE.save, kind) for kind in images.FORMATS]


@settings(MANY, max_examples=400)
@given(mutated(*PHOTOS))
def test_any_photo(tmp_path, data):
    try_reading(images.read_image, tmp_path / 'photo', data)


FITTED = preprocess.fit(
    'gcn_zca', np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), np.uint8)
)


@MANY
@given(st.data())
def test_any_npz(tmp_path, data):
    path = tmp_path / 'preprocess.npz'
    preprocess.save(path, FITTED)
    try_reading(preprocess.load, path, data.draw(mutated(path.read_bytes())))


@MANY
@given(
    mutated(b'\x0a\x03net\x12\x1b\x22\x04conv\x32\x13\x08\x01\x10\x01\x18\x01\x20\x01\x2a\x04abcd')
)
def test_any_caffemodel(tmp_path, data):
    try_reading(caffemodel.read_caffemodel, tmp_path / 'net', data)


@MANY
@given(mutated(b'{"class_names": ["a"], "sha256": {"b": "c"}, "made_from": "d"}'))
def test_any_index_of_a_cache(tmp_path, data):
    (tmp_path / 'index.json').write_bytes(data)
    try:
        cache.read_index(tmp_path)
    except DataError as e:
        one_line(e)


@MANY
@given(mutated(b'{"status": "done", "final_error": 0.5}'))
def test_any_summary(tmp_path, data):
    try_reading(files.read_json, tmp_path / 'summary.json', data)


LINE = b'{"kind": "%s", "attempt": 0, "step": 4, "epoch": 1.0, "loss": 1.0, "error": 0.5}\n'


@MANY
@given(mutated(LINE % b'train' + LINE % b'eval'), st.booleans())
def test_any_metrics(tmp_path, data, sealed):
    def read(path):
        clock = Stopwatch()
        clock.seconds['train'] = 1.0
        digest = '0' * 64 if sealed else None
        with contextlib.closing(
            Metrics(tmp_path, plan_of(total_steps=100), (0, 8), clock, digest)
        ) as metrics:
            metrics.train(12, 1.0, 0.5)
        assert json.loads(path.read_text().splitlines()[-1])['step'] == 12

    try_reading(read, tmp_path / 'metrics.jsonl', data)


# ---- archives, as far as TFDS itself --------------------------------------------------------


def tar_gz(names: list[str], data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


IDX = b'\0\0\x08\x03' + (1).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(784)
MAT = saved(scipy.io.savemat, {'X': np.zeros((32, 32, 3, 1), np.uint8), 'y': np.ones((1, 1))})
CIFAR_FILES = [f'cifar-10-batches-bin/{n}' for n in ('data_batch_1.bin', 'batches.meta.txt')]


@MANY
@given(mutated(MAT), st.sampled_from(['a.mat', 'a.tar.gz', 'a.gz']))
def test_any_archive_is_checked(tmp_path, data, name):
    try_reading(archives.check, tmp_path / name, data)


@MANY
@given(mutated(tar_gz(CIFAR_FILES, b'x' * 99), gzip.compress(IDX)))
def test_any_compressed_archive_is_checked(tmp_path, data):
    try_reading(archives.check, tmp_path / 'a.tar.gz', data)


def prepare_raw(name: str, files: dict[str, bytes], folder) -> None:
    from nin_jax.data.prepare import prepare

    (folder / 'archives').mkdir(exist_ok=True)
    for file, data in files.items():
        (folder / 'archives' / file).write_bytes(data)
    try:
        prepare(name, str(folder / 'tfds'), str(folder / 'archives'))
    except UserError as e:
        one_line(e)
    assert not list(folder.rglob('*.incomplete'))


@FEW
@given(mutated(IDX), mutated(b'\0\0\x08\x01\0\0\0\x01\x03'))
def test_any_idx_files(tmp_path_factory, images, labels):
    raw = {f'{p}-images-idx3-ubyte.gz': gzip.compress(images) for p in ('train', 't10k')}
    raw |= {f'{p}-labels-idx1-ubyte.gz': gzip.compress(labels) for p in ('train', 't10k')}
    prepare_raw('mnist', raw, tmp_path_factory.mktemp('idx'))


@FEW
@given(mutated(bytes(3073)))
def test_any_cifar_files(tmp_path_factory, data):
    names = [f'cifar-10-batches-bin/data_batch_{k}.bin' for k in range(1, 6)]
    names += ['cifar-10-batches-bin/test_batch.bin', 'cifar-10-batches-bin/batches.meta.txt']
    raw = {'cifar-10-binary.tar.gz': tar_gz(names, data)}
    prepare_raw('cifar10', raw, tmp_path_factory.mktemp('cifar'))


@FEW
@given(mutated(MAT))
def test_any_mat_files(tmp_path_factory, data):
    raw = {f'{part}_32x32.mat': data for part in ('train', 'extra', 'test')}
    prepare_raw('svhn_cropped', raw, tmp_path_factory.mktemp('mat'))


def test_every_flipped_bit_of_a_sealed_file_is_seen_or_harmless(tmp_path):
    path, value = tmp_path / 'summary.json', {'status': 'done', 'final_error': 0.25, 'seed': 3}
    files.write_json(path, value)
    whole, seen = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            read = files.read_json(path)
        except CheckpointError as e:
            one_line(e)
            seen += 1
        else:  # white space, or the name of the seal
            assert {k: read[k] for k in value} == value
    assert seen > 0.8 * 8 * len(whole)
