"""A sweep as an Optuna study: connecting to its database, creating it, joining it."""

import json
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy.exc

from experiments import cli
from experiments.space import Axis, Sweep
from launch.sweep import points
from launch.sweep.flags import Storage
from nin_jax.config import flatten
from nin_jax.errors import RetryError, UserError, did_you_mean

# Where a machine keeps its data, and what it computes with, may differ between machines.
OF_THE_MACHINE = ('data.dir', 'devices')
ERRORS = (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError)
STARTUP_S = 15.0
# What a server says when only the user can change it
MISTAKES = ('authentication', 'password', 'does not exist', 'not a database', 'permission denied')


class UnreachableError(RetryError):
    """The database cannot be read or written, at least for now."""


class Patience:
    """Repeats calls that the database refuses, for at most `seconds`, with growing pauses.

    A call may have taken effect although it raised: everything called must bear repetition.
    """

    def __init__(self, storage: Storage, seconds: float, longest_pause: float = 5.0):
        self.storage, self.seconds, self.longest_pause = storage, seconds, longest_pause
        self.steady = False  # from the first connection on, for `seconds` instead of STARTUP_S
        self.recovered_at = time.monotonic()  # after the last outage; who starts may have missed it
        self.give_up: Callable[[], bool] = lambda: False
        self.on_outage: Callable[[str], None] = lambda cause: None

    def __call__(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        """call(*args, **kwargs); raises UnreachableError after `seconds` of refusals."""
        since, pause = None, 0.2
        while True:
            try:
                value = call(*args, **kwargs)
            except ERRORS as e:
                cause, now = self.cause(e), time.monotonic()
                if since is None:
                    since = now
                    self.on_outage(cause)
                sentence = f"the database '{self.storage.shown}' cannot be used ({cause})"
                if not self.steady and any(word in cause for word in MISTAKES):
                    raise UserError(f'{sentence}: check --storage') from None
                limit = self.seconds if self.steady else min(self.seconds, STARTUP_S)
                if now - since > limit or self.give_up():
                    raise UnreachableError(f'{sentence}: run the same command again') from None
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, self.longest_pause)
            else:
                if since is not None:
                    self.recovered_at = time.monotonic()
                return value

    def cause(self, e: Exception) -> str:
        """The driver's own first line, without the password."""
        inner = e.__cause__ or e
        text = str(getattr(inner, 'orig', None) or inner).strip() or type(inner).__name__
        return self.storage.scrub(text.splitlines()[0])


def connect(storage: Storage, patience: Patience, grace: int = 60) -> optuna.storages.RDBStorage:
    """The database; its tables are created if it is empty.

    Raises:
      UnreachableError: it may come back.
      UserError: the URL, the user, the password or the driver is wrong.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    # launch/sweep/driver.py records the heartbeats of the trials that it asks for
    warnings.filterwarnings('ignore', message='Heartbeat of storage is supposed')
    options = {'connect_args': {'timeout': 60}}  # seconds to wait for another's lock
    if not storage.url.startswith('sqlite'):
        options = {'pool_pre_ping': True, 'connect_args': {'connect_timeout': 10}}
    try:
        return patience(
            optuna.storages.RDBStorage,
            *(driver_url(storage.url), options),
            heartbeat_interval=beat_every(grace),
            grace_period=grace,
        )
    except ImportError as e:
        raise UserError(f"--storage needs a driver: pip install -e '.[sweep]' ({e})") from None
    except (ValueError, sqlalchemy.exc.ArgumentError):
        raise UserError(
            f"--storage='{storage.shown}': write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    except RuntimeError as e:  # tables of another version
        raise UserError(storage.scrub(str(e).splitlines()[0])) from None


def driver_url(url: str) -> str:
    """The URL with the driver that the project installs."""
    return url.replace('postgresql://', 'postgresql+psycopg://', 1)


def beat_every(grace: int) -> int:
    """Seconds between heartbeats."""
    return max(1, grace // 4)


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
        'layout': 2,  # a point is one or more trials, see launch/sweep/attempts.py
    }
    return json.loads(json.dumps(record))  # as it comes back from the database


def begin(database: optuna.storages.RDBStorage, name: str, sweep: Sweep) -> optuna.Study:
    """Creates the study, or joins the one that is there; UserError if that is of another sweep."""
    ours = identity(sweep)
    study = optuna.create_study(storage=database, study_name=name, load_if_exists=True)
    theirs = study.user_attrs.get('sweep', ours)  # it is not there in the study's first moment
    if theirs != ours:
        raise UserError(
            f"study '{name}' is of another sweep ({difference(theirs, ours)}): repeat its "
            'settings to go on with it, or name another --study'
        )
    study.set_user_attr('sweep', ours)
    return join(database, name)


def difference(theirs: dict, ours: dict) -> str:
    """The first thing in which two identities differ."""
    key = next(k for k in ours if theirs.get(k) != ours[k])
    there, here = theirs.get(key), ours[key]
    if isinstance(here, dict) and isinstance(there, dict):
        key = next(k for k in {**there, **here} if there.get(k) != here.get(k))
        there, here = there.get(key), here.get(key)
    return 'its points differ' if key == 'points' else f'{key}: {there} there, {here} here'


def join(database: optuna.storages.RDBStorage, name: str) -> optuna.Study:
    """The study with its sampler and pruner; UserError, with the nearest name, if it is missing."""
    try:
        study = optuna.load_study(storage=database, study_name=name)
    except KeyError:
        there = optuna.get_all_study_names(database)
        hint = did_you_mean(name, there) if there else ': this database holds none'
        raise UserError(f"no study '{name}'{hint}") from None
    record = study.user_attrs.get('sweep')
    if record is None:
        raise UserError(f"study '{name}' was not made by launch.sweep: name another")
    study.sampler = optuna.samplers.RandomSampler()
    if record['sampler'] == 'tpe':
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=points.TPE_STARTUP, multivariate=True, constant_liar=True
        )
    study.pruner = optuna.pruners.NopPruner()
    if record['prune_after'] is not None:
        study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=record['prune_after'])
    return study


def space(study: optuna.Study) -> dict[str, Axis]:
    """The study's axes."""
    axes = study.user_attrs['sweep']['space']
    return {k: Axis(**{**a, 'values': tuple(a['values'])}) for k, a in axes.items()}
