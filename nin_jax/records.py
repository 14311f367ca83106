"""What a run leaves behind: metrics.jsonl, TensorBoard event files, summary.json, and the console.

metrics.jsonl gets one line a call ('train') and one an evaluation ('eval'), written through at
once. A resumed run first drops the lines past its checkpoint, so that there is neither a gap nor a
duplicate however often it was killed.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tensorboardX import SummaryWriter


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes a file that is there whole or not at all, whenever the process is killed."""
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'w') as f:
        f.write(json.dumps(value, indent=2) + '\n')
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


class Stopwatch:
    """Seconds spent in each part of a run, counted on over restarts."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict(seconds or {})

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


class Records:
    """Writes one run's metrics and shows them.

    Args:
      workdir: the run's folder; it must exist.
      total_steps: where the run ends.
      batch_size: images a step, for images a second.
      steps_per_epoch: for the epoch shown beside a step.
      first: (attempt, step) of the state that the run goes on from; (0, 0) for a new run.
      clock: its 'train' seconds give images a second.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        total_steps: int,
        batch_size: int,
        steps_per_epoch: float,
        first: tuple[int, int],
        clock: Stopwatch,
    ):
        self._total_steps, self._batch_size = total_steps, batch_size
        self._steps_per_epoch = steps_per_epoch
        self._path = workdir / 'metrics.jsonl'
        self.lines = _lines_up_to(self._path, first)
        if self._path.exists():
            temporary = self._path.with_suffix('.tmp')
            temporary.write_text(''.join(json.dumps(line) + '\n' for line in self.lines))
            os.replace(temporary, self._path)
        self._file = open(self._path, 'a', buffering=1)  # noqa: SIM115 - closed in __exit__
        self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=first[1])
        self._attempt, self._last_step = first
        self._clock, self._last_seconds = clock, clock.seconds.get('train', 0.0)
        self._console = Live(total_steps)
        self._shown = {line['kind']: line for line in self.lines}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._console.close()
        self._tensorboard.close()
        self._file.close()

    def train(self, step: int, loss: float, error: float) -> None:
        """Records a call that ended at `step`; loss and error are its means."""
        seconds = self._clock.seconds['train']
        rate = (step - self._last_step) * self._batch_size / max(seconds - self._last_seconds, 1e-9)
        self._last_step, self._last_seconds = step, seconds
        self._write('train', step, loss=loss, error=error, images_per_s=round(rate, 1))

    def eval(self, step: int, loss: float, error: float, errors: int) -> None:
        """Records an evaluation: mean loss, top-1 error, and the count of errors."""
        self._write('eval', step, loss=loss, error=error, errors=errors)

    def note(self, text: str) -> None:
        """One sentence for the person watching."""
        self._console.print(text)

    def sync(self) -> None:
        """Brings the lines to the disk, or the bucket, so that a checkpoint never outlives them."""
        os.fsync(self._file.fileno())

    def start_over(self, attempt: int) -> None:
        """The run begins again at step 0 with new weights; its earlier lines stay in the file."""
        self._attempt, self._last_step = attempt, 0

    def _write(self, kind: str, step: int, **values: float) -> None:
        line = {
            'kind': kind,
            'attempt': self._attempt,
            'step': step,
            'epoch': round(step / self._steps_per_epoch, 4),
            **values,
        }
        self.lines.append(line)
        self._shown[kind] = line
        self._file.write(json.dumps(line) + '\n')
        for name, value in values.items():
            self._tensorboard.add_scalar(f'{kind}/{name}', value, step)
        self._console.show(step, self._text(step), milestone=kind == 'eval')

    def _text(self, step: int) -> str:
        train, evaluated = self._shown.get('train'), self._shown.get('eval')
        parts = [
            f'step {step:,}/{self._total_steps:,}',
            f'epoch {step / self._steps_per_epoch:.2f}',
        ]
        if train:
            left = (self._total_steps - step) * self._batch_size / max(train['images_per_s'], 1e-9)
            parts += [
                f'loss {train["loss"]:.4f}',
                f'train error {train["error"]:.2%}',
                f'{train["images_per_s"]:,.0f} img/s',
                f'ETA {duration(left)}',
            ]
        if evaluated:
            parts.append(f'error {evaluated["error"]:.2%}')
        return '  '.join(parts)


class Silence:
    """Records of a process that leaves none, as another one of its run does."""

    lines: tuple[dict, ...] = ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def train(self, *_):
        pass

    eval = note = sync = start_over = train


def _lines_up_to(path: pathlib.Path, first: tuple[int, int]) -> list[dict]:
    """The file's lines up to (attempt, step); a line cut short by a kill is dropped."""
    lines = []
    if path.exists() and first != (0, 0):
        for text in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line['attempt'] < first[0] or (line['attempt'], line['step']) <= first:
                    lines.append(line)
    return lines


def duration(seconds: float) -> str:
    """'0:42', '12:05' or '1:02:03'."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02}:{s:02}' if hours else f'{m}:{s:02}'


class Live:
    """A progress line that renews itself on a terminal; elsewhere, a line now and then."""

    LINE_EVERY_S = 10.0

    def __init__(self, total_steps: int):
        self._progress, self._last_line = None, time.perf_counter()
        self._console = Console(stderr=False, highlight=False, soft_wrap=True)
        if sys.stdout.isatty():
            self._progress = Progress(
                BarColumn(24),
                TextColumn('{task.description}'),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task('compiling...', total=total_steps)

    def show(self, step: int, text: str, milestone: bool) -> None:
        if self._progress:
            self._progress.update(self._task, completed=step, description=text)
        if milestone or (
            not self._progress and time.perf_counter() - self._last_line > self.LINE_EVERY_S
        ):
            self._last_line = time.perf_counter()
            self.print(text)

    def print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
