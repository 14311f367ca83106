"""A sweep's study in an Optuna database: making it, joining it.

All trials are put in at the start, waiting, and number n is the sweep's point n: launch/trials.py
has what becomes of them.
"""

import contextlib
import json
import time
import warnings

import optuna
import sqlalchemy
from optuna.trial import TrialState

from experiments import cli
from experiments.space import Axis, Sweep
from launch import points
from nin_jax.config import flatten
from nin_jax.errors import UserError, did_you_mean

# Where a machine keeps its data, and what it computes with, may differ between machines.
OF_THE_MACHINE = ('data.dir', 'devices')
ABANDONED = 30.0  # seconds after which a study that does not fill up has lost its maker


class UnreachableError(UserError):
    """The database cannot be read or written, at least for now."""


@contextlib.contextmanager
def database_errors():
    """Turns a database's refusals into an UnreachableError."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        cause = str(getattr(e, 'orig', None) or e.__cause__ or e).strip().splitlines()[0]
        raise UnreachableError(
            f'the study cannot be read or written ({cause}): check --storage'
        ) from e


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
        theirs = study.user_attrs.get('sweep', ours)  # it is not there in the study's first moment
        if theirs != ours:
            raise UserError(
                f"study '{name}' is of another sweep ({difference(theirs, ours)}): repeat its "
                'settings to go on with it, or name another --study'
            ) from None
        wait_until_filled(study, len(ours['points']))
    study.set_user_attr('sweep', ours)  # again, as its maker may have died before it did
    for _ in ours['points'][len(study.get_trials(deepcopy=False)) :]:
        study.add_trial(optuna.create_trial(state=TrialState.WAITING))
    return study


def wait_until_filled(study: optuna.Study, wanted: int) -> None:
    """Waits for the maker of a study to put in all trials; returns, too, once it has given up."""
    count, since = -1, time.monotonic()
    while count < wanted and time.monotonic() - since < ABANDONED:
        now = len(study.get_trials(deepcopy=False))
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
