"""A run's folder, which is locked by one run at a time and belongs to one config.

config.json       all keys of the run's config
preprocess.npz    fitted preprocessing, for evaluation
checkpoints/      Orbax checkpoints, by step
metrics.jsonl     one line per call and per evaluation
tensorboard/      the same metrics for TensorBoard
summary.json      the result of the run
damaged/          checkpoints that did not match their SHA-256
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.config import FREE_TO_CHANGE, block, default_config, flatten
from nin_jax.data import preprocess
from nin_jax.data.preprocess import Preprocess
from nin_jax.errors import CheckpointError, UserError
from nin_jax.files import LockedError, lock, read_json, write_json
from nin_jax.runs.display import warn

CONFIG, PREPROCESS, SUMMARY = 'config.json', 'preprocess.npz', 'summary.json'


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The folder of a run, locked by the processes that train it.

    Attributes:
      path: the folder.
      flat: the run's flat config, as in config.json.
      is_done: whether the run has finished.
      publish: copies the folder to the run's bucket; None without one.
    """

    path: pathlib.Path
    flat: dict
    is_done: bool
    publish: Callable[[], None] | None = None

    @property
    def summary(self) -> dict:
        """The content of summary.json."""
        return read_json(self.path / SUMMARY)

    def preprocess(self, fit: Callable[[], Preprocess]) -> Preprocess:
        """Returns the run's preprocessing; process 0 fits it at the first start.

        Raises:
          CheckpointError: the file is damaged, or the processes do not share the folder.
        """
        path = self.path / PREPROCESS
        with distributed.together():
            if distributed.is_first() and not path.exists():
                preprocess.save(path, fit())
        with distributed.together():
            if not path.exists():
                raise CheckpointError(
                    f"'{self.path}' is not the same folder for all processes: name a --workdir "
                    'that they share'
                )
            fitted = preprocess.load(path)
        distributed.check_same(PREPROCESS, lambda: preprocess.digest(fitted))
        return fitted

    def write_summary(self, summary: dict) -> None:
        """Writes summary.json, on process 0 only."""
        if distributed.is_first():
            write_json(self.path / SUMMARY, summary)
        if self.publish:
            self.publish()


@contextlib.contextmanager
def open_run(
    path: pathlib.Path, config: ConfigDict, publish: Callable[[], None] | None = None
) -> Iterator[RunDir]:
    """Creates or opens the folder of a run and locks it until the block ends.

    Args:
      path: the folder.
      config: the config of the run.
      publish: see `RunDir`.

    Raises:
      UserError: another process has locked it.
      CheckpointError: it belongs to a run with a different config.
    """
    with contextlib.ExitStack() as stack:
        flat, is_done = flat_config(config), False
        with distributed.together():
            if distributed.is_first():
                stack.enter_context(locked(path))
                write_or_check_config(path, flat)
                is_done = _is_done(path, flat)
        try:
            yield RunDir(path, flat, distributed.anyone(is_done), publish)
        except Exception:
            if distributed.is_first() and not has_started(path):
                forget(path)
            raise


def has_started(path: pathlib.Path) -> bool:
    """Whether the folder contains metrics or checkpoints of a run."""
    metrics = path / 'metrics.jsonl'
    return (metrics.exists() and metrics.stat().st_size > 0) or any(path.glob('checkpoints/*'))


def forget(path: pathlib.Path) -> None:
    """Deletes the config of a run without steps, so that a corrected command is accepted."""
    for name in (CONFIG, PREPROCESS):
        (path / name).unlink(missing_ok=True)


def _is_done(path: pathlib.Path, flat: dict) -> bool:
    """Whether this run has finished, by its summary.json."""
    summary_path = path / SUMMARY
    if not summary_path.exists():
        return False
    try:
        summary = read_json(summary_path)
    except CheckpointError:
        warn(f"'{summary_path}' is damaged: writing it again")
        return False
    if differences(summary.get('config', {}), flat):
        warn(f"'{summary_path}' belongs to another run: writing it again")
        return False
    return summary.get('status') == 'done'


def load_preprocess(path: pathlib.Path) -> Preprocess:
    """Loads the preprocessing of the run in `path`.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    if not (path / PREPROCESS).exists():
        raise CheckpointError(f"'{path}' holds no {PREPROCESS}: is this the --workdir of a run?")
    return preprocess.load(path / PREPROCESS)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the folder and locks it against other runs; the lock ends with the process."""
    if not str(workdir.absolute()).isprintable():  # also bytes that are not UTF-8
        raise UserError(
            f'--workdir={str(workdir)!a} is not UTF-8 text, and checkpoints need that: rename it'
        )
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with lock(workdir / '.lock'):
            yield
    except LockedError:
        raise UserError(
            f"another process is running in '{workdir}': wait for it, or name another --workdir"
        ) from None


def write_or_check_config(workdir: pathlib.Path, flat: dict) -> None:
    """Writes config.json before the first step of a run; later checks the config against it.

    Raises:
      CheckpointError: the folder belongs to a run with a different config.
      UserError: the folder holds a release.
    """
    path = workdir / CONFIG
    if (workdir / 'model.safetensors').exists():
        raise UserError(f"'{workdir}' holds a release: name another --workdir")
    if not has_started(workdir):
        forget(workdir)
        write_json(path, flat)
        return
    check_same(workdir, read_json(path), flat)


def check_same(workdir: pathlib.Path, saved: dict, flat: dict, only: str = '') -> None:
    """Raises CheckpointError unless two flat configs agree in all keys that start with `only`."""
    different = {k: v for k, v in differences(saved, flat).items() if k.startswith(only)}
    if different:
        key, (one, other) = next(iter(different.items()))
        raise CheckpointError(
            f"'{workdir}' holds a run with {key}={one!r}, this command sets {other!r}"
            + (f' (and {len(different) - 1} more keys)' if len(different) > 1 else '')
            + ': repeat its settings, or name another --workdir'
        )


def differences(one: dict, other: dict) -> dict[str, tuple[object, object]]:
    """Returns the keys in which two flat configs differ, with both values, except FREE_TO_CHANGE.

    A key that a config lacks, because the config is older than the key, has its default value.
    """
    defaults = flatten(default_config())
    row = block(features=(), kernel=1)

    def value(flat: dict, key: str) -> object:
        if key.startswith('model.blocks.'):  # of any number of rows, but all of the same fields
            return flat.get(key, row.get(key.rpartition('.')[2]))
        return flat.get(key, defaults.get(key))

    pairs = {k: (value(one, k), value(other, k)) for k in {**one, **other}}
    return {
        k: (a, b)
        for k, (a, b) in pairs.items()
        if jsonable({k: a}) != jsonable({k: b}) and not k.startswith(FREE_TO_CHANGE)
    }


def flat_config(config: ConfigDict) -> dict:
    """Returns the config as a flat JSON object: {'optim.lr': 0.1, ...}, with lists for tuples."""
    return jsonable(flatten(config))


def jsonable(flat: dict) -> dict:
    """Converts tuples to lists, as JSON does."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}
