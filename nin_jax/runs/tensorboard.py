"""TensorBoard event files."""

import os
import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

FOLDER = 'tensorboard'  # in the folder of a run


class EventFile:
    """Writes scalars for TensorBoard, in the caller's thread.

    tensorboardX's SummaryWriter writes in a thread of its own. A full disk or a clock that is set
    back ends that thread, and the run would then wait for it forever.

    Args:
      folder: made if it does not exist; the file in it gets a unique name.
      purge_step: TensorBoard ignores what earlier files say of steps from this one on; None to
        keep everything.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / 'events'), f'.{os.getpid()}.{time.time_ns()}')
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=purge_step, session_log=start)
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a value for each name."""
        for name, value in values.items():
            scalar = summary.scalar(name, value)
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar))

    def write_image(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Adds a uint8 image with three channels."""
        image = summary.image(name, image_HWC, dataformats='HWC')
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=image))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
