"""Progress bars on stderr, and suppression of absl's warnings."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar('T')


def track(items: Iterable[T], text: str, total: int | None = None) -> Iterator[T]:
    """Yields the items with a progress bar; silent unless stderr is a terminal.

    Args:
      items: items to iterate over.
      text: label of the progress bar, such as 'scoring'.
      total: number of items, if `items` has no length.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn('{task.description}'),
        BarColumn(24),
        TextColumn('{task.percentage:>3.0f}%'),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # stdout may be a pipe while stderr is a terminal
        disable=not console.is_terminal,
    ) as progress:
        yield from progress.track(items, total, description=text)


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """Hides the warnings that Orbax and TFDS log through absl; their errors are raised anyway."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
