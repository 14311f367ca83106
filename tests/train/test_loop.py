"""Whole runs: resuming after every kind of end, damaged checkpoints, runs that go wrong.

Each run is a process of its own, killed by real signals.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from nin_jax.errors import CheckpointError
from nin_jax.runs import checkpoint
from nin_jax.runs.checkpoint import Checkpoints, digest
from tests.helpers import ROOT, assemble, command, metrics, run_main, summary, tiny_config

TIMING = ('images_per_s',)


def digests(workdir) -> dict[str, str]:
    return {
        p.parent.parent.name: json.loads(p.read_text())['digest']
        for p in workdir.glob('checkpoints/*/meta/metadata')
    }


def last_digest(workdir) -> str:
    found = digests(workdir)
    return found[max(found, key=int)]


def lines(workdir) -> list[dict]:
    text = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in TIMING} for t in text]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed')
    result = run_main(f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    return workdir


def assert_same_run(workdir, undisturbed):
    assert last_digest(workdir) == last_digest(undisturbed)
    assert lines(workdir) == lines(undisturbed)
    assert summary(workdir)['status'] == 'done'


def test_a_run_leaves_its_records(undisturbed):
    s = summary(undisturbed)
    assert s['step'] == 24 and s['epoch'] == 3 and s['seed'] == 0 and s['status'] == 'done'
    assert s['command'].startswith('python -m experiments.main --config=')
    assert {'data', 'compile', 'train', 'eval', 'checkpoint'} <= set(s['seconds'])
    evals = metrics(undisturbed, 'eval')
    assert [e['step'] for e in evals] == [8, 16, 24]
    assert s['final_error'] == evals[-1]['error'] == evals[-1]['errors'] / 256
    assert s['best_error'] == min(e['error'] for e in evals)
    assert [t['step'] for t in metrics(undisturbed, 'train')] == [4, 8, 12, 16, 20, 24]
    assert list(undisturbed.glob('tensorboard/events*'))


def test_finished_run_is_left_alone(undisturbed):
    before = (undisturbed / 'summary.json').read_text()
    result = run_main(f'--workdir={undisturbed}')
    assert result.returncode == 0 and 'is done already' in result.stdout
    assert (undisturbed / 'summary.json').read_text() == before


def test_evaluation_repeats_the_runs_own_figures(undisturbed):
    result = run_main(f'--workdir={undisturbed}', '--mode=eval')
    final = metrics(undisturbed, 'eval')[-1]
    assert f'step 24: {final["errors"]} of 256 wrong on mnist_subset test' in result.stdout
    earlier = min(int(s) for s in digests(undisturbed))
    result = run_main(f'--workdir={undisturbed}', '--mode=eval', f'--step={earlier}')
    errors = next(e['errors'] for e in metrics(undisturbed, 'eval') if e['step'] == earlier)
    assert f'step {earlier}: {errors} of 256' in result.stdout


def interrupt(workdir, sign, delay):
    """Starts a run and signals it `delay` seconds after its first line of metrics."""
    process = subprocess.Popen(
        command(f'--workdir={workdir}', '--config.train.steps_per_call=1'),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path, deadline = workdir / 'metrics.jsonl', time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(sign)
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


@pytest.fixture(scope='module')
def undisturbed_singles(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed_singles')
    assert run_main(f'--workdir={workdir}', '--config.train.steps_per_call=1').returncode == 0
    return workdir


@pytest.mark.parametrize('delay', [pytest.param(0.0, marks=pytest.mark.slow), 0.03])
@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_ends_with_the_same_weights(tmp_path, undisturbed_singles, sign, delay):
    status, output = interrupt(tmp_path, sign, delay)
    if sign == signal.SIGKILL:
        assert status in (-signal.SIGKILL, 0)
    else:
        assert status in (os.EX_TEMPFAIL, 0), output
        if status == os.EX_TEMPFAIL:
            assert 'run the same command again to go on' in output
            assert summary(tmp_path)['status'] == 'preempted'
    result = run_main(f'--workdir={tmp_path}', '--config.train.steps_per_call=1')
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path, undisturbed_singles)


def copy_with_newest_damaged(undisturbed, workdir, damage):
    shutil.copytree(undisturbed, workdir)
    (workdir / 'summary.json').unlink()
    steps = sorted((workdir / 'checkpoints').glob('[0-9]*'), key=lambda p: int(p.name))
    damage(steps[-1])
    return steps


def flip_bytes(step):
    """In the arrays' files: what hits only numbers, Orbax alone restores without a word."""
    for path in (step / 'state').rglob('d/*'):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def truncate(step):
    for path in (step / 'state').rglob('d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize(
    'damage', [flip_bytes, truncate, empty, lambda step: shutil.rmtree(step / 'meta')]
)
def test_damaged_newest_checkpoint_falls_back(tmp_path, undisturbed, damage):
    workdir = tmp_path / 'run'
    copy_with_newest_damaged(undisturbed, workdir, damage)
    result = run_main(f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    assert 'warning: checkpoint 24 is damaged' in result.stderr
    assert 'Traceback' not in result.stderr
    assert_same_run(workdir, undisturbed)
    assert (workdir / 'damaged' / '24').exists()


@pytest.mark.parametrize(('failures', 'saved'), [(3, True), (4, False)])
def test_a_checkpoint_is_tried_again_before_the_run_gives_up(
    tmp_path, monkeypatch, failures, saved
):
    """As when Orbax stumbles over its own threads, which still write what failed."""
    left, save = [OSError(39, 'Directory not empty')] * failures, ocp.CheckpointManager.save

    def stumbling(*args, **kwargs):
        if left:
            raise left.pop()
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, 'PAUSES_S', (0, 0))
    monkeypatch.setattr(ocp.CheckpointManager, 'save', stumbling)
    state = assemble(tiny_config()).init_state(0)
    with Checkpoints(tmp_path, 1, print) as checkpoints:
        if saved:
            checkpoints.save(0, state, {}, error=None)
            checkpoints.wait()
            assert digest(checkpoints.restore(state)[0]) == digest(state)
        else:
            with pytest.raises(CheckpointError, match=r'checkpoint 0 cannot be .* not empty'):
                checkpoints.save(0, state, {}, error=None)


def test_all_checkpoints_damaged_is_one_sentence(tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    for step in copy_with_newest_damaged(undisturbed, workdir, lambda _: None):
        truncate(step)
    result = run_main(f'--workdir={workdir}')
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith('error: no checkpoint in ')
    assert 'Traceback' not in result.stderr


def test_a_damaged_error_does_not_keep_from_evaluating(tmp_path, undisturbed):
    """Orbax keeps it beside the arrays to tell the best by; only training needs that."""
    workdir = tmp_path / 'run'
    steps = copy_with_newest_damaged(undisturbed, workdir, lambda _: None)
    for step in steps:
        (step / 'metrics' / 'metrics').write_bytes(b'{"err\0\xe5')
    flip_bytes(steps[-1])
    result = run_main(f'--workdir={workdir}', '--mode=eval')
    assert result.returncode == 0 and f'step {steps[-2].name}: ' in result.stdout, result.stderr
    assert result.stderr.count('\n') == 1 and 'checkpoint 24 is damaged' in result.stderr


def test_damaged_checkpoint_is_not_evaluated(tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    copy_with_newest_damaged(undisturbed, workdir, flip_bytes)
    result = run_main(f'--workdir={workdir}', '--mode=eval', '--step=24')
    assert result.returncode == 2 and 'checkpoint 24 is damaged' in result.stderr
    assert (workdir / 'checkpoints' / '24').exists()  # evaluation touches nothing


def test_another_config_is_refused(undisturbed):
    result = run_main(f'--workdir={undisturbed}', '--config.optim.lr=0.01')
    assert result.returncode == 2
    assert 'holds a run with optim.lr=0.1, this command says 0.01' in result.stderr


def test_two_runs_in_one_workdir(tmp_path):
    first = subprocess.Popen(
        command(f'--workdir={tmp_path}', '--config.train.duration=4000steps'),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / 'config.json').exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = run_main(f'--workdir={tmp_path}', '--config.train.duration=4000steps')
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2 and 'another process is running in' in second.stderr


def test_devices_do_not_change_the_losses(tmp_path, undisturbed):
    env = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
    result = run_main(f'--workdir={tmp_path}', env=env)
    assert result.returncode == 0, result.stderr
    assert '8 x cpu' in result.stdout
    one, eight = metrics(undisturbed, 'train'), metrics(tmp_path, 'train')
    np.testing.assert_allclose([m['loss'] for m in eight], [m['loss'] for m in one], rtol=1e-4)
    assert [m['error'] for m in eight] == pytest.approx([m['error'] for m in one], abs=1e-6)


@pytest.mark.parametrize(
    ('flags', 'env', 'words'),
    [
        (['--config.devices=3'], {}, 'devices=3: JAX sees 1 (cpu), choose that or less'),
        (
            ['--config.train.batch_size=100'],
            {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
            'train.batch_size=100: must be a multiple of the 8 devices',
        ),
    ],
)
def test_wrong_device_count_is_one_sentence(tmp_path, flags, env, words):
    result = run_main(f'--workdir={tmp_path}', *flags, env=env)
    assert result.returncode == 2 and words in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.slow
def test_twenty_random_ends_change_nothing(tmp_path):
    """TERM or KILL at any moment from the start of the process on, until 20 have hit."""
    flags = (
        '--config.train.duration=2000steps',
        '--config.train.steps_per_call=1',
        '--config.eval.every=50steps',
        '--config.checkpoint.every=25steps',
    )
    reference, workdir = tmp_path / 'reference', tmp_path / 'run'
    assert run_main(f'--workdir={reference}', *flags).returncode == 0
    rng, hits, statuses = np.random.default_rng(0), 0, []
    while hits < 20:
        process = subprocess.Popen(
            command(f'--workdir={workdir}', *flags),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(rng.uniform(1, 9))
        process.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL]))
        _, err = process.communicate(timeout=120)
        assert 'Traceback' not in err
        statuses.append(process.returncode)
        hits += process.returncode in (os.EX_TEMPFAIL, -signal.SIGTERM, -signal.SIGKILL)
        if process.returncode == 0:  # it was done first: begin another
            assert_same_run(workdir, reference)
            shutil.rmtree(workdir)
    result = run_main(f'--workdir={workdir}', *flags)
    assert result.returncode == 0, result.stderr
    print('exit statuses:', statuses)
    assert_same_run(workdir, reference)
