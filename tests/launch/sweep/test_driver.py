"""Drivers as processes of their own, with stubs of 0.1 s for runs; a few with real runs."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
import sqlalchemy

from launch.processes import ProcessGroup
from launch.sweep import __main__ as entry
from launch.sweep import attempts, flags, study
from tests.helpers import ROOT, TINY_PAGE, metrics, run_process, summary, wait_until
from tests.launch.sweep.server import Postgres, programs
from tests.launch.sweep.stress import PROGRAM, children, kill, stress, write_sweep
from tests.launch.sweep.stress import drive as stress_drive

needs_postgres = pytest.mark.skipif(programs() is None, reason='apt-get install postgresql')


def every(folder, url=None):
    storage = flags.Storage(url or f'sqlite:///{folder}/study.db')
    database = study.connect(storage, study.RetryPolicy(storage, 30.0))
    return attempts.Attempts(study.join(database, 's'), database).by_point()


def words(folder, count=3, *more):
    page = write_sweep(folder, count)
    return [f'--sweep={page}', '--study=s', f'--workdir={folder}', '--devices=cpu', *more]


def start(argv, log, **env):
    """A driver of stubs, forked: its imports are done."""

    def drive():
        os.environ.update(env)
        stress_drive(argv, log)

    log.touch()
    process = multiprocessing.get_context('fork').Process(target=drive)
    process.start()
    return process


# ---- what is printed ------------------------------------------------------------------------


def test_help_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit):
        entry.main(['--help'])
    text = capsys.readouterr().out
    assert 'Runs a sweep' in text and '.pgpass' in text and 'Exit status' in text
    with pytest.raises(SystemExit):
        entry.main(['report', '--help'])
    assert 'Reports a sweep' in capsys.readouterr().out


def test_lines_carry_time_progress_and_eta(tmp_path, capsys):
    assert entry.main(words(tmp_path, 3, '--workers=1'), PROGRAM) == 0
    out = capsys.readouterr().out
    first = r'^\d\d:\d\d:\d\d \[1/3, ETA \d+:\d\d:\d\d\] worker 0, point 0: top-1'
    assert re.search(first, out, re.M)
    assert re.search(r'\[3/3\] worker 0, point 2: top-1 error 0.30%', out)
    assert '3 points: 3 complete\nbest: point 0, validation top-1 error 0.10%, seed=1' in out
    assert f'optuna-dashboard sqlite:///{tmp_path}/study.db' in out
    command = re.search(r'^python -m launch.sweep (report.*)$', out, re.M)[1]
    assert entry.main(shlex.split(command)) == 0
    assert entry.main(words(tmp_path, 3), PROGRAM) == 0  # again: nothing is left to do
    assert [len(tries) for tries in every(tmp_path)] == [1, 1, 1]


# ---- how runs end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'status', [75, *(pytest.param(s, marks=pytest.mark.heavy) for s in (1, 134))]
)
def test_a_point_that_fails_without_progress_is_given_up(tmp_path, capsys, monkeypatch, status):
    monkeypatch.setenv('STUB_FAILS', f'1:{status}')
    assert entry.main(words(tmp_path, 3, '--workers=2', '--retries=3'), PROGRAM) == 1
    found = every(tmp_path)
    assert [attempts.outcome(t) for t in found] == ['complete', 'failed', 'complete']
    assert len(found[1]) == 5  # the last was not run: it says that there are no more
    assert 'without progress' in found[1][-1].user_attrs['reason']
    assert 'point 1 fails' in capsys.readouterr().out


def test_a_mistake_that_only_a_run_finds_stops_the_sweep_and_loses_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv('STUB_FAILS', '0:2')
    assert entry.main(words(tmp_path, 3, '--workers=1'), PROGRAM) == 2
    assert 'trial 0 did not start: point 0 fails' in capsys.readouterr().err
    assert attempts.account(every(tmp_path)) == '3 points: 3 waiting'
    monkeypatch.delenv('STUB_FAILS')
    assert entry.main(words(tmp_path, 3), PROGRAM) == 0


@pytest.mark.processes
def test_a_stopped_sweep_saves_and_goes_on(tmp_path):
    argv = words(tmp_path, 2, '--workers=2')
    driver = start(argv, tmp_path / 'log', STUB_STEP_S='3')
    wait_until(lambda: [f for f in tmp_path.glob('trial-*/metrics.jsonl') if f.read_text()][1:])
    os.kill(driver.pid, signal.SIGTERM)
    driver.join(120)
    assert driver.exitcode == 75
    assert attempts.account(every(tmp_path)) == '2 points: 2 waiting'  # and no worker lost
    assert entry.main(argv, PROGRAM) == 0
    assert all(tries[-1].user_attrs['resumed_at'] for tries in every(tmp_path))
    lines = [(f / 'metrics.jsonl').read_text().splitlines() for f in tmp_path.glob('trial-*')]
    assert [len(of_one) for of_one in lines] == [5, 5]


@pytest.mark.processes
@pytest.mark.parametrize('with_runs', [True, False])
def test_another_driver_goes_on_where_one_was_killed(tmp_path, with_runs):
    """A driver killed over the last points: the other has nothing left to do, and waits for it."""
    argv = words(tmp_path, 3, '--workers=2', '--grace=12')
    first = start(argv, tmp_path / 'log1', STUB_STEP_S='10')
    wait_until(lambda: [f for f in tmp_path.glob('trial-*/metrics.jsonl') if f.read_text()][1:])
    second = start(argv, tmp_path / 'log2')
    wait_until(lambda: 'point 2: top-1' in (tmp_path / 'log2').read_text(), 120)
    kill(first, with_runs)
    second.join(180)
    assert second.exitcode == 0
    found = every(tmp_path)
    assert attempts.account(found).startswith('3 points: 3 complete; workers lost: 2, over 2 of')
    assert all(found[n][-1].user_attrs['resumed_at'] for n in range(2))
    assert not list(tmp_path.glob('trial-*/two at once'))


def test_a_run_gets_several_devices_and_no_password(tmp_path, monkeypatch):
    seen = tmp_path / 'environment.json'
    code = (
        f"import json, os, sys; json.dump(dict(os.environ), open({str(seen)!r}, 'w')); sys.exit(2)"
    )
    monkeypatch.setenv('PGPASSWORD', 'hush-hush')
    monkeypatch.setenv('NIN_STORAGE', f'sqlite:///{tmp_path}/other.db')
    argv = words(tmp_path, 1, '--devices_per_trial=2', '--workers=1')
    assert entry.main(argv, [sys.executable, '-c', code]) == 2
    env = json.loads(seen.read_text())
    assert env['JAX_NUM_CPU_DEVICES'] == '2'
    assert 'PGPASSWORD' not in env and 'NIN_STORAGE' not in env
    assert (tmp_path / 'other.db').exists() and not (tmp_path / 'study.db').exists()


# ---- the database ---------------------------------------------------------------------------


def refusing(times):
    """A call that raises as an unreachable database does, and then returns 'done'."""
    refusals = iter([True] * times)

    def call():
        if next(refusals, False):
            raise sqlalchemy.exc.OperationalError('SELECT 1', {}, Exception('no hush-hush here'))
        return 'done'

    return call


def test_the_database_is_tried_again_for_a_bounded_time():
    storage = flags.Storage('postgresql://u:hush-hush@h/d')
    patience = study.RetryPolicy(storage, 60.0, longest_pause=0.01)
    outages = []
    patience.on_outage = outages.append
    before = time.monotonic()
    assert patience(refusing(5)) == 'done'
    assert outages == ['no *** here'] and patience.recovered_at > before
    patience.seconds = 0.05
    with pytest.raises(study.UnreachableError) as caught:
        patience(refusing(10**6))
    assert caught.value.exit_status == 75 and 'hush' not in str(caught.value)
    patience.seconds, patience.give_up = 3600.0, lambda: True
    with pytest.raises(study.UnreachableError):
        patience(refusing(10**6))


def test_a_database_that_is_not_there_ends_in_75(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, 'STARTUP_S', 0.5)
    status = entry.main(words(tmp_path, 1, '--storage=postgresql://u@127.0.0.1:9/d'), PROGRAM)
    error = capsys.readouterr().err
    assert status == 75 and error.count('\n') == 1 and '127.0.0.1:9' in error


@needs_postgres
@pytest.mark.processes
def test_a_restart_of_the_database_costs_nothing(tmp_path):
    """The drivers wait for it, and no trial is counted as lost."""
    with Postgres() as server:
        argv = words(tmp_path, 6, '--workers=2', f'--storage={server.url}')
        driver = start(argv, tmp_path / 'log', STUB_STEP_S='0.4')
        for number in range(3):
            wait_until((tmp_path / f'trial-{number}' / 'metrics.jsonl').exists)
            server.stop()
            time.sleep(2.5)
            server.start()
        driver.join(60)
        assert driver.exitcode == 0, (tmp_path / 'log').read_text()
        found = every(tmp_path, server.url)
        assert attempts.account(found) == '6 points: 6 complete'
        assert [len(tries) for tries in found] == [1] * 6
    assert 'the database does not respond' in (tmp_path / 'log').read_text()


@needs_postgres
@pytest.mark.processes
def test_runs_are_saved_when_the_database_stays_away(tmp_path):
    with Postgres() as server:
        argv = words(tmp_path, 2, '--workers=2', f'--storage={server.url}', '--patience=1')
        driver = start(argv, tmp_path / 'log', STUB_STEP_S='3')
        wait_until(lambda: len(list(tmp_path.glob('trial-*/stub.lock'))) == 2)
        runs = children(driver.pid)
        server.stop()
        driver.join(60)
        assert driver.exitcode == 75 and len(runs) == 2
        assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in runs)
        server.start()


# ---- processes ------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != 'linux', reason='a death signal is a thing of Linux')
def test_a_process_is_asked_to_stop_when_its_parent_is_killed(tmp_path):
    code = (
        'from launch.processes import ProcessGroup\n'
        'with ProcessGroup() as group:\n'
        f"    group.start(['sh', '-c', 'trap \"touch {tmp_path}/told; exit\" TERM; "
        f"touch {tmp_path}/up; while :; do sleep 0.1; done']).wait()\n"
    )
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
    wait_until(lambda: (tmp_path / 'up').exists())
    parent.kill()
    wait_until(lambda: (tmp_path / 'told').exists())


def test_a_request_to_stop_is_handed_on():
    with ProcessGroup() as group:
        process = group.start(['sleep', '60'])
        os.kill(os.getpid(), signal.SIGTERM)
        assert group.stop and process.wait(10) == -signal.SIGTERM
        assert group.start(['sleep', '60']).wait(10) == -signal.SIGTERM


def test_without_optuna_the_package_is_named():
    code = (
        "import sys; sys.modules['optuna'] = None; from launch.sweep import __main__ as entry; "
        "sys.exit(entry.main(['report', '--study=x']))"
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "pip install -e '.[sweep]'" in result.stderr
    assert result.stderr.count('\n') == 1


def test_no_private_name_of_optuna_is_used():
    for path in (ROOT / 'launch' / 'sweep').glob('*.py'):
        found = re.findall(
            r'(?:study|trial|database|optuna[\w.]*|queue|self)\._[a-z]\w+', path.read_text()
        )
        assert not found, (path, found)
    assert optuna.__version__.split('.')[0] >= '5'


# ---- many workers lost ----------------------------------------------------------------------


@pytest.mark.slow
def test_many_lost_workers(tmp_path):
    counts = stress(tmp_path, f'sqlite:///{tmp_path}/study.db', 100, 80, 3, 4, 0.7)
    assert counts['lost'] > 50


@pytest.mark.slow
@needs_postgres
def test_many_lost_workers_on_a_server_that_restarts(tmp_path):
    with Postgres() as server:
        counts = stress(tmp_path, server.url, 100, 80, 3, 4, 0.7, [server.restart] * 5)
    assert counts['lost'] > 50 and counts['restarts'] == 5


@needs_postgres
@pytest.mark.slow
def test_two_machines_share_a_study(tmp_path):
    """Two drivers begin at once, each with a folder of its own; no trial runs in both."""
    with Postgres() as server:
        drivers = []
        for name in ('one', 'two'):
            (tmp_path / name).mkdir()
            argv = words(tmp_path / name, 12, '--workers=2', f'--storage={server.url}')
            drivers.append(start(argv, tmp_path / name / 'log'))
        for driver in drivers:
            driver.join(120)
        assert [driver.exitcode for driver in drivers] == [0, 0]
        done = [
            f.parent for name in ('one', 'two') for f in tmp_path.glob(f'{name}/*/summary.json')
        ]
        assert sorted(int(f.name[6:]) for f in done) == list(range(12))
        assert {f.parent.name for f in done} == {'one', 'two'}
        values = [tries[-1].value for tries in every(tmp_path, server.url)]
        assert values == [(n + 1) / 1000 for n in range(12)]


# ---- real runs ------------------------------------------------------------------------------

REAL = """
from experiments.space import Sweep

def get_sweep():
    return Sweep(
        config={page!r},
        points=({{'optim.lr': 0.05}}, {{'optim.lr': 900.0}}, {{'optim.lr': 0.02}}),
        fixed={{
            'train.duration': '800steps', 'checkpoint.every': '40steps', 'eval.every': '80steps'
        }},
    )
"""


@pytest.mark.processes
def test_a_real_sweep_whose_driver_is_killed_completes(tmp_path):
    (tmp_path / 'page.py').write_text(REAL.format(page=str(TINY_PAGE)))
    argv = [f'--sweep={tmp_path}/page.py', '--study=s', f'--workdir={tmp_path}', '--workers=2']
    first = subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', *argv, '--grace=4'], cwd=ROOT, text=True
    )

    def far() -> bool:
        with contextlib.suppress(OSError, IndexError):
            return metrics(tmp_path / 'trial-0', 'train')[-1]['step'] > 100
        return False

    wait_until(far, 300)
    for pid in (first.pid, *children(first.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.wait()
    result = run_process('launch.sweep', *argv, '--grace=4', timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    found = every(tmp_path)
    assert [attempts.outcome(tries) for tries in found] == ['complete', 'diverged', 'complete']
    assert found[0][-1].user_attrs['resumed_at'] >= 40
    assert 'the loss became' in found[1][-1].user_attrs['reason']
    for number in (0, 2):
        assert found[number][-1].value == summary(tmp_path / f'trial-{number}')['final_error']
        steps = [line['step'] for line in metrics(tmp_path / f'trial-{number}', 'train')]
        assert steps == sorted(set(steps))  # neither a gap nor a duplicate


@pytest.mark.slow
def test_the_digits_sweep_with_drivers_killed(tmp_path):
    """TPE and pruning, with a kill every 20 seconds, five times."""
    argv = ['--sweep=experiments/sweeps/digits.py', '--study=s', f'--workdir={tmp_path}']
    command = [sys.executable, '-m', 'launch.sweep', *argv, '--workers=2', '--grace=4']
    for kills_left in range(5, -1, -1):
        driver = subprocess.Popen(command, cwd=ROOT)
        if kills_left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(20)
            for pid in (driver.pid, *children(driver.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert driver.wait(3600) == 0
    found = every(tmp_path)
    assert len(found) == 24 and sum(map(attempts.lost, found)) >= 5
    assert {attempts.outcome(t) for t in found} <= {'complete', 'pruned', 'diverged'}
