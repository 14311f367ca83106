"""A sweep as an Optuna study: connects to the database, creates the study and joins it."""

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

# Keys that may differ between the machines of a study.
OF_THE_MACHINE = ('data.dir', 'devices', 'train.stall_timeout')
ERRORS = (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError)
STARTUP_S = 15.0
# Parts of server messages about errors that only the user can fix.
MISTAKES = ('authentication', 'password', 'does not exist', 'not a database', 'permission denied')


class UnreachableError(RetryError):
    """The database cannot be read or written, perhaps temporarily."""


class RetryPolicy:
    """Retries database calls for at most `seconds`, with exponential backoff.

    A call may have taken effect although it raised, so all calls must be idempotent.
    """

    def __init__(self, storage: Storage, seconds: float, longest_pause: float = 5.0):
        self.storage, self.seconds, self.longest_pause = storage, seconds, longest_pause
        self.steady = False  # after the first connection: the limit is `seconds`, not STARTUP_S
        self.recovered_at = time.monotonic()  # end of the last outage, at the earliest the start
        self.give_up: Callable[[], bool] = lambda: False
        self.on_outage: Callable[[str], None] = lambda cause: None

    def __call__(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        """Returns call(*args, **kwargs); raises UnreachableError after `seconds` of failures."""
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
        """Returns the first line of the database driver's message, without the password."""
        inner = e.__cause__ or e
        text = str(getattr(inner, 'orig', None) or inner).strip() or type(inner).__name__
        return self.storage.scrub(text.splitlines()[0])


def connect(storage: Storage, retry: RetryPolicy, grace: int = 60) -> optuna.storages.RDBStorage:
    """Connects to the database, and creates its tables if it is empty.

    Raises:
      UnreachableError: the database does not respond.
      UserError: the URL, the user, the password or the driver is wrong.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    # launch/sweep/driver.py records the heartbeats of its trials.
    warnings.filterwarnings('ignore', message='Heartbeat of storage is supposed')
    options = {'connect_args': {'timeout': 60}}  # seconds to wait for a lock
    if not storage.url.startswith('sqlite'):
        options = {'pool_pre_ping': True, 'connect_args': {'connect_timeout': 10}}
    try:
        return retry(
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
    """Returns the URL with the driver that the project installs."""
    return url.replace('postgresql://', 'postgresql+psycopg://', 1)


def beat_every(grace: int) -> int:
    """Seconds between heartbeats."""
    return max(1, grace // 4)


def identity(sweep: Sweep) -> dict:
    """Returns the settings that identify a study; a rerun must repeat them."""
    base = flatten(cli.load_config(sweep.config, points.flags(sweep, {})))
    record = {
        'config': sweep.config,
        'base': {k: v for k, v in base.items() if k not in OF_THE_MACHINE},
        'space': {key: vars(axis) for key, axis in points.axes_of(sweep).items()},
        'points': points.points(sweep),
        'sampler': sweep.sampler,
        'prune_after': sweep.prune_after,
        'fixed': {k: v for k, v in sweep.fixed.items() if k not in OF_THE_MACHINE},
        'layout': 2,  # a point has one or more trials, see launch/sweep/attempts.py
    }
    return json.loads(json.dumps(record))  # the form that the database returns


def begin(database: optuna.storages.RDBStorage, name: str, sweep: Sweep) -> optuna.Study:
    """Creates or joins the study; raises UserError if it belongs to a different sweep."""
    ours = identity(sweep)
    study = optuna.create_study(storage=database, study_name=name, load_if_exists=True)
    theirs = study.user_attrs.get('sweep', ours)  # missing immediately after creation
    if theirs != ours:
        raise UserError(
            f"study '{name}' belongs to a different sweep ({difference(theirs, ours)}): use the "
            'same settings to resume it, or choose another --study'
        )
    study.set_user_attr('sweep', ours)
    return join(database, name)


def difference(theirs: dict, ours: dict) -> str:
    """Describes the first difference between two identities."""
    key = next(k for k in ours if theirs.get(k) != ours[k])
    there, here = theirs.get(key), ours[key]
    if isinstance(here, dict) and isinstance(there, dict):
        key = next(k for k in {**there, **here} if there.get(k) != here.get(k))
        there, here = there.get(key), here.get(key)
    return 'its points differ' if key == 'points' else f'{key}: {there} there, {here} here'


def join(database: optuna.storages.RDBStorage, name: str) -> optuna.Study:
    """Loads the study with its sampler and pruner; raises UserError if it does not exist."""
    try:
        study = optuna.load_study(storage=database, study_name=name)
    except KeyError:
        there = optuna.get_all_study_names(database)
        hint = did_you_mean(name, there) if there else ': the database has no studies'
        raise UserError(f"no study '{name}'{hint}") from None
    record = study.user_attrs.get('sweep')
    if record is None:
        raise UserError(f"study '{name}' was not created by launch.sweep: choose another")
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
    """Returns the study's axes."""
    axes = study.user_attrs['sweep']['space']
    return {k: Axis(**{**a, 'values': tuple(a['values'])}) for k, a in axes.items()}
