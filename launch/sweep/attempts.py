"""The points of a sweep, and the attempts at each point.

An attempt is an Optuna trial whose attribute `point` is the number of its point. A trial's state
only changes from WAITING to RUNNING to one of COMPLETE, PRUNED and FAIL. Each change is atomic in
the database, and the last states are final. So the trials are the complete record of the sweep, and
no counters are needed:

* A trial whose heartbeat stops is set to FAIL by the first process that notices. Each lost worker
  is therefore counted once.
* `claim` queues an attempt at a point that has no waiting, running or successful attempt, and asks
  Optuna for a trial. Several processes can do this at once and create duplicates. `claim` therefore
  keeps an attempt only if it is the oldest unfinished attempt of its point and none has succeeded.
  At most one attempt fulfills this at any time, so a point runs once and succeeds once.
"""

import contextlib
import time

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.space import text
from launch.sweep import study as studies

FINISHED = ('complete', 'pruned', 'diverged', 'failed')
OUTCOMES = (*FINISHED, 'running', 'waiting')
# Why an attempt is FAIL, in its attribute `end`; without the attribute, its worker was lost.
DUPLICATE, RETURNED, ERROR, GIVEN_UP = 'duplicate', 'returned', 'error', 'given up'
LOST = 'lost'
MOST_LOSSES = 20  # consecutive lost workers of a point, without progress


class Attempts:
    """The attempts of a study; `database` records their heartbeats."""

    def __init__(self, study: optuna.Study, database: optuna.storages.RDBStorage):
        self.study, self.database = study, database
        self.points: list[dict] = study.user_attrs['sweep']['points']
        self.axes = studies.space(study)
        self.study_id = database.get_study_id_from_name(study.study_name)
        self.silent_since: dict[int, float] = {}

    def by_point(self) -> list[list[FrozenTrial]]:
        """Returns the attempts of each point, oldest first."""
        found: list[list[FrozenTrial]] = [[] for _ in self.points]
        for trial in self.study.get_trials(deepcopy=False):
            if 'point' in trial.user_attrs:  # `ask` creates one without if the queue is empty
                found[trial.user_attrs['point']].append(trial)
        return found

    def claim(self, worker: str) -> optuna.Trial | None:
        """Claims an attempt; returns None if there is none, or another process was faster."""
        every = self.by_point()
        if not any(t.state == TrialState.WAITING for tries in every for t in tries):
            # One at a time, because Optuna rereads every unfinished trial.
            missing = (n for n, tries in enumerate(every) if is_missing(tries))
            number = next(missing, None)
            if number is None:
                return None
            chosen = max((t.params for t in every[number]), key=len, default={})  # by TPE
            params = {**self.points[number], **chosen}
            self.study.enqueue_trial(params, user_attrs={'point': number})
        trial = self.study.ask()
        try:
            self.beat(trial.number)
            trial.set_user_attr('worker', worker)
        except optuna.exceptions.UpdateFinishedTrialError:  # marked as lost meanwhile
            return None
        number = trial.user_attrs.get('point')
        tries = [] if number is None else self.by_point()[number]
        oldest = next((t.number for t in tries if not t.state.is_finished()), None)
        if oldest != trial.number or outcome(tries) in FINISHED:
            self.end(trial, TrialState.FAIL, end=DUPLICATE)
            return None
        return trial

    def suggest(self, trial: optuna.Trial) -> dict[str, object]:
        """Returns the attempt's point: the values queued with it, or TPE's suggestion."""
        point = {}
        for key, axis in self.axes.items():
            if axis.kind == 'choice':
                point[key] = trial.suggest_categorical(key, axis.values)
            elif axis.kind == 'integer':
                point[key] = trial.suggest_int(key, int(axis.low), int(axis.high))
            else:
                point[key] = trial.suggest_float(key, axis.low, axis.high, log=axis.is_log)
        return point

    def beat(self, number: int) -> None:
        """Records the heartbeat of an attempt."""
        trial_id = self.database.get_trial_id_from_study_id_trial_number(self.study_id, number)
        self.database.record_heartbeat(trial_id)

    def running(self) -> set[int]:
        """Returns the numbers of the running attempts."""
        states = (TrialState.RUNNING,)
        return {t.number for t in self.study.get_trials(deepcopy=False, states=states)}

    def fail_lost(self, grace: float) -> None:
        """Fails attempts whose heartbeat stopped, or that had none in their first `grace` s."""
        optuna.storages.fail_stale_trials(self.study)
        now, running = time.monotonic(), (TrialState.RUNNING,)
        silent = {
            t.number: self.silent_since.get(t.number, now)
            for t in self.study.get_trials(deepcopy=False, states=running)
            if 'worker' not in t.user_attrs
        }
        self.silent_since = silent
        for number, since in silent.items():
            if now - since > grace:
                # Another process may fail it after `tell` has read its state.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def end(
        self,
        trial: optuna.Trial,
        state: TrialState,
        error: float | None = None,
        **facts: object,
    ) -> bool:
        """Ends an attempt; returns False if another process already ended it."""
        try:
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            return self.study.tell(trial, error, state, skip_if_finished=True).state == state
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def hopeless(self, number: int, retries: int) -> str:
        """Returns why the point should not be attempted again; '' if it should.

        Only attempts since the last progress count, so pre-emptions between checkpoints do not
        accumulate. Errors and lost workers are counted separately.
        """
        furthest, ends = 0, []
        for trial in self.by_point()[number]:
            if (reached := trial.user_attrs.get('reached', 0)) > furthest:
                furthest, ends = reached, []
            if trial.state == TrialState.FAIL:
                ends.append((trial.user_attrs.get('end', LOST), trial.user_attrs.get('reason', '')))
        errors = [reason for end, reason in ends if end == ERROR]
        if len(errors) > retries:
            return f'{errors[-1]}, {len(errors)} times without progress'
        losses = sum(end == LOST for end, _ in ends)
        return f'its worker was lost {losses} times without progress' * (losses > MOST_LOSSES)


def outcome(tries: list[FrozenTrial]) -> str:
    """Returns the outcome of a point, one of OUTCOMES."""
    last = successful(tries)
    if last is not None:
        return last.user_attrs.get('outcome', last.state.name.lower())
    if any(t.user_attrs.get('end') == GIVEN_UP for t in tries):
        return 'failed'
    return 'running' if any(t.state == TrialState.RUNNING for t in tries) else 'waiting'


def is_missing(tries: list[FrozenTrial]) -> bool:
    """Whether a point needs another attempt."""
    return outcome(tries) == 'waiting' and all(t.state.is_finished() for t in tries)


def successful(tries: list[FrozenTrial]) -> FrozenTrial | None:
    """Returns the attempt with the point's result; None if there is none."""
    return next((t for t in tries if t.state in (TrialState.COMPLETE, TrialState.PRUNED)), None)


def lost(tries: list[FrozenTrial]) -> int:
    """Returns how many workers of a point were lost."""
    return sum(t.state == TrialState.FAIL and 'end' not in t.user_attrs for t in tries)


def account(every: list[list[FrozenTrial]]) -> str:
    """Formats as '24 points: 18 complete, 6 pruned; workers lost: 3, over 2 of the points'."""
    outcomes = [outcome(tries) for tries in every]
    counts = ', '.join(f'{outcomes.count(o)} {o}' for o in OUTCOMES if o in outcomes)
    losses = [n for n in map(lost, every) if n]
    line = f'{len(every)} points: {counts}'
    return line + f'; workers lost: {sum(losses)}, over {len(losses)} of the points' * bool(losses)


def best(every: list[list[FrozenTrial]]) -> FrozenTrial | None:
    """Returns the complete attempt with the lowest error; of equals, the first point's."""
    done = [t for tries in every for t in tries if t.state == TrialState.COMPLETE]
    return min(done, key=lambda t: (t.value, t.user_attrs['point']), default=None)


def best_sentence(every: list[list[FrozenTrial]]) -> str:
    trial = best(every)
    if trial is None:
        return 'no point has a result'
    point = ', '.join(f'{key}={shown(value)}' for key, value in trial.params.items())
    number = trial.user_attrs['point']
    return f'best: point {number}, validation top-1 error {trial.value:.2%}, {point}'


def shown(value: object) -> str:
    """Formats a value for display; floats have four digits."""
    return f'{value:.4g}' if isinstance(value, float) else text(value)
