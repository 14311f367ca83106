"""One worker of a sweep: takes trials one after another, each a process of experiments.main.

launch.sweep starts it; --index tells several on a machine apart.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import re
import subprocess
import sys
import time

import optuna

from experiments import cli
from experiments.space import Sweep
from launch import points, study, trials
from launch.processes import Family
from nin_jax.errors import UserError
from nin_jax.runs.interrupt import RESUME_ME

POLL_S = 0.5
TO_SAVE_S = 600.0  # a run asked to stop that takes longer is killed
FOR_LOCK_S = 600.0  # how long another process may still hold a trial's folder


def main(argv: list[str]) -> int:
    from launch import sweep

    args, overrides = sweep.parse(argv)
    try:
        page = points.load(args.sweep, overrides)
        with Family() as family, study.database_errors():
            shared = study.join(args.study, args.storage, args.grace)
            return Worker(page, shared, args, family).work()
    except study.UnreachableError as e:
        return cli.complain(str(e), status=1)  # it may come back: launch.sweep starts us again
    except UserError as e:
        return cli.complain(str(e))


@dataclasses.dataclass
class Worker:
    sweep: Sweep
    study: optuna.Study
    args: object
    family: Family

    def work(self) -> int:
        """Runs trials until the study has none left, or until asked to stop."""
        while not self.family.stop:
            for number in trials.take_back_lost(self.study, self.args.retries):
                self.say(number, 'lost its worker; back in the queue')
            trial = trials.claim(self.study)
            if trial is not None:
                self.run(trial)
            elif trials.is_over(self.study):
                return 0
            else:  # others run the last ones, and one of them may be lost yet
                time.sleep(study.beat_every(self.args.grace))
        return RESUME_ME

    def run(self, trial: optuna.Trial) -> None:
        """Runs a trial to its end, or gives it back."""
        point = trials.suggest(trial, study.space(self.study))
        folder = pathlib.Path(self.args.workdir) / f'trial-{trial.number}'
        folder.mkdir(parents=True, exist_ok=True)
        status, pruned, log = 0, False, ''
        if not self.wait_for_folder(trial, folder):
            return
        if ending(folder)['status'] not in ('done', 'diverged'):
            self.say(trial.number, ', '.join(f'{k}={trials.shown(v)}' for k, v in point.items()))
            status, pruned, log = self.train(trial, folder, point)
        ended = ending(folder)
        if not trials.still_ours(self.study, trial):
            self.say(trial.number, 'was taken over by another worker')
            return
        if resumed := re.findall(r'resuming at step ([\d,]+)', log):
            steps = trial.user_attrs.get('resumed_at', [])
            trial.set_user_attr('resumed_at', [*steps, int(resumed[-1].replace(',', ''))])
        facts = {k: ended[k] for k in ('step', 'seconds', 'reason') if k in ended}
        match ended['status']:
            case 'done':
                trials.finish(self.study, trial, 'complete', ended['final_error'], **facts)
                self.say(trial.number, f'top-1 error {ended["final_error"]:.2%}')
            case 'diverged':
                trials.finish(self.study, trial, 'diverged', **facts)
                self.say(trial.number, f'diverged: {ended["reason"]}')
            case _ if pruned:
                trials.finish(self.study, trial, 'pruned', **facts)
                self.say(trial.number, 'pruned')
            case _ if self.family.stop:
                trials.give_back(self.study, trial._trial_id)
                self.say(trial.number, 'saved, and back in the queue')
            case _ if status == cli.MISTAKE:  # every other trial would end so, too
                trials.give_back(self.study, trial._trial_id)
                raise UserError(f'trial {trial.number} did not start: {last_line(log)}')
            case _:
                reason = f'exit status {status} ({last_line(log)})'
                self.say(trial.number, f'{reason}; log in {folder}/log.txt')
                trials.give_back(self.study, trial._trial_id, reason, self.args.retries)

    def wait_for_folder(self, trial: optuna.Trial, folder: pathlib.Path) -> bool:
        """Waits until no process of a lost worker runs in the folder; False if one does not end."""
        until = time.monotonic() + FOR_LOCK_S
        with open(folder / '.lock', 'a') as f:
            while not self.family.stop:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                if not trials.still_ours(self.study, trial):
                    return False
                if time.monotonic() > until:
                    reason = f'another process is still running in {folder}'
                    trials.give_back(self.study, trial._trial_id, reason, self.args.retries)
                    return False
                time.sleep(POLL_S)
        trials.give_back(self.study, trial._trial_id)
        return False

    def train(self, trial: optuna.Trial, folder: pathlib.Path, point: dict):
        """Runs experiments.main; returns its status, whether it was pruned, and what it said."""
        command = [sys.executable, '-m', 'experiments.main', f'--config={self.sweep.config}']
        command += [f'--workdir={folder}', *points.flags(self.sweep, point)]
        with open(folder / 'log.txt', 'a+') as log:
            start = log.seek(0, 2)
            process = self.family.start(command, stdout=log, stderr=subprocess.STDOUT)
            pruned = self.watch(trial, folder, process)
            log.seek(start)
            return process.returncode, pruned, log.read()

    def watch(self, trial: optuna.Trial, folder: pathlib.Path, process: subprocess.Popen) -> bool:
        """Reports evaluations and beats the heart while the run goes; whether it was pruned."""
        before = self.study._storage.get_trial(trial._trial_id)
        known = set(before.intermediate_values)  # from a worker that was lost
        pruned, stopped_at, next_beat = False, None, 0.0
        while process.poll() is None:
            if time.monotonic() > next_beat:
                next_beat = time.monotonic() + study.beat_every(self.args.grace)
                if not trials.still_ours(self.study, trial) and stopped_at is None:
                    process.terminate()
                    stopped_at = time.monotonic()
            if self.report(trial, folder, known) and stopped_at is None and trial.should_prune():
                pruned, stopped_at = True, time.monotonic()
                process.terminate()
            if self.family.stop and stopped_at is None:  # the family has told it
                stopped_at = time.monotonic()
            if stopped_at is not None and time.monotonic() - stopped_at > TO_SAVE_S:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        self.report(trial, folder, known)
        return pruned

    def report(self, trial: optuna.Trial, folder: pathlib.Path, known: set[int]) -> bool:
        """Tells Optuna of evaluations it does not know, and adds them to `known`; if any."""
        new = {epoch: e for epoch, e in evaluations(folder).items() if epoch not in known}
        known.update(new)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # not ours any more
            for epoch, error in new.items():
                trial.report(error, epoch)
        return bool(new)

    def say(self, number: int, words: str) -> None:
        print(f'[worker {self.args.index}] trial {number}: {words}', flush=True)


def evaluations(folder: pathlib.Path) -> dict[int, float]:
    """Epoch -> top-1 error: of the run's evaluations, the first at or past each whole epoch."""
    lines = []
    with contextlib.suppress(FileNotFoundError), open(folder / 'metrics.jsonl') as f:
        for text in f:
            with contextlib.suppress(ValueError):  # a line that is just being written
                lines.append(json.loads(text))
    first = {}
    for line in lines:
        if line['kind'] == 'eval' and line['attempt'] == lines[-1]['attempt']:
            first.setdefault(int(line['epoch']), line['error'])
    return {epoch: error for epoch, error in first.items() if epoch > 0}


def ending(folder: pathlib.Path) -> dict:
    """The run's summary.json; {'status': ''} if it has none."""
    try:
        return json.loads((folder / 'summary.json').read_text())
    except FileNotFoundError:
        return {'status': ''}


def last_line(log: str) -> str:
    """What the run said last, without 'error: '."""
    return (log.strip().splitlines() or ['no output'])[-1].removeprefix('error: ')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
