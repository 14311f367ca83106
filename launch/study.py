"""A sweep's trials in an Optuna study: who runs which, what came out, and what was lost.

All trials are put in at the start, waiting; a worker takes one (RUNNING), gives it back (WAITING
again) or finishes it (COMPLETE, PRUNED or FAIL). A trial keeps its number from beginning to end,
over kills and restarts, so its number names its point and its folder, and none can be lost or
counted twice. (Optuna's own RetryHeartbeatStaleTrialCallback makes a new trial of a lost one in two
steps: a process killed between them loses it, and so does one killed before its first heartbeat.)
A worker's heartbeat is the database's clock; a trial without one for `grace` seconds is lost, and
goes back to WAITING as often as `retries` allows.
"""

import collections
import contextlib
import datetime
import json
import os
import socket
import time
import warnings

from experiments import cli
from experiments.space import Axis, Sweep, text
from launch import points
from nin_jax.config import flatten
from nin_jax.errors import UserError, did_you_mean

try:
    import optuna
    import sqlalchemy
    from optuna.trial import TrialState
except ImportError as e:
    raise UserError(f"sweeps need {e.name}: pip install -e '.[sweep]'") from None

OUTCOMES = ('complete', 'pruned', 'diverged', 'failed', 'running', 'waiting')
# Where a machine keeps its data, and what it computes with, may differ between machines.
OF_THE_MACHINE = ('data.dir', 'devices')
ABANDONED = 30.0  # seconds after which a study that does not fill up has lost its maker


@contextlib.contextmanager
def database_errors():
    """Turns a database's refusals into one sentence."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        cause = str(getattr(e, 'orig', None) or e.__cause__ or e).strip().splitlines()[0]
        raise UserError(f'the study cannot be read or written ({cause}): check --storage') from e


def connect(url: str, grace: int) -> optuna.storages.RDBStorage:
    """The database of studies; its tables are made if it is empty."""
    options = {'connect_args': {'timeout': 60}}  # seconds to wait for another's lock
    if url.startswith('postgresql://'):
        url = url.replace('postgresql://', 'postgresql+psycopg://', 1)
    if not url.startswith('sqlite'):
        options = {'pool_pre_ping': True, 'connect_args': {'connect_timeout': 20}}
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        for pause in (1.0, 3.0, None):
            try:
                return optuna.storages.RDBStorage(
                    url, options, heartbeat_interval=beat_every(grace), grace_period=grace
                )
            except sqlalchemy.exc.DBAPIError:  # a server starting, another making the same tables
                if pause is None:
                    raise
                time.sleep(pause)
    except ImportError as e:
        raise UserError(f"--storage needs a driver: pip install -e '.[sweep]' ({e})") from None
    except sqlalchemy.exc.ArgumentError:
        raise UserError(
            f"--storage='{url}': write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None


def beat_every(grace: int) -> int:
    """Seconds between heartbeats."""
    return max(1, grace // 4)


# ---- making and opening ---------------------------------------------------------------------


def identity(sweep: Sweep) -> dict:
    """What makes a study's trials comparable: all but the number of the trial."""
    base = flatten(cli.load_config(sweep.config, points.flags(sweep, {})))
    record = {
        'config': sweep.config,
        'base': {k: v for k, v in base.items() if k not in OF_THE_MACHINE},
        'space': {key: vars(axis) for key, axis in points.axes_of(sweep).items()},
        'points': points.points(sweep),
        'sampler': sweep.sampler,
        'prune_after': sweep.prune_after,
        'fixed': {k: v for k, v in sweep.fixed.items() if k not in OF_THE_MACHINE},
    }
    return json.loads(json.dumps(record))  # as it comes back from the database


def begin(name: str, url: str, sweep: Sweep, grace: int) -> optuna.Study:
    """Makes the study and puts in all its trials, or joins the one that is there.

    Raises:
      UserError: the study is of another sweep, or the database cannot be used.
    """
    ours = identity(sweep)
    storage = connect(url, grace)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction='minimize')
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        wait_until_filled(study, len(ours['points']))
        if study.user_attrs.get('sweep', ours) != ours:
            raise UserError(
                f"study '{name}' is of another sweep ({difference(study.user_attrs['sweep'], ours)}"
                '): repeat its settings to go on with it, or name another --study'
            ) from None
    study.set_user_attr('sweep', ours)  # again, as its maker may have died before it did
    for _ in ours['points'][len(trials(study)) :]:
        study.add_trial(optuna.create_trial(state=TrialState.WAITING))
    return study


def trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The study's trials, a point each: those whose number is a point's, by number."""
    count = len(study.user_attrs['sweep']['points'])
    return study.get_trials(deepcopy=False)[:count]


def wait_until_filled(study: optuna.Study, wanted: int) -> None:
    """Waits for the maker of a study to put in all trials; returns, too, once it has given up."""
    count, since = -1, time.monotonic()
    while count < wanted and time.monotonic() - since < ABANDONED:
        now = len(study.get_trials(deepcopy=False))  # its maker may not have named the sweep yet
        if now != count:
            count, since = now, time.monotonic()
        else:
            time.sleep(0.5)


def difference(theirs: dict, ours: dict) -> str:
    """The first thing in which two identities differ."""
    for key in ours:
        if theirs.get(key) != ours[key]:
            if isinstance(ours[key], dict) and isinstance(theirs.get(key), dict):
                both = {**theirs[key], **ours[key]}
                inner = next(k for k in both if theirs[key].get(k) != ours[key].get(k))
                return f'{inner}: {theirs[key].get(inner)} there, {ours[key].get(inner)} here'
            return f'its {key} differ' if key == 'points' else f'{key}: {theirs.get(key)} there'
    return ''


def join(name: str, url: str, grace: int = 60) -> optuna.Study:
    """The study, which must be there; UserError, with the nearest name, if it is not."""
    storage = connect(url, grace)
    try:
        study = optuna.load_study(
            storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError:
        there = optuna.get_all_study_names(storage)
        hint = did_you_mean(name, there) if there else ': this database holds none'
        raise UserError(f"no study '{name}'{hint}") from None
    if 'sweep' not in study.user_attrs:
        raise UserError(f"study '{name}' was not made by launch.sweep: name another")
    record = study.user_attrs['sweep']
    if record['sampler'] == 'tpe':
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=points.TPE_STARTUP, multivariate=True, constant_liar=True
        )
    if record['prune_after'] is not None:
        study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=record['prune_after'])
    else:
        study.pruner = optuna.pruners.NopPruner()
    return study


def space(study: optuna.Study) -> dict[str, Axis]:
    """The study's axes."""
    axes = study.user_attrs['sweep']['space']
    return {k: Axis(**{**a, 'values': tuple(a['values'])}) for k, a in axes.items()}


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
    for trial in trials(study):
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
    return all(t.state.is_finished() for t in trials(study))


def account(study: optuna.Study) -> str:
    """'24 points: 18 complete, 5 pruned, 1 diverged; workers lost: 3, over 2 of the points'."""
    every = trials(study)
    counts = collections.Counter(map(outcome, every))
    parts = [f'{counts[o]} {o}' for o in OUTCOMES if counts[o]]
    lost = sum(bool(t.user_attrs.get('losses')) for t in every)
    times = sum(len(t.user_attrs.get('losses', [])) for t in every)
    said = f'{len(every)} points: {", ".join(parts)}'
    return said + (f'; workers lost: {times}, over {lost} of the points' if lost else '')


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The complete trial with the lowest error; the earliest of several."""
    done = [t for t in trials(study) if t.state == TrialState.COMPLETE]
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
    return any(outcome(t) == 'failed' for t in trials(study))
