"""Records metrics, checkpoints and times of the training loop, behind one interface."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.data import preprocess
from nin_jax.data.pipeline import Data
from nin_jax.data.preprocess import Preprocess
from nin_jax.errors import CheckpointError
from nin_jax.plan import Plan
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.display import warn
from nin_jax.runs.environment import environment
from nin_jax.runs.metrics import Metrics, NullMetrics, Stopwatch
from nin_jax.runs.workdir import PREPROCESS, RunDir, differences


class Recorder:
    """The records of a run, starting from the state that `resume` returns. A context manager.

    Args:
      run: folder of the run.
      config: config of the run.
      plan: durations in steps.
      fitted: fitted preprocessing, which every checkpoint must match.
      data: images of the run, which every checkpoint must match.
      clock: stopwatch of the run.

    Attributes:
      saved_health: the `health` that was saved with the state that the run resumes from.
    """

    def __init__(
        self,
        run: RunDir,
        config: ConfigDict,
        plan: Plan,
        fitted: Preprocess,
        data: Data,
        clock: Stopwatch,
    ):
        self.clock, self.saved_health = clock, {}
        self._run, self._plan = run, plan
        self._meta = {
            'config': run.flat,
            'environment': environment(),
            'preprocess': preprocess.digest(fitted),
            'class_names': data.class_names,
            'images': data.fingerprint,
        }
        self._checkpoints = Checkpoints(run.path / 'checkpoints', config.checkpoint.keep, warn)
        self._metrics: Metrics | NullMetrics = NullMetrics()

    def __enter__(self) -> 'Recorder':
        self._checkpoints.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._metrics.close()
        finally:
            self._checkpoints.__exit__(*error)

    @property
    def evals(self) -> list[dict]:
        """All evaluations so far, as lines of metrics.jsonl."""
        return list(self._metrics.evals)

    def resume(self, shapes: Any, fresh: Callable[[], Any]) -> Any:
        """Returns the state of the newest valid checkpoint, or `fresh()` if there is none.

        Args:
          shapes: shapes, dtypes and shardings of the state.
          fresh: creates a new state.

        Raises:
          CheckpointError: no checkpoint can be read, or they belong to another run.
        """
        with distributed.together():
            restored = restore(self._checkpoints, shapes, self._run.flat, self._meta['preprocess'])
            state, meta = restored or (fresh(), {})
            if meta.get('images', self._meta['images']) != self._meta['images']:
                raise CheckpointError(
                    f"the run in '{self._run.path}' was trained on other images than those in "
                    'data.dir: name the folder that it was started with, or another --workdir'
                )
        self.saved_health = meta.get('health', {})
        for part, seconds in meta.get('seconds', {}).items():
            self.clock.seconds[part] = self.clock.seconds.get(part, 0.0) + seconds
        with distributed.together():
            if distributed.is_first():
                self._metrics = Metrics(
                    self._run.path,
                    self._plan,
                    first=(int(state.attempt), int(state.step)),
                    clock=self.clock,
                    digest=meta.get('metrics'),
                )
        return state

    def train(self, step: int, loss: float, error: float) -> None:
        """Records a call that ended at `step`, with mean loss and top-1 error of its batches."""
        self._metrics.train(step, loss, error)

    def eval(self, step: int, loss: float, error: float, errors: int) -> None:
        """Records an evaluation: mean loss, top-1 error, and number of errors."""
        self._metrics.eval(step, loss, error, errors)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Adds a uint8 image to TensorBoard."""
        self._metrics.picture(step, name, image_HWC)

    def note(self, text: str) -> None:
        """Prints a line on the console."""
        self._metrics.note(text)

    def lacks_evaluation(self) -> bool:
        """Whether no evaluation is recorded; the same on all processes."""
        return distributed.anyone(distributed.is_first() and not self._metrics.evals)

    def save(self, step: int, state: Any, error: float | None, health: dict) -> None:
        """Starts to save a checkpoint, after its metrics are on disk.

        Args:
          step: step of the state.
          state: the state.
          error: its top-1 error; None if it was not evaluated.
          health: `Health.saved` of the attempt.
        """
        with self.clock('checkpoint'):
            self._save(step, state, error, health)

    def start_over(self, attempt: int, state: Any) -> None:
        """Restarts at step 0 with new weights; deletes earlier checkpoints."""
        self._checkpoints.clear()
        self.saved_health = {}
        self._save(0, state, error=None, health={})
        self._metrics.start_over(attempt)

    def _save(self, step: int, state: Any, error: float | None, health: dict) -> None:
        known = {
            'seconds': dict(self.clock.seconds),
            'metrics': self._metrics.sync(),
            'health': health,
        }
        self._checkpoints.save(step, state, self._meta | known, error)
        if self._run.publish:
            self._checkpoints.wait()
            self._run.publish()

    def wait(self) -> None:
        """Blocks until all checkpoints are on disk."""
        with self.clock('checkpoint'):
            self._checkpoints.wait()

    def metrics_sha256(self) -> str:
        """Returns the current SHA-256 of metrics.jsonl."""
        return self._metrics.sync()


def restore_run(
    folder: pathlib.Path, shapes: Any, flat: dict, fitted: Preprocess, step: int | None
) -> tuple[Any, dict]:
    """Restores (state, meta) of a run that is not being trained here; changes no file.

    Args:
      folder: folder of the run.
      shapes, flat, step: see `restore`.
      fitted: the run's preprocessing.

    Raises:
      CheckpointError: there is no such checkpoint, or see `restore`.
    """
    with Checkpoints(folder / 'checkpoints', keep=1, warn=warn, read_only=True) as checkpoints:
        restored = restore(checkpoints, shapes, flat, preprocess.digest(fitted), step)
    if restored is None:
        raise CheckpointError(f"no checkpoints in '{folder}': train the run first")
    return restored


def restore(
    checkpoints: Checkpoints, shapes: Any, flat: dict, fitted: str, step: int | None = None
) -> tuple[Any, dict] | None:
    """Restores (state, meta) of the newest valid checkpoint, or of `step`; None if none exists.

    Args:
      checkpoints: checkpoints of the run.
      shapes: shapes, dtypes and shardings of the state.
      flat: the run's flat config.
      fitted: digest of the run's preprocessing.
      step: the step to restore; None for the newest.

    Raises:
      CheckpointError: no checkpoint can be read, or its config or preprocessing differs.
    """
    restored = checkpoints.restore(shapes, step)
    if restored is None:
        return None
    state, meta = restored
    if different := differences(meta['config'], flat):
        key, (other, _) = next(iter(different.items()))
        raise CheckpointError(
            f'the checkpoint at step {int(state.step)} belongs to another run, with '
            f'{key}={other!r}: restore the run from a copy'
        )
    if meta['preprocess'] != fitted:
        raise CheckpointError(
            f'{PREPROCESS} is not the one that this checkpoint was trained with: '
            'restore the run from a copy'
        )
    return restored
