"""metrics.jsonl: one line per call ('train') and per evaluation ('eval'), written immediately.

A resumed run first drops the lines past its checkpoint, so that there is neither a gap nor a
duplicate however often it was killed. Only the evaluations stay in memory.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator

import numpy as np

from nin_jax.errors import CheckpointError
from nin_jax.plan import Plan
from nin_jax.runs import tensorboard
from nin_jax.runs.display import ProgressDisplay, duration, warn


class Stopwatch:
    """Seconds spent in each part of a run, summed over restarts.

    Attributes:
      seconds: seconds spent in each part.
      part: the current or latest part.
      changes: number of times that a part has started, ended or made progress.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.part, self.changes = '', 0

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        outer, self.part = self.part, part
        self.changes += 1
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            self.part = outer or part
            self.changes += 1

    def progress(self) -> None:
        """Counts progress within a part, for `watchdog`."""
        self.changes += 1


class Metrics:
    """Writes and displays the metrics of a run.

    Args:
      workdir: the run's folder; it must exist.
      plan: the plan of the run.
      first: (attempt, step) of the resumed state; (0, 0) for a new run.
      clock: the stopwatch whose 'train' seconds determine images per second.
      digest: SHA-256 of metrics.jsonl when that state was saved; None if unknown.

    Attributes:
      evals: the lines of all evaluations.

    Raises:
      CheckpointError: metrics.jsonl does not match `digest`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        plan: Plan,
        first: tuple[int, int],
        clock: Stopwatch,
        digest: str | None = None,
    ):
        self._plan, self._path = plan, workdir / 'metrics.jsonl'
        self._sha, self.evals, self._shown = hashlib.sha256(), [], {}
        self._drop_lines_past(first, digest)
        self._file = open(self._path, 'a', buffering=1)  # noqa: SIM115 - closed in close()
        self._tensorboard = tensorboard.EventFile(
            workdir / tensorboard.FOLDER, purge_step=first[1] + 1
        )
        self._attempt, self._last_step = first
        self._clock, self._last_seconds = clock, clock.seconds.get('train', 0.0)
        self._console = ProgressDisplay(plan.total_steps)

    def close(self) -> None:
        """Closes the files."""
        self._console.close()
        self._file.close()
        self._tensorboard.close()

    def train(self, step: int, loss: float, error: float) -> None:
        """Records a call that ended at `step`, with its mean loss and error."""
        seconds = self._clock.seconds['train']
        images = (step - self._last_step) * self._plan.batch_size
        rate = images / max(seconds - self._last_seconds, 1e-9)
        self._last_step, self._last_seconds = step, seconds
        self._write('train', step, loss=loss, error=error, images_per_s=round(rate, 1))

    def eval(self, step: int, loss: float, error: float, errors: int) -> None:
        """Records an evaluation: mean loss, top-1 error, and the count of errors."""
        self._write('eval', step, loss=loss, error=error, errors=errors)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Adds a uint8 image to TensorBoard."""
        self._tensorboard.write_image(step, f'eval/{name}', image_HWC)

    def sync(self) -> str:
        """Flushes to the disk, so that no checkpoint is newer than its metrics.

        Returns the SHA-256 of metrics.jsonl.
        """
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        return self._sha.hexdigest()

    def note(self, text: str) -> None:
        """Prints a line on the console."""
        self._console.print(text)

    def start_over(self, attempt: int) -> None:
        """Restarts at step 0 with new weights; earlier lines stay in the file."""
        self._attempt, self._last_step = attempt, 0

    def _write(self, kind: str, step: int, **values: float) -> None:
        line = {
            'kind': kind,
            'attempt': self._attempt,
            'step': step,
            'epoch': round(step / self._plan.steps_per_epoch, 4),
            **values,
        }
        text = json.dumps(line) + '\n'
        self._keep(line, text)
        self._file.write(text)
        self._tensorboard.write(step, {f'{kind}/{name}': v for name, v in values.items()})
        self._console.show(step, self._text(step), milestone=kind == 'eval')

    def _keep(self, line: dict, text: str) -> None:
        self._sha.update(text.encode())
        self._shown[line['kind']] = line
        if line['kind'] == 'eval':
            self.evals.append(line)

    def _drop_lines_past(self, first: tuple[int, int], digest: str | None) -> None:
        """Keeps the lines up to (attempt, step), and drops an incomplete last line."""
        temporary, damaged = self._path.with_suffix('.tmp'), False
        with open(temporary, 'w') as kept:
            if self._path.exists() and first != (0, 0):
                with open(self._path, errors='replace') as lines:
                    for text in lines:
                        try:
                            line = check_line(json.loads(text))
                            place = line['attempt'], line['step']
                            is_earlier = place[0] < first[0] or place <= first
                        except (ValueError, KeyError, TypeError):
                            damaged = True
                            continue
                        if is_earlier:
                            text = text.rstrip('\n') + '\n'  # the last may have lost it
                            self._keep(line, text)
                            kept.write(text)
            kept.flush()
            os.fsync(kept.fileno())
        if digest is not None and not (self._shown or damaged):
            warn(f"'{self._path}' is missing: continuing without its earlier lines")
        elif digest not in (None, self._sha.hexdigest()):
            temporary.unlink()
            raise CheckpointError(
                f"'{self._path}' is damaged: it does not match the checkpoint at step {first[1]}; "
                'restore it from a copy, or delete it to continue without its lines'
            )
        os.replace(temporary, self._path)

    def _text(self, step: int) -> str:
        train, evaluated = self._shown.get('train'), self._shown.get('eval')
        parts = [
            f'step {step:,}/{self._plan.total_steps:,}',
            f'epoch {step / self._plan.steps_per_epoch:.2f}',
        ]
        if train:
            images = (self._plan.total_steps - step) * self._plan.batch_size
            left = images / max(train['images_per_s'], 1e-9)
            parts += [
                f'loss {train["loss"]:.4f}',
                f'train error {train["error"]:.2%}',
                f'{train["images_per_s"]:,.0f} img/s',
                f'ETA {duration(left)}',
            ]
        if evaluated:
            parts.append(f'error {evaluated["error"]:.2%}')
        return '  '.join(parts)


def read_lines(path: pathlib.Path) -> list[dict]:
    """Returns the lines of metrics.jsonl that are whole; [] if there is no such file."""
    lines = []
    with contextlib.suppress(FileNotFoundError), path.open(errors='replace') as file:
        for text in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                lines.append(check_line(json.loads(text)))
    return lines


def check_line(line: dict) -> dict:
    """Returns the line; raises KeyError, TypeError or ValueError if a value is missing."""
    shown = {'train': ('loss', 'error', 'images_per_s'), 'eval': ('loss', 'error')}
    for name in ('attempt', 'step', *shown[line['kind']]):
        float(line[name])
    return line


class NullMetrics:
    """Null object for processes other than process 0, which writes the metrics."""

    evals: tuple[dict, ...] = ()

    def train(self, step: int, loss: float, error: float) -> None:
        pass

    def eval(self, step: int, loss: float, error: float, errors: int) -> None:
        pass

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def start_over(self, attempt: int) -> None:
        pass

    def sync(self) -> str:
        return ''

    def close(self) -> None:
        pass
