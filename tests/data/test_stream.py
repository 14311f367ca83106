"""Streams: the same batches and weights as with all images on the device, killed or not."""

import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from nin_jax import commands
from nin_jax.data import batches
from nin_jax.data.batches import Resident, example_order, random_streams
from nin_jax.data.sources import Arrays
from nin_jax.errors import DataError, UserError
from nin_jax.runs.metrics import Stopwatch
from nin_jax.train import loop
from tests.helpers import ROOT, assemble, command, run_main, summary, tiny_config
from tests.pairs import wait_for_checkpoint


def config_of(residency, **changes):
    config = tiny_config()
    config.data.residency = residency
    config.optim.lr = 0.01
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def resident():
    return assemble(config_of('device'))


@pytest.fixture(scope='module')
def streamed():
    return assemble(config_of('stream'))


@pytest.mark.parametrize(('seed', 'attempt'), [(0, 0), (0, 1), (5, 0)])
@pytest.mark.parametrize('batch_size', [32, 96])  # 96 does not divide 256: batches straddle epochs
def test_batches_are_those_on_the_device(resident, seed, attempt, batch_size):
    changes = {'seed': seed, 'train.batch_size': batch_size}
    train = assemble(config_of('stream', **changes)).train(0)
    order_key, *_ = random_streams(seed, attempt)
    for first in (0, 5):
        batches = train.batches(attempt, first)
        for step in range(first, first + 6):
            (indices_B,) = example_order(order_key, step, 1, batch_size, 256)
            images, labels, indices = next(batches)
            np.testing.assert_array_equal(indices, indices_B)
            np.testing.assert_array_equal(images, resident.train(0).examples.images[indices_B])
            np.testing.assert_array_equal(labels, resident.train(0).examples.labels[indices_B])


def test_evaluation_goes_through_all_examples(resident, streamed, monkeypatch):
    """256 images in parts of 96, 96 and 64."""
    monkeypatch.setattr(batches, 'EVAL_BATCHES', 1)
    assert [len(part) for part in streamed.eval.parts()] == [96, 96, 64]
    params = resident.init_state(0).params
    scores = [
        loop.evaluate_split(r, params, loop.eval_programs(r, Stopwatch()), Stopwatch())
        for r in (resident, streamed)
    ]
    assert scores[0][1] == scores[1][1] and scores[0][0] == pytest.approx(scores[1][0], rel=1e-6)


def test_parts_of_an_evaluation_fit_the_memory_for_reading_ahead(streamed, monkeypatch):
    monkeypatch.setattr(batches, 'READ_AHEAD_BYTES', 2 * streamed.setup.eval_batch_size * 28 * 28)
    sizes = {len(part) for part in streamed.eval.parts()}
    assert max(sizes) == 2 * streamed.setup.eval_batch_size
    assert sizes == {len(part) for part in streamed.eval.part_shapes()}


def final_digest(workdir):
    newest = max((workdir / 'checkpoints').iterdir(), key=lambda p: int(p.name))
    return json.loads((newest / 'meta' / 'metadata').read_text())['digest']


def test_weights_are_the_same(tmp_path):
    """All of the state, bit for bit: weights, momentum, step. With whitening, done on the host."""
    for residency in ('device', 'stream'):
        changes = {'preprocess.recipe': 'gcn_zca', 'augment.crop_pad': 2}
        changes |= {'augment.flip': True, 'augment.alternate_flips': True}
        config = config_of(residency, **changes, **{'train.duration': '12steps'})
        assert commands.train(config, tmp_path / residency, command='') == 0
    assert final_digest(tmp_path / 'device') == final_digest(tmp_path / 'stream')
    errors = [summary(tmp_path / name)['final_error'] for name in ('device', 'stream')]
    assert errors[0] == errors[1]


@pytest.mark.processes
def test_killed_and_resumed(tmp_path):
    """By kill -9, and compared with a run that had all images on the device."""
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    flags = ['--config.data.residency=stream', '--config.train.duration=200steps']
    flags += ['--config.checkpoint.every=8steps', '--config.optim.lr=0.01']
    process = subprocess.Popen(
        command(f'--workdir={killed}', *flags),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_checkpoint(killed, [process])
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / 'summary.json').exists()
    result = run_main(f'--workdir={killed}', *flags)
    assert result.returncode == 0 and 'resuming at step' in result.stdout, result.stderr
    assert run_main(f'--workdir={whole}', *flags[1:]).returncode == 0
    assert final_digest(killed) == final_digest(whole)


def test_what_is_too_large_streams_by_itself(monkeypatch):
    """512 digits of 28 x 28 bytes are 401,408 bytes: twice that will do, a byte less will not."""
    sizes = {'SC_PHYS_PAGES': 802_816, 'SC_PAGE_SIZE': 1}
    monkeypatch.setattr(os, 'sysconf', lambda name: sizes[name])
    assert isinstance(assemble(config_of('auto')).train(0), Resident)
    sizes['SC_PHYS_PAGES'] -= 1
    assembled = assemble(config_of('auto'))
    train = assembled.train(0)
    assert isinstance(train, batches.Stream) and len(train) == 256
    assert isinstance(assembled.eval, batches.Stream)
    assert isinstance(assemble(config_of('device')).train(0), Resident)


def test_steps_per_call_stay_few():
    """A call's batches are on the device at once, so an epoch's would be as much as all images."""
    config = config_of('stream', **{'train.steps_per_call': 0, 'train.batch_size': 2})
    assert assemble(config).plan.steps_per_call == 10


@pytest.mark.processes
def test_batches_go_to_all_devices():
    code = """
import numpy as np
from tests.helpers import assemble, tiny_config
config = tiny_config()
config.data.residency = 'stream'
batches = assemble(config).train(0).feed(0, 0)(3)
assert batches.images.shape == (3, 32, 28, 28, 1), batches.images.shape
assert {s.data.shape for s in batches.images.addressable_shards} == {(3, 8, 28, 28, 1)}
"""
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': '4', 'PYTHONPATH': str(ROOT)}
    environment['JAX_PLATFORMS'] = 'cpu'
    result = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_each_process_reads_its_own_rows(streamed, monkeypatch):
    """As two processes would, whose shardings say which rows their devices hold."""
    read = []

    class Noting(Arrays):
        def take(self, indices_B, keys_B):
            self.rows.add(len(indices_B))
            return super().take(indices_B, keys_B)

    def first_batch() -> tuple[np.ndarray, np.ndarray]:
        source = streamed.train(0).source
        noting = Noting(source.images, source.labels)
        object.__setattr__(noting, 'rows', rows := set())
        read.append(rows)
        return next(batches.Stream(noting, streamed.setup.mesh, 0, 32, 32).batches(0, 0))

    whole = first_batch()
    for half in (slice(0, 16), slice(16, 32)):
        rows = types.SimpleNamespace(addressable_devices_indices_map=lambda _, h=half: {0: (h,)})
        monkeypatch.setattr(batches.Stream, '_sharding', lambda *_, rows=rows: rows)
        for own, of_all in zip(first_batch(), whole, strict=True):
            np.testing.assert_array_equal(own, of_all[half])
        assert read[-1] == {16}


def test_a_mistake_of_a_reader_reaches_the_user(streamed):
    class Broken(Arrays):
        def take(self, indices_B, keys_B):
            raise DataError('photo 7 is damaged: get it again')

    images, labels = np.zeros((64, 4, 4, 1)), np.zeros(64)
    broken = batches.Stream(Broken(images, labels), streamed.setup.mesh, 0, 32, 32)
    with pytest.raises(DataError, match=r'^photo 7 is damaged'):
        next(broken.batches(0, 0))


def test_without_grain_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'grain', None)
    with pytest.raises(UserError, match='streaming needs the package grain'):
        batches.import_grain()
