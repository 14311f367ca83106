"""Runs the attempts of a sweep on this machine, several at a time, until every point has a result.

One process drives all runs of a machine, each a process of experiments.main. Several machines may
do so at once; they meet in the database only.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import re
import shlex
import socket
import subprocess
import time
from typing import IO

import optuna
from optuna.trial import TrialState

from experiments.space import Sweep
from launch import devices
from launch.processes import Family
from launch.sweep import attempts, folder, points
from launch.sweep import study as studies
from launch.sweep.flags import SECRETS

RESUME_ME, MISTAKE = os.EX_TEMPFAIL, 2  # exit statuses of a run, and of the sweep
POLL_S = 0.2
SAY_S = 60.0  # between lines of progress when nothing else is printed
TO_SAVE_S = 600.0  # a run asked to stop that takes longer is killed
FOR_LOCK_S = 600.0  # how long the run of a lost driver may still hold a point's folder


@dataclasses.dataclass
class Run:
    """An attempt that this driver has claimed."""

    trial: optuna.Trial
    point: int
    params: dict[str, object]
    folder: pathlib.Path
    lock: IO
    since: float = dataclasses.field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None
    log: IO | None = None
    log_start: int = 0
    reached: int = 0
    reported: set[int] = dataclasses.field(default_factory=set)
    stopped_at: float | None = None
    pruned: bool = False
    taken: bool = False  # it was called lost, and another attempt goes on


@dataclasses.dataclass
class Worker:
    """A place for one run at a time: its devices and cores."""

    index: int
    env: dict[str, str]
    cpus: set[int] | None
    run: Run | None = None


class Driver:
    """Keeps the workers busy."""

    def __init__(
        self,
        sweep: Sweep,
        args: argparse.Namespace,
        queue: attempts.Attempts,
        patiently: studies.Patience,
        program: list[str],
    ):
        self.sweep, self.args, self.queue, self.program = sweep, args, queue, program
        self.patiently = patiently
        environments = devices.environments(args.workers, args.devices, args.devices_per_trial)
        self.workers = [
            Worker(i, env, devices.cores(i, len(environments)))
            for i, env in enumerate(environments)
        ]
        self.mistake = ''  # what keeps every trial from starting
        self.over = False
        self.next_beat = self.next_claim = 0.0
        self.next_line = time.monotonic() + SAY_S
        self.started = time.monotonic()
        self.done = self.done_at_start = self.count_done()

    def drive(self) -> int:
        """Runs until every point has its result or a request to stop; returns the exit status."""
        with Family() as self.family:
            self.patiently.give_up = lambda: self.family.stop
            self.patiently.on_outage = lambda cause: self.say(
                f'the database does not answer ({cause}); runs go on, trying again'
            )
            try:
                while any(w.run for w in self.workers) or not (self.over or self.family.stop):
                    self.keep()
                    for worker in self.workers:
                        self.step(worker)
                    time.sleep(POLL_S)
            except studies.UnreachableError:
                self.family.end()
                self.wait_for_runs()
                raise
        return RESUME_ME if self.family.stop else 0

    def wait_for_runs(self) -> None:
        """Lets the runs save, without the database."""
        until = time.monotonic() + TO_SAVE_S
        for worker in self.workers:
            if worker.run and worker.run.process:
                try:
                    worker.run.process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    worker.run.process.kill()

    # ---- the database ----

    def keep(self) -> None:
        """Beats the hearts of our attempts and looks for those of others that stopped."""
        if time.monotonic() < self.next_beat:
            return
        self.next_beat = time.monotonic() + studies.beat_every(self.args.grace)
        runs = [w.run for w in self.workers if w.run]
        for run in runs:
            self.patiently(self.queue.beat, run.trial.number)
            if (reached := folder.step(folder.lines(run.folder))) > run.reached:
                run.reached = reached
                self.attribute(run, reached=reached)
        running = self.patiently(self.queue.running)
        for run in runs:
            if run.trial.number not in running and not run.taken:
                run.taken = True
                self.ask_to_stop(run)
        if time.monotonic() - self.patiently.recovered_at < self.args.grace:
            self.queue.silent_since.clear()  # after an outage all hearts are late
        else:
            self.patiently(self.queue.fail_lost, self.args.grace)
        if time.monotonic() > self.next_line:
            steps = [f'point {r.point} at step {r.reached:,}' for r in runs]
            self.say('; '.join(steps) or 'waiting for the points that other machines run')

    def attribute(self, run: Run, **facts: object) -> None:
        """Records facts of an attempt, unless it is not ours any more."""
        try:
            for name, value in facts.items():
                self.patiently(run.trial.set_user_attr, name, value)
        except optuna.exceptions.UpdateFinishedTrialError:
            run.taken = True

    def claim(self, worker: Worker) -> Run | None:
        """Takes an attempt; None, for a while, if there is none."""
        if time.monotonic() < self.next_claim:
            return None
        self.patiently(self.queue.add_missing)
        name = f'{socket.gethostname()}:{os.getpid()}/{worker.index}'
        trial = self.patiently(self.queue.claim, name)
        if trial is None:
            every = self.patiently(self.queue.by_point)
            outcomes = [attempts.outcome(tries) for tries in every]
            self.over = all(o in attempts.FINISHED for o in outcomes)
            if 'waiting' not in outcomes:
                self.next_claim = time.monotonic() + 1.0
            return None
        number = trial.user_attrs['point']
        where = self.args.workdir / f'trial-{number}'
        where.mkdir(parents=True, exist_ok=True)
        run = Run(trial, number, {}, where, open(where / '.trial.lock', 'a'))  # noqa: SIM115
        run.reached = folder.step(folder.lines(where))
        self.attribute(run, reached=run.reached)
        if reason := self.patiently(self.queue.hopeless, number, self.args.retries):
            return self.finish(
                *(run, worker, f'given up: {reason}; log in {where}/log.txt', TrialState.FAIL),
                **dict(end=attempts.GIVEN_UP, reason=reason),
            )
        try:
            run.params = self.patiently(self.queue.suggest, trial)
        except optuna.exceptions.UpdateFinishedTrialError:
            run.taken = True
        return run

    def finish(
        self,
        run: Run,
        worker: Worker,
        words: str,
        state: TrialState,
        error: float | None = None,
        **facts: object,
    ) -> None:
        """Ends an attempt and says so."""
        ours = not run.taken and self.patiently(self.queue.end, run.trial, state, error, **facts)
        self.say(words if ours else 'was taken over', worker, run)
        run.lock.close()
        worker.run, self.next_claim = None, 0.0

    # ---- a run ----

    def step(self, worker: Worker) -> None:
        """Does what is next for a worker."""
        run = worker.run
        if run is None:
            if not self.family.stop and not self.over:
                worker.run = self.claim(worker)
        elif run.process is None:
            self.start(worker, run)
        elif run.process.poll() is not None:
            self.settle(worker, run)
        else:
            self.watch(run)

    def start(self, worker: Worker, run: Run) -> None:
        """Starts the run, once no process of a lost driver is in its folder."""
        if run.taken or self.family.stop:
            self.finish(run, worker, 'back in the queue', TrialState.FAIL, end=attempts.RETURNED)
        elif folder.try_lock(run.lock):
            if folder.ending(run.folder)['status'] in ('done', 'diverged'):
                self.settle(worker, run)  # its driver was lost before it could say so
                return
            point = ', '.join(f'{k}={attempts.shown(v)}' for k, v in run.params.items())
            self.say(point + f'; from step {run.reached:,}' * bool(run.reached), worker, run)
            run.log = open(run.folder / 'log.txt', 'a+')  # noqa: SIM115
            run.log_start = run.log.seek(0, 2)
            words = [f'--config={self.sweep.config}', f'--workdir={run.folder}']
            run.process = self.family.start(
                [*self.program, *words, *points.flags(self.sweep, run.params)],
                cpus=worker.cpus,
                env={k: v for k, v in os.environ.items() if k not in SECRETS} | worker.env,
                pass_fds=[run.lock.fileno()],
                stdout=run.log,
                stderr=subprocess.STDOUT,
            )
        elif time.monotonic() - run.since > FOR_LOCK_S:
            reason = f'another process is still running in {run.folder}'
            self.finish(run, worker, reason, TrialState.FAIL, end=attempts.ERROR, reason=reason)

    def watch(self, run: Run) -> None:
        """Reports evaluations; stops a run that is not worth going on."""
        if self.report(run) and run.stopped_at is None and self.patiently(run.trial.should_prune):
            run.pruned = True
            self.ask_to_stop(run)
        if self.family.stop and run.stopped_at is None:  # the family has asked it
            run.stopped_at = time.monotonic()
        if run.stopped_at is not None and time.monotonic() - run.stopped_at > TO_SAVE_S:
            run.process.kill()

    def ask_to_stop(self, run: Run) -> None:
        if run.process and run.stopped_at is None:
            run.process.terminate()
            run.stopped_at = time.monotonic()

    def report(self, run: Run) -> bool:
        """Tells Optuna of new evaluations; whether there were any."""
        found = folder.evaluations(folder.lines(run.folder))
        new = {epoch: error for epoch, error in found.items() if epoch not in run.reported}
        try:
            for epoch, error in new.items():
                self.patiently(run.trial.report, error, epoch)
                run.reported.add(epoch)
        except optuna.exceptions.UpdateFinishedTrialError:
            run.taken = True
            self.ask_to_stop(run)
            return False
        return bool(new)

    def settle(self, worker: Worker, run: Run) -> None:
        """Ends the attempt of a run that has ended."""
        log, status = '', run.process.returncode if run.process else 0
        if run.log:
            run.log.seek(run.log_start)
            log = run.log.read()
            run.log.close()
        self.report(run)
        ended = folder.ending(run.folder)
        facts = {k: ended[k] for k in ('step', 'seconds', 'reason') if k in ended}
        if resumed := re.findall(r'resuming at step ([\d,]+)', log):
            facts['resumed_at'] = int(resumed[-1].replace(',', ''))
        fail = TrialState.FAIL
        match ended['status']:
            case 'done':
                error = ended['final_error']
                words = f'top-1 error {error:.2%}'
                self.finish(run, worker, words, TrialState.COMPLETE, error, **facts)
            case 'diverged':
                # Optuna knows it as pruned, so that TPE avoids its neighbourhood
                words, facts['outcome'] = f'diverged: {ended.get("reason")}', 'diverged'
                self.finish(run, worker, words, TrialState.PRUNED, **facts)
            case _ if run.pruned:
                self.finish(run, worker, 'pruned', TrialState.PRUNED, **facts)
            case _ if self.family.stop:
                words = 'saved, and back in the queue'
                self.finish(run, worker, words, fail, end=attempts.RETURNED, **facts)
            case _ if status == MISTAKE:  # every other trial would end so, too
                self.mistake = f'trial {run.point} did not start: {folder.last_line(log)}'
                words = 'back in the queue'
                self.finish(run, worker, words, fail, end=attempts.RETURNED)
                self.family.end()
            case _:
                facts['reason'] = f'exit status {status} ({folder.last_line(log)})'
                words = f'{facts["reason"]}; log in {run.folder}/log.txt'
                self.finish(run, worker, words, fail, end=attempts.ERROR, **facts)

    # ---- what is printed ----

    def count_done(self) -> int:
        every = self.patiently(self.queue.by_point)
        return sum(attempts.outcome(tries) in attempts.FINISHED for tries in every)

    def say(self, words: str, worker: Worker | None = None, run: Run | None = None) -> None:
        """Prints a line with the time, how far the sweep is, and when it should be done."""
        if run:
            self.done = self.count_done()
        who = f'worker {worker.index}, point {run.point}: ' if worker and run else ''
        total, ended = len(self.queue.points), self.done - self.done_at_start
        eta = ''
        if ended and self.done < total:
            seconds = (time.monotonic() - self.started) / ended * (total - self.done)
            eta = f', ETA {datetime.timedelta(seconds=round(seconds))}'
        print(f'{time.strftime("%H:%M:%S")} [{self.done}/{total}{eta}] {who}{words}', flush=True)
        self.next_line = time.monotonic() + SAY_S


def closing(args: argparse.Namespace, every: list) -> str:
    """The best point, and how to see the others."""
    dashboard = args.storage.shown.replace('postgresql://', 'postgresql+psycopg://', 1)
    return (
        f'{attempts.best_sentence(every)}\n'
        f'python -m launch.sweep report {shlex.join(args.where)}\n'
        f'optuna-dashboard {shlex.quote(dashboard)}  # pip install optuna-dashboard'
    )
