"""A sweep's trials: who runs which, what came out, and what was lost.

A worker takes a trial (RUNNING), gives it back (WAITING again) or finishes it (COMPLETE, PRUNED or
FAIL). A trial keeps its number from beginning to end, over kills and restarts, and its number names
its point and its folder, so none can be lost or counted twice. (Optuna's own
RetryHeartbeatStaleTrialCallback makes a new trial of a lost one in two steps: a process killed
between them loses it, and so does one killed before its first heartbeat.)

A heartbeat is by the database's clock; a trial without one for `grace` seconds is lost, and goes
back to WAITING as often as `retries` allows.
"""

import collections
import contextlib
import datetime
import os
import socket

import optuna
from optuna.trial import TrialState

from experiments.space import Axis, text

OUTCOMES = ('complete', 'pruned', 'diverged', 'failed', 'running', 'waiting')


def every(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The study's trials, a point each: those whose number is a point's, by number."""
    count = len(study.user_attrs['sweep']['points'])
    return study.get_trials(deepcopy=False)[:count]


# ---- taking and giving back -----------------------------------------------------------------


def owner() -> str:
    """Who a trial belongs to while it runs."""
    return f'{socket.gethostname()}:{os.getpid()}'


def claim(study: optuna.Study) -> optuna.Trial | None:
    """Takes the first waiting trial; None if there is none.

    The heartbeat comes first: without one, a trial whose worker was killed right after taking it
    would count as running for ever.
    """
    storage, fixed = study._storage, study.user_attrs['sweep']['points']
    for trial in every(study):
        if trial.state != TrialState.WAITING:
            continue
        storage.record_heartbeat(trial._trial_id)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                storage.set_trial_system_attr(trial._trial_id, 'fixed_params', fixed[trial.number])
                storage.set_trial_user_attr(trial._trial_id, 'owner', owner())
                return optuna.Trial(study, trial._trial_id)
    return None


def suggest(trial: optuna.Trial, axes: dict[str, Axis]) -> dict[str, object]:
    """The trial's point: what was put in, what it had when it was lost, or what TPE proposes."""
    point = {}
    for key, axis in axes.items():
        if axis.kind == 'choice':
            point[key] = trial.suggest_categorical(key, axis.values)
        elif axis.kind == 'integer':
            point[key] = trial.suggest_int(key, axis.low, axis.high)
        else:
            point[key] = trial.suggest_float(key, axis.low, axis.high, log=axis.is_log)
    return point


def still_ours(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Beats the heart; False once the trial went to another, as after a long sleep of ours."""
    now = study._storage.get_trial(trial._trial_id)
    if now.state != TrialState.RUNNING or now.user_attrs.get('owner') != owner():
        return False
    study._storage.record_heartbeat(trial._trial_id)
    return True


def take_back_lost(study: optuna.Study, retries: int) -> list[int]:
    """Puts trials whose heart stopped back in the queue; returns their numbers."""
    lost = study._storage._get_stale_trial_ids(study._study_id)
    numbers = []
    for trial_id in lost:
        trial = study._storage.get_trial(trial_id)
        who = trial.user_attrs.get('owner', 'its worker')
        numbers.append(trial.number)
        give_back(study, trial_id, f'{who} was lost', retries)
    return numbers


def give_back(study: optuna.Study, trial_id: int, lost: str = '', retries: int = 0) -> None:
    """Lets another worker go on with the trial; if it was `lost`, only so many times."""
    storage = study._storage
    losses = list(storage.get_trial(trial_id).user_attrs.get('losses', []))
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        if lost:
            losses.append(f'{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {lost}')
            storage.set_trial_user_attr(trial_id, 'losses', losses)
        if lost and len(losses) > retries:
            storage.set_trial_user_attr(trial_id, 'reason', f'{lost}, {len(losses)} times')
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
        else:
            storage.set_trial_state_values(trial_id, TrialState.WAITING)


def finish(
    study: optuna.Study, trial: optuna.Trial, outcome: str, error: float | None = None, **facts
) -> None:
    """Ends a trial: 'complete' with its final error, 'pruned', or 'diverged'.

    A diverged run is told to Optuna as pruned, so that TPE keeps away from where it was. A trial
    that has ended already, by another worker, stays as it is.
    """
    state = TrialState.COMPLETE if outcome == 'complete' else TrialState.PRUNED
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        for name, value in (facts | {'outcome': outcome}).items():
            trial.set_user_attr(name, value)
        values = None if error is None else [error]
        study._storage.set_trial_state_values(trial._trial_id, state, values)


# ---- accounting -----------------------------------------------------------------------------


def outcome(trial: optuna.trial.FrozenTrial) -> str:
    """One of OUTCOMES."""
    match trial.state:
        case TrialState.PRUNED:
            return trial.user_attrs.get('outcome', 'pruned')
        case TrialState.FAIL:
            return 'failed'
        case state:
            return state.name.lower()


def is_over(study: optuna.Study) -> bool:
    return all(t.state.is_finished() for t in every(study))


def account(study: optuna.Study) -> str:
    """'24 points: 18 complete, 5 pruned, 1 diverged; workers lost: 3, over 2 of the points'."""
    all_of_them = every(study)
    counts = collections.Counter(map(outcome, all_of_them))
    parts = [f'{counts[o]} {o}' for o in OUTCOMES if counts[o]]
    lost = sum(bool(t.user_attrs.get('losses')) for t in all_of_them)
    times = sum(len(t.user_attrs.get('losses', [])) for t in all_of_them)
    said = f'{len(all_of_them)} points: {", ".join(parts)}'
    return said + (f'; workers lost: {times}, over {lost} of the points' if lost else '')


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The complete trial with the lowest error; the earliest of several."""
    done = [t for t in every(study) if t.state == TrialState.COMPLETE]
    return min(done, key=lambda t: t.value, default=None)


def best(study: optuna.Study) -> str:
    """The best trial in a sentence."""
    trial = best_trial(study)
    if trial is None:
        return 'no trial came to its end'
    point = ', '.join(f'{key}={shown(value)}' for key, value in trial.params.items())
    return f'best: trial {trial.number}, validation top-1 error {trial.value:.2%}, {point}'


def shown(value: object) -> str:
    """A value for people: four digits of a number."""
    return f'{value:.4g}' if isinstance(value, float) else text(value)


def failed(study: optuna.Study) -> bool:
    return any(outcome(t) == 'failed' for t in every(study))
