"""Keeps a run going on a TPU slice: creates it, sets it up, starts the run, replaces it when lost.

`next_action` decides, from what is there now and nothing else, so that the loop can be stopped and
started anywhere; `watch` asks, decides, acts and waits.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Protocol

from launch.tpu_gcloud import GONE, READY

ENDED = (
    'exit 0',
    'exit 1',
    'exit 2',
)  # done, diverged, a mistake: the same command changes nothing


class Action(enum.Enum):
    CREATE = 'asking for the slice'
    WAIT = 'waiting for the slice'
    SETUP = 'setting it up and starting the run'
    RUN = 'starting the run again'
    LOOK_ON = 'running'
    RECREATE = 'lost; deleting it and asking for another'
    REFUSE = 'another command runs there: stop it first'
    DONE = 'done'


class Machine(Protocol):
    """One slice and its run, as `watch` sees it; every method may raise Trouble."""

    def state(self) -> str | None: ...
    def processes(self) -> list[str]: ...
    def create(self) -> None: ...
    def delete(self) -> None: ...
    def setup(self) -> None: ...
    def start(self) -> None: ...


class Trouble(Exception):
    """A command failed or took too long; the message is one line."""


def next_action(state: str | None, processes: list[str]) -> Action:
    """What to do about a slice.

    Args:
      state: of the slice; None if there is none.
      processes: the run's on each worker, as launch/tpu_run.sh tells it: 'absent', 'running',
        'busy' with another command, 'lost' or 'exit N'. Only looked at while the slice is ready.
    """
    if state is None:
        return Action.CREATE
    if state in GONE:
        return Action.RECREATE
    if state != READY:
        return Action.WAIT
    if 'busy' in processes:
        return Action.REFUSE
    if 'running' in processes:
        return Action.LOOK_ON
    if not processes or 'absent' in processes:
        return Action.SETUP
    # Workers end alike where the run itself came to an end. Unlike ends are a crash: a worker that
    # dies takes the others with it, whatever status they then end with.
    if processes[0] in ENDED and len(set(processes)) == 1:
        return Action.DONE
    return Action.RUN


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to bear with trouble. Times in seconds."""

    poll: float = 60  # between two looks
    settled: float = 600  # a run that lasted so long was no failure to start
    failures: int = 5  # in a row, without a settled run between, then give up
    idle: float = 24 * 3600  # without a running process, for whatever reason, then give up


def watch(
    machine: Machine,
    patience: Patience,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], bool],
) -> int | None:
    """Keeps at it until the run is done; its exit status, or None if stopped by `sleep`.

    A run that had ended before the first look is started again, from today's source.

    Args:
      say: told each change, in a line.
      clock: seconds, monotonic.
      sleep: waits that many seconds; true if asked to stop.

    Raises:
      Trouble: given up, as `patience` says, or another command is running there.
    """
    failures, said, last_ran, running_since, first = 0, '', clock(), None, True
    while True:
        failure = ''
        try:
            state = machine.state()
        except Trouble as e:  # most likely the network on this side: only `idle` bounds it
            say(str(e))
        else:
            try:
                processes = machine.processes() if state == READY else []
                action = next_action(state, processes)
                if first and action in (Action.DONE, Action.RUN):
                    action = Action.SETUP
                first = False
                line = f'{state or "no slice"}, {", ".join(processes) or "no run"}: {action.value}'
                if line != said:
                    say(line)
                said = line
                if action is Action.DONE:
                    return int(processes[0].split()[1])
                if action is Action.RUN or state == 'FAILED':
                    failure = line
                act(machine, action)
            except Trouble as e:
                action, failure, said = None, str(e), ''
                say(failure)
            if action is Action.REFUSE:
                raise Trouble(action.value)
            if action is Action.LOOK_ON:
                last_ran = clock()
                running_since = running_since or last_ran
                failures = 0 if last_ran - running_since >= patience.settled else failures
            else:
                running_since = None
        failures += bool(failure)
        if failures > patience.failures:
            raise Trouble(f'gave up after {failures} failures in a row, the last: {failure}')
        if clock() - last_ran > patience.idle:
            raise Trouble(f'gave up: nothing ran for {patience.idle / 3600:g} h')
        if sleep(patience.poll):
            return None


def act(machine: Machine, action: Action) -> None:
    match action:
        case Action.CREATE:
            machine.create()
        case Action.RECREATE:
            machine.delete()
            machine.create()
        case Action.SETUP:
            machine.setup()
            machine.start()
        case Action.RUN:
            machine.start()
