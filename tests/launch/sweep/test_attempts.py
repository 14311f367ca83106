"""Who runs which point, and what becomes of the attempts that are lost."""

import concurrent.futures
import contextlib
import multiprocessing
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from experiments.space import Sweep
from launch.sweep import attempts, flags, study
from nin_jax.errors import UserError
from tests.helpers import TINY_PAGE

TINY = str(TINY_PAGE)
SWEEP = Sweep(TINY, points=tuple({'optim.lr': lr} for lr in (0.1, 0.2, 0.3)))


def connect(folder):
    storage = flags.Storage(f'sqlite:///{folder}/study.db')
    return study.connect(storage, study.RetryPolicy(storage, 60.0), 60)


def open_study(folder, sweep=SWEEP):
    database = connect(folder)
    return attempts.Attempts(study.begin(database, 's', sweep), database)


def claim(queue):
    """An attempt; None once there is nothing to claim."""
    while True:
        trial = queue.claim('w')
        if trial is not None or not any(map(waiting, queue.by_point())):
            return trial


def waiting(tries):
    return attempts.outcome(tries) == 'waiting'


def lose(folder, queue):
    """Makes every running attempt one whose driver died an hour ago."""
    with contextlib.closing(sqlite3.connect(folder / 'study.db')) as connection, connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    queue.fail_lost(60)


def test_each_point_has_one_owner_also_when_several_begin(tmp_path):
    one, two = open_study(tmp_path), open_study(tmp_path)
    for queue in (one, two, one):  # each as if it had not seen what the others queued
        for number in range(3):
            queue.study.enqueue_trial(queue.points[number], user_attrs={'point': number})
    taken = [claim(queue) for queue in (one, two, one, two)]
    assert [t and t.user_attrs['point'] for t in taken] == [0, 1, 2, None]
    assert one.suggest(taken[1]) == {'optim.lr': 0.2}
    assert attempts.account(two.by_point()) == '3 points: 3 running'


def test_a_loss_before_the_first_heartbeat_that_two_processes_notice(tmp_path, monkeypatch):
    queue = open_study(tmp_path)
    queue.study.enqueue_trial(queue.points[0], user_attrs={'point': 0})
    queue.study.ask()  # and no heartbeat: its worker was lost at once
    change = optuna.storages.RDBStorage.set_trial_state_values

    def change_twice(*args, **kwargs):
        change(*args, **kwargs)  # by the other process, just before ours
        return change(*args, **kwargs)

    queue.fail_lost(0.0)
    monkeypatch.setattr(optuna.storages.RDBStorage, 'set_trial_state_values', change_twice)
    queue.fail_lost(0.0)
    assert [t.state for t in queue.by_point()[0]] == [TrialState.FAIL]


def test_a_study_of_another_sweep_is_refused(tmp_path):
    open_study(tmp_path)
    other = Sweep(TINY, points=SWEEP.points, fixed={'optim.momentum': 0.5})
    with pytest.raises(UserError, match=r'optim.momentum: 0.9 there, 0.5 here'):
        open_study(tmp_path, other)


def notice(folder):
    """What a driver does about the losses of others, in a process of its own."""
    queue = attempts.Attempts(study.join(connect(folder), 's'), connect(folder))
    for _ in range(5):
        queue.fail_lost(60)
    if (trial := queue.claim('w')) is not None:
        queue.end(trial, TrialState.FAIL, end=attempts.RETURNED)


def test_six_processes_that_notice_a_loss_at_once_count_it_once(tmp_path):
    queue = open_study(tmp_path)
    assert [claim(queue).number for _ in range(3)] == [0, 1, 2]
    with contextlib.closing(sqlite3.connect(tmp_path / 'study.db')) as connection, connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    context = multiprocessing.get_context('forkserver')
    with concurrent.futures.ProcessPoolExecutor(6, context) as pool:
        list(pool.map(notice, [tmp_path] * 6))
    assert [attempts.lost(tries) for tries in queue.by_point()] == [1, 1, 1]
    # First what a process queued and no one asked for, then the other points in order.
    queued = queue.study.get_trials(states=(TrialState.WAITING,))
    expected = list(dict.fromkeys([*(t.user_attrs['point'] for t in queued), 0, 1, 2]))
    again = [claim(queue) for _ in range(4 + len(queued))]
    assert [t.user_attrs['point'] for t in again if t] == expected
    assert again[-1] is None
    assert all(queue.hopeless(number, retries=0) == '' for number in range(3))


def test_an_attempt_that_runs_elsewhere_is_not_taken_back(tmp_path):
    sweep = Sweep(TINY, points=({'optim.lr': 0.1},))
    one, two = open_study(tmp_path, sweep), open_study(tmp_path, sweep)
    first = claim(one)
    lose(tmp_path, one)
    second = claim(one)
    assert second.user_attrs['point'] == 0 and second.number != first.number
    two.fail_lost(60)
    two.end(first, TrialState.FAIL)  # with a list from before the second claim
    assert two.running() == {second.number}
    assert not one.end(first, TrialState.COMPLETE, 0.5)  # by a driver that was thought lost
    assert one.end(second, TrialState.COMPLETE, 0.25)
    assert [t.value for t in one.by_point()[0]] == [None, 0.25]


def test_a_lost_attempt_without_a_heartbeat_is_noticed(tmp_path, monkeypatch):
    """Its driver was killed right after `ask`: Optuna would call it running for ever."""
    queue = open_study(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(attempts.Attempts, 'beat', lambda *_: 1 / 0)
        queue.claim('w')
    queue.fail_lost(0.0)
    assert queue.running() == {0}  # seen for the first time
    queue.fail_lost(0.0)
    assert queue.running() == set()
    assert [claim(queue).user_attrs['point'] for _ in range(3)] == [0, 1, 2]


def test_what_tpe_proposed_is_kept(tmp_path):
    from experiments.space import log_uniform

    queue = open_study(
        tmp_path, Sweep(TINY, {'optim.lr': log_uniform(0.01, 1)}, sampler='tpe', trials=11)
    )
    *_, trial = [claim(queue) for _ in range(11)]
    point = queue.suggest(trial)
    lose(tmp_path, queue)
    *_, again = [claim(queue) for _ in range(11)]
    assert again.user_attrs['point'] == 10 and queue.suggest(again) == point


@pytest.mark.parametrize(
    ('ends', 'words'),
    [
        ([('error', 0)] * 3, ''),
        ([('error', 0)] * 4, 'status 1, 4 times without progress'),
        ([('error', step) for step in range(1, 30)], ''),  # each a step further
        ([(None, 0)] * 20, ''),
        ([(None, 0)] * 21, 'lost 21 times'),
        ([(None, step) for step in range(1, 40)], ''),
        ([('error', 0)] * 3 + [(None, 0)] * 9 + [('returned', 0)] * 30, ''),
        ([('error', 5)] * 3 + [('error', 6)] * 4, 'status 1, 4 times'),
    ],
)
def test_restarts_are_capped_only_without_progress(tmp_path, ends, words):
    queue = open_study(tmp_path, Sweep(TINY, points=({'optim.lr': 0.1},)))
    for end, reached in ends:
        trial = claim(queue)
        trial.set_user_attr('reached', reached)
        facts = {'end': end, 'reason': 'status 1'} if end else {}
        queue.end(trial, TrialState.FAIL, **facts)
    reason = queue.hopeless(0, retries=3)
    assert words in reason and bool(words) == bool(reason)


def test_returned_attempts_are_no_losses_and_results_are_final(tmp_path):
    queue = open_study(tmp_path)
    queue.end(claim(queue), TrialState.FAIL, end=attempts.RETURNED)
    assert attempts.account(queue.by_point()) == '3 points: 3 waiting'
    for state, error, facts in (
        (TrialState.COMPLETE, 0.25, {}),
        (TrialState.PRUNED, None, {'outcome': 'diverged'}),
        (TrialState.FAIL, None, {'end': attempts.GIVEN_UP}),
    ):
        assert queue.end(claim(queue), state, error, **facts)
    assert claim(queue) is None
    every = queue.by_point()
    assert attempts.account(every) == '3 points: 1 complete, 1 diverged, 1 failed'
    assert attempts.best(every).value == 0.25
