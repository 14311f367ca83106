"""Progress on the console."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nin_jax import distributed


def warn(text: str) -> None:
    """Prints a warning on stderr, on process 0 only."""
    if distributed.is_first():
        print(f'warning: {text}', file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Formats seconds as '0:42', '12:05' or '1:02:03'."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02}:{s:02}' if hours else f'{m}:{s:02}'


class ProgressDisplay:
    """A progress bar on a terminal; otherwise a line every ten seconds and per evaluation."""

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
