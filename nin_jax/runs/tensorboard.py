"""TensorBoard event files."""

import os
import pathlib
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """TensorBoard's scalars, written by the caller itself.

    tensorboardX's SummaryWriter leaves that to a thread, which a full disk or a clock set back
    ends; the run would then wait for it for ever.

    Args:
      folder: made if it does not exist; the file in it gets a name of its own.
      purge_step: TensorBoard hides what earlier files say of steps from this one on.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / 'events'), f'.{os.getpid()}.{time.time_ns()}')
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to the curve of each name."""
        for name, value in values.items():
            scalar = summary.scalar(name, value)
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
