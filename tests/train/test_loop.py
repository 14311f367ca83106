"""Whole runs: resuming after every kind of end, damaged checkpoints, runs that go wrong.

Those that signals end are processes of their own, killed for real.
"""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from nin_jax.commands import train
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.recorder import Recorder
from nin_jax.runs.workdir import locked
from nin_jax.train import loop
from nin_jax.train.step import evaluate
from tests.helpers import (
    ROOT,
    assemble,
    assert_refused,
    command,
    has_metrics,
    metrics,
    run_main,
    summary,
    tiny_config,
    wait_until,
)

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


@pytest.fixture
def undisturbed(tiny_run):
    """A finished run; do not write to it."""
    return tiny_run


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


def test_finished_run_is_left_alone(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    result = run_main(f'--workdir={tmp_path}')
    assert result.returncode == 0 and 'is done already' in result.stdout
    for path in ('summary.json', 'metrics.jsonl'):
        assert (tmp_path / path).read_bytes() == (undisturbed / path).read_bytes()


@pytest.mark.parametrize(('evals', 'saves'), [('2steps', '5steps'), ('5steps', '2steps')])
def test_metrics_are_recorded_before_what_follows_them(tmp_path, monkeypatch, evals, saves):
    """A checkpoint vouches for the lines of metrics.jsonl up to its step."""
    config, events = tiny_config(), []
    config.train.duration, config.train.steps_per_call = '6steps', 1
    config.eval.every, config.checkpoint.every = evals, saves
    for kind in ('train', 'eval', 'save'):
        method = getattr(Recorder, kind)

        def recorded(self, step, *rest, kind=kind, method=method):
            events.append((kind, step))
            return method(self, step, *rest)

        monkeypatch.setattr(Recorder, kind, recorded)
    assert train(config, tmp_path / 'run', command='') == 0
    assert {kind for kind, _ in events} == {'train', 'eval', 'save'}
    for i, (kind, step) in enumerate(events):
        earlier = [s for k, s in events[:i] if k == 'train']
        assert kind == 'train' or earlier == list(range(1, step + 1))


def test_the_score_is_the_mean_over_all_parts():
    run = assemble(tiny_config())
    state, images = run.init_state(0), run.eval.examples
    parts = [
        jax.tree.map(lambda x, start=start: x[start : start + 100], images)
        for start in (0, 100, 200)
    ]

    programs = dict.fromkeys(
        (100, len(parts[-1].labels)), functools.partial(evaluate, setup=run.setup)
    )
    whole = evaluate(state.weights, images, run.preprocess, setup=run.setup)
    sizes = {'__len__': lambda _: len(images), 'parts': lambda _: parts}
    trainer = dataclasses.replace(run, eval=type('Parts', (), sizes)())
    loss, errors, dead_maps, is_constant = loop.evaluate_split(
        trainer, state.weights, programs, Stopwatch()
    )
    assert not is_constant
    assert dead_maps == int(np.sum((whole['low_K'] == 0) & (whole['high_K'] == 0)))
    assert errors == int(whole['errors'])
    assert loss == pytest.approx(float(whole['loss']), rel=1e-5)


def test_dead_class_maps_are_said_when_their_number_changes(tmp_path, capsys, monkeypatch):
    config = tiny_config()
    monkeypatch.setattr(
        loop, 'evaluate_split', lambda *_: loop.Scores(2.0, 100, dead.pop(0), False)
    )
    dead = [5, 5, 0]
    assert train(config, tmp_path / 'run', command='') == 0
    out = capsys.readouterr().out
    assert out.count('class maps are zero') == 2
    assert '5 of 10 class maps are zero' in out and '0 of 10 class maps are zero' in out


def test_a_resumed_run_knows_since_when_its_logits_are_constant(tmp_path, monkeypatch):
    config, given = tiny_config(), []

    class Spy(loop.Health):
        def __init__(self, config, classes, saved):
            given.append(saved)
            super().__init__(config, classes, saved)

    monkeypatch.setattr(loop, 'Health', Spy)
    monkeypatch.setattr(loop, 'evaluate_split', lambda *_: loop.Scores(2.0, 100, 0, True))
    assert train(config, tmp_path, command='') == 0
    (tmp_path / 'summary.json').unlink()
    newest = max((tmp_path / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert train(config, tmp_path, command='') == 0
    first = metrics(tmp_path, 'eval')[0]['step']
    assert given == [{}, {'constant_since': first}]


def test_evaluation_repeats_the_runs_own_figures(undisturbed):
    result = run_main(f'--workdir={undisturbed}', '--mode=eval')
    final = metrics(undisturbed, 'eval')[-1]
    assert f'step 24: {final["errors"]} of 256 wrong on mnist_subset test' in result.stdout
    earlier = min(int(s) for s in digests(undisturbed))
    result = run_main(f'--workdir={undisturbed}', '--mode=eval', f'--step={earlier}')
    errors = next(e['errors'] for e in metrics(undisturbed, 'eval') if e['step'] == earlier)
    assert f'step {earlier}: {errors} of 256' in result.stdout


SINGLES = ('--config.train.steps_per_call=1', '--config.train.duration=96steps')


def interrupt(workdir, sign, delay):
    """Starts a run and signals it `delay` seconds after its first line of metrics."""
    process = subprocess.Popen(
        command(f'--workdir={workdir}', *SINGLES),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: has_metrics(workdir), 300, [process])
    time.sleep(delay)
    process.send_signal(sign)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


@pytest.fixture(scope='module')
def undisturbed_singles(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed_singles')
    assert run_main(f'--workdir={workdir}', *SINGLES).returncode == 0
    return workdir


@pytest.mark.processes
@pytest.mark.parametrize('delay', [pytest.param(0.0, marks=pytest.mark.slow), 0.03])
@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_ends_with_the_same_weights(tmp_path, undisturbed_singles, sign, delay):
    status, output = interrupt(tmp_path, sign, delay)
    if sign == signal.SIGKILL:
        assert status in (-signal.SIGKILL, 0)
    else:
        assert status in (os.EX_TEMPFAIL, 0), output
        if status == os.EX_TEMPFAIL:
            assert 'run the same command again' in output
            assert summary(tmp_path)['status'] == 'preempted'
    result = run_main(f'--workdir={tmp_path}', *SINGLES)
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
    assert result.stderr.startswith('warning: ') and 'checkpoint 24' in result.stderr
    assert result.stderr.count('\n') == 1
    assert_same_run(workdir, undisturbed)
    assert (workdir / 'damaged' / '24').exists()


def test_all_checkpoints_damaged_is_one_sentence(tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    steps = copy_with_newest_damaged(undisturbed, workdir, lambda _: None)
    for step in steps:
        truncate(step)
    for _ in range(2):  # nothing is moved, so a rerun does not train from the start
        result = run_main(f'--workdir={workdir}')
        assert result.returncode == 2 and result.kind == 'CheckpointError'
        last = result.stderr.splitlines()[-1]
        assert last.startswith('error: ') and f"'{workdir}/checkpoints'" in last
        assert 'Traceback' not in result.stderr
        assert all(step.exists() for step in steps)


def test_evaluation_does_not_need_the_optimizers_keys(tmp_path):
    flags = (f'--workdir={tmp_path}/run', '--config.optim.lr=0.01')
    assert run_main(*flags, '--config.optim.rule=muon', '--config.train.ema=0.9').returncode == 0
    result = run_main(f'--workdir={tmp_path}/run', '--mode=eval')
    assert result.returncode == 0 and 'step 24: ' in result.stdout, result.stderr


def test_a_run_that_fails_before_its_first_step_keeps_no_config(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

    config = tiny_config()
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match='RESOURCE'):
        patched.setattr(loop, 'fit', full)
        train(config, tmp_path, 'command')
    config.train.microbatch = 8  # what the sentence on the error advises
    assert train(config, tmp_path, 'command') == 0


def test_a_damaged_error_does_not_keep_from_evaluating(tmp_path, undisturbed):
    """Orbax keeps it beside the arrays to tell the best by; only training needs that."""
    workdir = tmp_path / 'run'
    steps = copy_with_newest_damaged(undisturbed, workdir, lambda _: None)
    for step in steps:
        (step / 'metrics' / 'metrics').write_bytes(b'{"err\0\xe5')
    flip_bytes(steps[-1])
    result = run_main(f'--workdir={workdir}', '--mode=eval')
    assert result.returncode == 0 and f'step {steps[-2].name}: ' in result.stdout, result.stderr
    assert result.stderr.count('\n') == 1 and 'checkpoint 24' in result.stderr


def test_damaged_checkpoint_is_not_evaluated(tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    copy_with_newest_damaged(undisturbed, workdir, flip_bytes)
    result = run_main(f'--workdir={workdir}', '--mode=eval', '--step=24')
    assert_refused(result, 'checkpoint 24', kind='CheckpointError')
    assert (workdir / 'checkpoints' / '24').exists()  # evaluation touches nothing


def test_a_workdir_in_use_is_refused(tmp_path):
    with locked(tmp_path):
        assert_refused(run_main(f'--workdir={tmp_path}'), str(tmp_path), '--workdir')
    assert not (tmp_path / 'config.json').exists()


@pytest.mark.processes
def test_devices_do_not_change_the_losses(tmp_path, undisturbed):
    env = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
    result = run_main(f'--workdir={tmp_path}', env=env)
    assert result.returncode == 0, result.stderr
    assert '8 x cpu' in result.stdout
    one, eight = metrics(undisturbed, 'train'), metrics(tmp_path, 'train')
    np.testing.assert_allclose([m['loss'] for m in eight], [m['loss'] for m in one], rtol=1e-4)
    assert [m['error'] for m in eight] == pytest.approx([m['error'] for m in one], abs=1e-6)


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
        _, err = process.communicate(timeout=300)
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
