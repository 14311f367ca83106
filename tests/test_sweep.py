"""Sweeps: pages, their checks, who runs which trial, kills, and the report."""

import contextlib
import csv
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import pytest
from helpers import ROOT, TINY_PAGE, metrics, run_module, summary
from PIL import Image

from experiments import cli
from experiments.space import Sweep, choice, integer, log_uniform, text, uniform
from launch import devices, points, study, sweep, sweep_report, trials
from launch.processes import Family
from nin_jax.config import flatten
from nin_jax.data import cache
from nin_jax.errors import UserError

TINY = str(TINY_PAGE)
PAGES = sorted((ROOT / 'experiments' / 'sweeps').glob('[!_]*.py'))
DIGITS = 'experiments/sweeps/digits.py'


# ---- pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_pages_are_valid_and_never_look_at_the_test_images(page, monkeypatch):
    monkeypatch.setattr(cache, 'ready', lambda *_: None)  # the data need not be here
    made = points.load(page, {})
    points.check(made)
    for point in points.points(made):
        config = cli.load_config(made.config, points.flags(made, point))
        assert (config.data.train, config.data.eval) == ('train', 'valid')


LR = {'optim.lr': choice(0.1, 0.2)}


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        (
            dict(space={'optim.lrr': choice(0.1)}),
            "unknown key 'optim.lrr', did you mean 'optim.lr'",
        ),
        (dict(space=LR, fixed={'sed': 1}), "unknown key 'sed', did you mean 'seed'?"),
        (dict(space=LR, sampler='gird'), "no sampler 'gird', did you mean 'grid'?"),
        (dict(space=LR, sampler='tpe'), 'trials=None: tpe needs a number'),
        (dict(space=LR, points=({'seed': 1},)), 'either a space or points'),
        (dict(space={'data.eval': choice('test')}), "'data.eval' is set by the sweep"),
        (dict(space=LR, fixed={'data.train': 'train+valid'}), "'data.train' is set by the sweep"),
        (dict(space=LR, fixed={'optim.lr': 1.0}), "'optim.lr' is both fixed and searched"),
        (dict(space={'optim.lr': uniform(0.1, 1)}), "'optim.lr' is uniform: a grid needs choice"),
        (dict(space={'optim.lr': choice(0.1, -0.1)}), 'optim.lr=-0.1: must be above 0'),
        (
            dict(space={'optim.momentum': uniform(0.5, 1.0)}, sampler='random', trials=3),
            'optim.momentum=1.0: must be from 0 to below 1',
        ),
        (
            dict(space={'train.batch_size': uniform(16, 64)}, sampler='tpe', trials=3),
            "invalid literal for int() with base 10: '16.0'",
        ),
        (dict(points=({'model.head': 'gep'},)), "model.head='gep', did you mean 'gap'?"),
        (dict(points=({'train.duration': '3parsecs'},)), "write a duration as '3ep'"),
        (dict(points=({'model.blocks.mlpconv2.features': (8, 8, 9)},)), 'end it in 10'),
        (dict(points=({'seed': 0},), config='tests/tiny.py'), "no config page 'tests/tiny.py'"),
    ],
)
def test_a_mistake_in_a_page_gets_one_sentence(wrong, words):
    default = {'config': TINY} | ({'sampler': 'grid'} if 'space' in wrong else {})
    with pytest.raises(UserError, match=re.escape(words)):
        points.check(Sweep(**(default | wrong)))


@pytest.mark.parametrize(
    'make',
    [
        lambda: choice(),
        lambda: choice(1, 1),
        lambda: uniform(1, 1),
        lambda: uniform(0, float('nan')),
        lambda: log_uniform(0, 1),
        lambda: integer(1, 2.5),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ([], '--sweep'),
        (['--sweep=experiments/sweeps/digit.py', '--study=x'], f"did you mean '{DIGITS}'?"),
        (['--sweep=README.md', '--study=x'], "sweep page 'README.md' does not load"),
        ([f'--sweep={DIGITS}', '--study=x', '--config.optim.lr=1'], 'both fixed and searched'),
        ([f'--sweep={DIGITS}', '--study=x', '--workes=2'], "unexpected argument '--workes=2'"),
        ([f'--sweep={DIGITS}', '--study=x', '--storage=oracle'], 'write sqlite:///FILE or'),
        (['report', '--study=x', '--workdir=/nowhere'], "no study in '/nowhere/study.db'"),
    ],
)
def test_a_mistake_in_the_command_gets_one_sentence(flags, words, tmp_path, capsys, monkeypatch):
    with contextlib.suppress(SystemExit):
        where = [] if 'report' in flags else [f'--workdir={tmp_path}']
        assert sweep.main([*flags, *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and words in error and error.count('\n') == 1


def test_random_points_are_a_function_of_the_seed():
    space = {'optim.lr': log_uniform(0.01, 1), 'seed': integer(1, 3), 'model.head': choice('gap')}
    made = Sweep(TINY, space, sampler='random', trials=200)
    drawn = points.points(made)
    assert drawn == points.points(made)
    assert drawn != points.points(Sweep(TINY, space, sampler='random', trials=200, seed=1))
    assert all(0.01 <= p['optim.lr'] <= 1 for p in drawn)
    assert 80 < sum(p['optim.lr'] < 0.1 for p in drawn) < 120  # half of them: it is log-uniform
    assert {p['seed'] for p in drawn} == {1, 2, 3}
    tpe = points.points(Sweep(TINY, space, sampler='tpe', trials=12))
    assert tpe[: points.TPE_STARTUP] == drawn[: points.TPE_STARTUP] and tpe[10:] == [{}, {}]


def test_a_grid_has_every_combination_and_a_list_fills_in_the_page():
    made = Sweep(TINY, {'seed': integer(1, 2), 'optim.lr': choice(0.1, 0.2)}, sampler='grid')
    assert [tuple(p.values()) for p in points.points(made)] == [
        (1, 0.1),
        (1, 0.2),
        (2, 0.1),
        (2, 0.2),
    ]
    listed = Sweep(TINY, points=({}, {'optim.lr': 0.5}, {'augment.flip': True}))
    assert points.points(listed) == [
        {'optim.lr': 0.1, 'augment.flip': False},
        {'optim.lr': 0.5, 'augment.flip': False},
        {'optim.lr': 0.1, 'augment.flip': True},
    ]
    assert points.axes_of(listed)['optim.lr'] == choice(0.1, 0.5)


def test_a_command_means_its_point():
    fixed = {'model.blocks.mlpconv1.features': (8, 9, 10), 'train.duration': '3ep'}
    point = {'optim.lr': 1e-5, 'augment.flip': True, 'seed': 3, 'model.head': 'fc'}
    words = shlex.split(shlex.join(sweep.command(Sweep(TINY, fixed=fixed), 'runs/x', point)))
    assert words[:3] == ['python', '-m', 'experiments.main'] and '--workdir=runs/x' in words
    config = flatten(cli.load_config(TINY, [w for w in words if w.startswith('--config.')]))
    assert {k: config[k] for k in {**fixed, **point}} == {**fixed, **point}
    assert text((1,)) == '(1,)'


# ---- who runs which -------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path):
    """A study of three points; two workers' views of it, a lost trial being one after 2 s."""
    made = Sweep(TINY, points=tuple({'optim.lr': lr} for lr in (0.1, 0.2, 0.3)))
    url = f'sqlite:///{tmp_path}/study.db'
    study.begin('s', url, made, 2)
    return made, url, [study.join('s', url, 2) for _ in range(2)]


def test_a_trial_has_one_owner_and_beginning_again_adds_none(opened, monkeypatch):
    made, url, (one, two) = opened
    study.begin('s', url, made, 2)
    taken = [trials.claim(s) for s in (one, two, one, two)]
    assert [t and t.number for t in taken] == [0, 1, 2, None]
    assert trials.suggest(taken[1], study.space(one)) == {'optim.lr': 0.2}
    assert trials.still_ours(two, taken[1])
    monkeypatch.setattr(trials, 'owner', lambda: 'another')
    assert not trials.still_ours(two, taken[1])
    with pytest.raises(UserError, match=r'of another sweep \(optim.momentum: 0.9 there, 0.5 here'):
        study.begin('s', url, Sweep(TINY, points=made.points, fixed={'optim.momentum': 0.5}), 2)


def age_heartbeats(database):
    """Makes every worker look dead for an hour."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")


def test_a_lost_trial_keeps_its_number_and_is_given_up_after_so_many_losses(opened, tmp_path):
    _, _, (one, two) = opened
    for losses in (1, 2):
        trial = trials.claim(one)
        assert trial.number == 0
        trial.report(0.5, losses)
        assert trials.take_back_lost(two, retries=1) == []  # its heart has just beaten
        age_heartbeats(tmp_path / 'study.db')
        assert trials.take_back_lost(two, retries=1) == [0]
        assert len(trials.every(two)[0].user_attrs['losses']) == losses
    first = trials.every(one)[0]
    assert trials.outcome(first) == 'failed' and 'was lost, 2 times' in first.user_attrs['reason']
    assert trials.claim(two).number == 1
    assert trials.account(one) == (
        '3 points: 1 failed, 1 running, 1 waiting; workers lost: 2, over 1 of the points'
    )


def test_a_worker_killed_right_after_taking_a_trial_loses_nothing(opened, tmp_path, monkeypatch):
    _, _, (one, two) = opened
    set_attr = type(one._storage).set_trial_system_attr
    monkeypatch.setattr(type(one._storage), 'set_trial_system_attr', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trials.claim(one)
    monkeypatch.setattr(type(one._storage), 'set_trial_system_attr', set_attr)
    assert trials.outcome(trials.every(two)[0]) == 'running'
    age_heartbeats(tmp_path / 'study.db')
    assert trials.take_back_lost(two, retries=1) == [0]
    assert trials.suggest(trials.claim(two), study.space(two)) == {'optim.lr': 0.1}


def test_given_back_on_request_is_no_loss_and_finished_stays_finished(opened):
    _, _, (one, two) = opened
    trials.give_back(one, trials.claim(one)._trial_id)
    trial = trials.claim(two)
    assert trial.number == 0 and not trials.every(one)[0].user_attrs.get('losses')
    trials.finish(two, trial, 'complete', 0.25)
    trials.finish(one, trial, 'diverged')  # by one that was thought lost
    trials.give_back(one, trial._trial_id, 'lost', retries=0)
    assert trials.outcome(trials.every(one)[0]) == 'complete'
    for error in (0.5, None):
        trials.finish(one, trials.claim(one), 'complete' if error else 'diverged', error)
    assert trials.is_over(one) and trials.best_trial(one).value == 0.25
    assert trials.account(two) == '3 points: 2 complete, 1 diverged'


# ---- processes and devices ------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != 'linux', reason='a death signal is a thing of Linux')
def test_a_process_is_told_to_stop_when_its_parent_is_killed(tmp_path):
    code = (
        'from launch.processes import Family\n'
        'with Family() as family:\n'
        f"    family.start(['sh', '-c', 'trap \"touch {tmp_path}/told; exit\" TERM; "
        f"touch {tmp_path}/up; while :; do sleep 0.1; done']).wait()\n"
    )
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
    wait_until(lambda: (tmp_path / 'up').exists())
    parent.kill()
    wait_until(lambda: (tmp_path / 'told').exists())


def test_a_request_to_stop_is_handed_on():
    with Family() as family:
        process = family.start(['sleep', '60'])
        os.kill(os.getpid(), signal.SIGTERM)
        assert family.stop and process.wait(10) == -signal.SIGTERM
        assert family.start(['sleep', '60']).wait(10) == -signal.SIGTERM


def test_accelerators_are_handed_out(monkeypatch):
    monkeypatch.setattr(devices, 'found', lambda: ('cuda', ['0', '1']))
    assert devices.environments(None, None) == [
        {'CUDA_VISIBLE_DEVICES': '0'},
        {'CUDA_VISIBLE_DEVICES': '1'},
    ]
    shared = devices.environments(4, '1')
    assert shared == [{'CUDA_VISIBLE_DEVICES': '1', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.225'}] * 4
    assert devices.environments(2, 'cpu') == [{'JAX_PLATFORMS': 'cpu'}] * 2
    with pytest.raises(UserError, match="no accelerator '7' here, there are: 0, 1"):
        devices.environments(1, '7')
    monkeypatch.setattr(devices, 'found', lambda: ('tpu', ['0', '1']))
    assert [e['TPU_VISIBLE_CHIPS'] for e in devices.environments(2, None)] == ['0', '1']
    with pytest.raises(UserError, match='a TPU chip serves one process'):
        devices.environments(3, None)


# ---- the report -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A study of made-up results, lowest at the upper end of the learning rates; its folder."""
    folder = tmp_path_factory.mktemp('finished')
    fixed = {'model.blocks.mlpconv1.features': (8, 8)}
    space = {
        'optim.lr': log_uniform(0.001, 1.0),
        'model.class_bias': choice(0.0, 0.5, 1.0),
        'optim.schedule': choice('drops', 'plateau'),
    }
    made = Sweep(TINY, space, sampler='random', trials=20, prune_after=1, fixed=fixed)
    url = f'sqlite:///{folder}/study.db'
    study.begin('s', url, made, 60)
    shared = study.join('s', url)
    while trial := trials.claim(shared):
        point = trials.suggest(trial, study.space(shared))
        error = 0.5 - 0.1 * (3 + math.log10(point['optim.lr']))
        trial.report(error, 1)
        kind = {7: 'pruned', 9: 'diverged'}.get(trial.number, 'complete')
        trials.finish(shared, trial, kind, error if kind == 'complete' else None)
    return shared, folder


def test_report_of_a_finished_study(finished, capsys):
    shared, folder = finished
    assert sweep.main(['report', '--study=s', f'--workdir={folder}']) == 0
    out = capsys.readouterr().out
    assert '20 points: 18 complete, 1 pruned, 1 diverged' in out
    best = trials.best_trial(shared)
    assert f'best: trial {best.number}, validation top-1 error {best.value:.2%}' in out
    assert 'Warning: the best has optim.lr=' in out and 'at the upper end' in out
    command = next(line for line in out.splitlines() if line.startswith('python -m experiments'))
    words = shlex.split(command)
    config = cli.load_config(TINY, [w for w in words if w.startswith('--config.')])
    assert config.optim.lr == best.params['optim.lr'] and config.data.eval == 'valid'
    assert config.model.blocks.mlpconv1.features == (8, 8)
    with open(folder / 'report' / 'trials.csv') as f:
        rows = list(csv.DictReader(f))
    assert [int(r['trial']) for r in rows] == list(range(20))
    assert float(rows[best.number]['optim.lr']) == best.params['optim.lr']
    page = (folder / 'report' / 'REPORT.md').read_text()
    shown = re.findall(r'!\[.*\]\((.*)\)', page)
    assert shown == ['best.png', 'axes.png', 'parallel.png', 'importance.png']
    for name in shown:
        assert Image.open(folder / 'report' / name).size > (600, 200)


def test_importance_finds_the_axis_that_matters(finished):
    weights, why_not = sweep_report.importance(finished[0])
    assert max(weights, key=weights.get) == 'optim.lr' and why_not == ''


def test_ends_of_axes():
    lr = log_uniform(0.001, 1.0)
    assert [sweep_report.edge(v, lr) for v in (0.00101, 0.03, 0.99)] == ['lower', '', 'upper']
    three = choice(1, 3, 2)
    assert [sweep_report.edge(v, three) for v in (1, 2, 3)] == ['lower', '', 'upper']
    assert sweep_report.edge('a', choice('a', 'b', 'c')) == ''
    assert sweep_report.edge(1, choice(1, 2)) == ''
    assert sweep_report.edge(4, integer(0, 4)) == 'upper'


# ---- real sweeps, with kills ----------------------------------------------------------------


def wait_until(true, timeout=60.0):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, 'it did not come about'
        time.sleep(0.05)


def children(pid: int) -> list[tuple[int, list[str]]]:
    """(process id, words of its command line) of a process's children."""
    found = []
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split():
            words = pathlib.Path(f'/proc/{child}/cmdline').read_text().split('\0')
            found.append((int(child), words[:-1]))
    return found


def step_of(folder: pathlib.Path) -> int:
    """The last step in the run's metrics."""
    try:
        return json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])['step']
    except (OSError, ValueError, IndexError):
        return 0


def run_with_kills(folder, page, kills, *flags, timeout=900):
    """Runs a sweep with two workers and kills some -9.

    Args:
      kills: (worker, trial number from which on, step from which on, whether its run, too), in
        order.

    Returns:
      The finished command, and (trial, step) of each kill.
    """
    words = [f'--sweep={page}', '--study=s', f'--workdir={folder}', '--workers=2', '--grace=4']
    driver = subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', *words, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    kills, killed, end = list(kills), [], time.monotonic() + timeout
    try:
        while driver.poll() is None:
            assert time.monotonic() < end, 'the sweep did not come to its end'
            time.sleep(0.02)
            if kills and (at := kill(driver.pid, *kills[0])):
                killed.append(at)
                kills.pop(0)
    finally:
        driver.terminate()
    out = driver.stdout.read()
    assert not kills, f'the sweep ended before {kills}: {out}'
    return driver.returncode, out, killed


def kill(driver: int, index: int, first: int, step: int, run_too: bool):
    """Kills a worker if it is far enough; returns the trial and its step, or None."""
    for worker, command in children(driver):
        for run, words in children(worker) if command[-1:] == [f'--index={index}'] else ():
            if 'experiments.main' not in words:  # forked, and still called what its worker is
                continue
            where = next(pathlib.Path(w[10:]) for w in words if w.startswith('--workdir='))
            trial = int(where.name.removeprefix('trial-'))
            if trial >= first and (now := step_of(where)) >= step:
                os.kill(worker, signal.SIGKILL)
                if run_too:
                    os.kill(run, signal.SIGKILL)
                return trial, now
    return None


TINY_SWEEP = """
from experiments.space import Sweep

def get_sweep():
    return Sweep(
        config={page!r},
        points=({points}),
        fixed={{
            'train.duration': '800steps', 'checkpoint.every': '40steps', 'eval.every': '80steps'
        }},
    )
"""


def tiny_sweep(folder, *rates):
    page = folder / 'page.py'
    rates = ''.join(f"{{'optim.lr': {lr}}}, " for lr in rates)
    page.write_text(TINY_SWEEP.format(page=TINY, points=rates))
    return page


def check_accounts(folder, url, count, killed, out):
    """Every trial has one result, its folder's; those killed went on from where they were."""
    every = trials.every(study.join('s', url))
    assert [t.number for t in every] == list(range(count)), out
    for trial in every:
        ended = summary(folder / f'trial-{trial.number}')
        kind = {'done': 'complete', 'diverged': 'diverged', 'preempted': 'pruned'}[ended['status']]
        assert trials.outcome(trial) == kind
        if kind == 'complete':
            assert trial.value == ended['final_error']
            steps = [line['step'] for line in metrics(folder / f'trial-{trial.number}', 'train')]
            assert steps == sorted(set(steps))  # neither a gap nor a duplicate
    for number, step in killed:
        assert every[number].user_attrs['losses'], out
        resumed = every[number].user_attrs['resumed_at']
        assert resumed and max(resumed) > 0 and max(resumed) >= step // 2, out
    return every


def test_a_sweep_whose_worker_is_killed_completes(tmp_path):
    """Also the last trial's worker: the others have nothing left to do, and must wait for it."""
    page = tiny_sweep(tmp_path, 0.05, 900.0, 0.02)
    folder, url = tmp_path / 'sweep', f'sqlite:///{tmp_path}/sweep/study.db'
    status, out, killed = run_with_kills(folder, page, [(0, 0, 200, True)])
    assert status == 0, out
    every = check_accounts(folder, url, 3, killed, out)
    assert [trials.outcome(t) for t in every] == ['complete', 'diverged', 'complete']
    assert 'the loss became' in every[1].user_attrs['reason']
    assert '3 points: 2 complete, 1 diverged; workers lost: 1, over 1 of the points' in out
    assert '[worker 0] ended with signal SIGKILL; started again' in out


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_goes_on(tmp_path):
    page = tiny_sweep(tmp_path, 0.05, 0.02)
    folder, url = tmp_path / 'sweep', f'sqlite:///{tmp_path}/sweep/study.db'
    words = [f'--sweep={page}', '--study=s', f'--workdir={folder}', '--workers=2']
    driver = subprocess.Popen([sys.executable, '-m', 'launch.sweep', *words], cwd=ROOT)
    wait_until(lambda: min(step_of(folder / f'trial-{n}') for n in range(2)) > 60, 120)
    driver.terminate()
    assert driver.wait(60) == 75
    every = trials.every(study.join('s', url))
    assert {trials.outcome(t) for t in every} == {'waiting'}
    assert not any(t.user_attrs.get('losses') for t in every)
    assert run_module('launch.sweep', *words).returncode == 0
    every = check_accounts(folder, url, 2, [], '')
    assert all(t.user_attrs['resumed_at'][0] > 60 for t in every)


@pytest.mark.slow
def test_a_mistake_that_only_a_run_finds_stops_the_sweep_and_loses_nothing(tmp_path):
    page = tiny_sweep(tmp_path, 0.05, 0.02)
    result = run_module(
        'launch.sweep',
        *(f'--sweep={page}', '--study=s', f'--workdir={tmp_path}/sweep'),
        *('--config.train.batch_size=200', '--config.data.limit=100'),
    )
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert 'trial 0 did not start: train.batch_size=200: the training split holds only 100' in (
        result.stderr
    )
    every = trials.every(study.join('s', f'sqlite:///{tmp_path}/sweep/study.db'))
    assert {trials.outcome(t) for t in every} == {'waiting'}


KILLS = [
    (0, 3, 60, False),  # the kernel tells its run to save and stop
    (1, 9, 110, True),  # both at once, as when a machine is lost
    (0, 16, 20, False),
    (1, 22, 80, True),  # among the last
    (0, 22, 40, False),
]


@pytest.mark.slow
def test_digits_sweep_with_workers_killed(tmp_path):
    status, out, killed = run_with_kills(tmp_path, DIGITS, KILLS, timeout=3600)
    assert status == 0, out
    check_accounts(tmp_path, f'sqlite:///{tmp_path}/study.db', 24, killed, out)


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL server of our own on loopback."""
    found = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin/initdb'))
    initdb = found[-1] if found else shutil.which('initdb')
    if not initdb:
        pytest.skip('no PostgreSQL server here: apt-get install postgresql')
    programs, as_user = pathlib.Path(initdb).parent, []
    folder = pathlib.Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    if os.geteuid() == 0:  # it refuses to run as root
        as_user = ['runuser', '-u', 'postgres', '--']
        subprocess.run(['chown', 'postgres', folder], check=True)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]

    def do(program, *words):
        command = [*as_user, programs / program, *words]
        subprocess.run(command, check=True, cwd='/', stdout=subprocess.DEVNULL, timeout=120)

    do('initdb', '-D', folder / 'data', '-U', 'sweeper', '-A', 'trust', '-E', 'UTF8')
    options = f'-p {port} -h 127.0.0.1 -k {folder}'
    do('pg_ctl', '-D', folder / 'data', '-w', '-l', folder / 'log', '-o', options, 'start')
    try:
        yield f'postgresql://sweeper@127.0.0.1:{port}/postgres'
    finally:
        do('pg_ctl', '-D', folder / 'data', '-m', 'immediate', 'stop')
        shutil.rmtree(folder)


@pytest.mark.slow
def test_the_same_sweep_on_postgresql(tmp_path, postgres):
    """With a worker killed; then the report from the server."""
    page = tiny_sweep(tmp_path, 0.05, 900.0, 0.02, 0.03)
    folder, kills = tmp_path / 'sweep', [(0, 0, 200, True), (1, 2, 100, False)]
    status, out, killed = run_with_kills(folder, page, kills, f'--storage={postgres}')
    assert status == 0, out
    check_accounts(folder, postgres, 4, killed, out)
    result = run_module(
        *('launch.sweep', 'report', '--study=s', f'--storage={postgres}', f'--out={tmp_path}/page')
    )
    assert result.returncode == 0, result.stderr
    assert '4 points: 3 complete, 1 diverged; workers lost: 2' in result.stdout
    missing = run_module('launch.sweep', 'report', '--study=t', f'--storage={postgres}')
    assert missing.returncode == 2 and "no study 't': choose from s" in missing.stderr


@pytest.mark.slow
def test_two_machines_share_a_study(tmp_path, postgres):
    """Two drivers begin at once, each with a folder of its own; no trial runs in both."""
    page = tiny_sweep(tmp_path, 0.05, 0.02, 0.03, 0.04)
    words = [sys.executable, '-m', 'launch.sweep', f'--sweep={page}', '--study=s']
    drivers = [
        subprocess.Popen(
            [*words, f'--storage={postgres}', f'--workdir={tmp_path / name}'], cwd=ROOT
        )
        for name in ('one', 'two')
    ]
    assert [driver.wait(600) for driver in drivers] == [0, 0]
    folders = [f.parent for name in ('one', 'two') for f in tmp_path.glob(f'{name}/*/summary.json')]
    assert sorted(f.name for f in folders) == [f'trial-{n}' for n in range(4)]
    assert {f.parent.name for f in folders} == {'one', 'two'}
    every = trials.every(study.join('s', postgres))
    assert {t.number: t.value for t in every} == {
        int(f.name[6:]): summary(f)['final_error'] for f in folders
    }


def test_without_optuna_the_mend_is_named():
    code = (
        "import sys; sys.modules['optuna'] = None; from launch import sweep; "
        "sys.exit(sweep.main(['report', '--study=x']))"
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "pip install -e '.[sweep]'" in result.stderr
    assert result.stderr.count('\n') == 1


def test_commands_of_the_readme(capsys):
    readme = (ROOT / 'README.md').read_text()
    commands = re.findall(r'^python -m launch\.sweep (.*)$', readme, re.M)
    run, report = map(shlex.split, commands)
    assert sweep.main([*run, '--dry-run']) == 0
    assert capsys.readouterr().out.count('\n') == 24
    assert report == ['report', '--study=digits'] and '--study=digits' in run
