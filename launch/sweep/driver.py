"""Runs the attempts of a sweep on this machine, in parallel, until every point has a result.

One driver process controls all runs of a machine. Each run is a process of experiments.main. The
drivers of several machines communicate only through the database.
"""

import argparse
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import IO

import optuna
from optuna.trial import TrialState

from experiments.space import Sweep
from launch import devices
from launch.processes import ProcessGroup
from launch.sweep import attempts, folder, points
from launch.sweep import study as studies
from launch.sweep.flags import SECRETS
from nin_jax.runs.metrics import read_lines

RESUME_ME, MISTAKE = os.EX_TEMPFAIL, 2  # exit statuses of a run, and of the sweep
POLL_S = 0.2
SAY_S = 60.0  # longest time between lines of output
TO_SAVE_S = 600.0  # longest time for a run to stop before it is killed
FOR_LOCK_S = 600.0  # longest time to wait for the run of a lost driver to leave a folder


@dataclasses.dataclass
class Run:
    """An attempt claimed by this driver."""

    trial: optuna.Trial
    point: int
    folder: pathlib.Path
    lock: IO  # held by the run itself, too
    reached: int  # step
    params: dict[str, object] = dataclasses.field(default_factory=dict)
    since: float = dataclasses.field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None
    log_start: int = 0
    reported: set[int] = dataclasses.field(default_factory=set)  # epochs
    stopped_at: float | None = None
    pruned: bool = False
    taken: bool = False  # marked as lost, and another attempt continues

    def ask_to_stop(self) -> None:
        if self.process and self.stopped_at is None:
            self.process.terminate()
            self.stopped_at = time.monotonic()


@dataclasses.dataclass
class Worker:
    """A slot for one run at a time, with its devices and cores."""

    index: int
    env: dict[str, str]
    cpus: set[int] | None
    run: Run | None = None


class Driver:
    """Assigns attempts to the workers of this machine."""

    def __init__(
        self,
        sweep: Sweep,
        args: argparse.Namespace,
        queue: attempts.Attempts,
        retry: studies.RetryPolicy,
        program: Sequence[str],
    ):
        self.sweep, self.args, self.queue, self.program = sweep, args, queue, program
        self.retry = retry
        envs = devices.environments(args.workers, args.devices, args.devices_per_trial)
        cores = [devices.cores(i, len(envs)) for i in range(len(envs))]
        self.workers = [Worker(i, env, cores[i]) for i, env in enumerate(envs)]
        self.mistake = ''  # the error that prevents every trial from starting
        self.over = False
        self.started = time.monotonic()
        self.next_beat = self.next_claim = 0.0
        self.next_line = self.started + SAY_S
        self.done = self.done_at_start = self.count_done()

    def drive(self) -> int:
        """Runs until every point has a result or a stop signal; returns the exit status."""
        with ProcessGroup() as self.group:
            self.retry.give_up = lambda: self.group.stop
            self.retry.on_outage = lambda cause: self.say(
                f'the database does not respond ({cause}); retrying while the runs continue'
            )
            try:
                while any(w.run for w in self.workers) or not (self.over or self.group.stop):
                    for worker in self.workers:
                        self.keep()
                        self.step(worker)
                    time.sleep(POLL_S)
            except studies.UnreachableError:
                self.group.end()
                self.group.wait(TO_SAVE_S)
                raise
        return RESUME_ME if self.group.stop else 0

    def keep(self) -> None:
        """Records heartbeats of this driver's attempts, and fails attempts of lost workers."""
        if (now := time.monotonic()) < self.next_beat:
            return
        self.next_beat = now + studies.beat_every(self.args.grace)
        runs = [w.run for w in self.workers if w.run]
        for run in runs:
            self.retry(self.queue.beat, run.trial.number)
        running = self.retry(self.queue.running)
        for run in runs:
            if run.trial.number not in running:
                run.taken = True
                run.ask_to_stop()
        if time.monotonic() - self.retry.recovered_at < self.args.grace:
            self.queue.silent_since.clear()  # after an outage all heartbeats are late
        else:
            self.retry(self.queue.fail_lost, self.args.grace)
        if now > self.next_line:
            steps = [f'point {r.point} at step {r.reached:,}' for r in runs]
            self.say('; '.join(steps) or 'waiting for points that run on other machines')

    def step(self, worker: Worker) -> None:
        """Advances a worker: claims, starts, watches or ends its run."""
        run = worker.run
        try:
            if run is None:
                if not (self.group.stop or self.over or time.monotonic() < self.next_claim):
                    self.claim(worker)
            elif run.process is None:
                self.start(worker, run)
            elif run.process.poll() is not None:
                self.settle(worker, run)
            else:
                self.watch(run)
        except optuna.exceptions.UpdateFinishedTrialError:
            if worker.run:
                worker.run.taken = True
                worker.run.ask_to_stop()

    def claim(self, worker: Worker) -> None:
        """Assigns an attempt to the worker, if there is one."""
        name = f'{socket.gethostname()}:{os.getpid()}/{worker.index}'
        trial = self.retry(self.queue.claim, name)
        if trial is None:
            outcomes = [attempts.outcome(tries) for tries in self.retry(self.queue.by_point)]
            self.over = all(outcome in attempts.FINISHED for outcome in outcomes)
            self.next_claim = 0.0 if 'waiting' in outcomes else time.monotonic() + 1.0
            return
        number = trial.user_attrs['point']
        where = self.args.workdir / f'trial-{number}'
        where.mkdir(parents=True, exist_ok=True)
        lock = open(where / '.trial.lock', 'a')  # noqa: SIM115
        reached = folder.step(read_lines(where / 'metrics.jsonl'))
        run = worker.run = Run(trial, number, where, lock, reached)
        self.retry(trial.set_user_attr, 'reached', run.reached)
        if reason := self.retry(self.queue.hopeless, number, self.args.retries):
            words, end = f'given up: {reason}; log in {where}/log.txt', attempts.GIVEN_UP
            self.finish(worker, run, words, TrialState.FAIL, end=end, reason=reason)
            return
        run.params = self.retry(self.queue.suggest, trial)

    def start(self, worker: Worker, run: Run) -> None:
        """Starts the run, once no process of a lost driver holds the lock of its folder."""
        if run.taken or self.group.stop:
            self.finish(worker, run, 'back in the queue', TrialState.FAIL, end=attempts.RETURNED)
        elif not folder.try_lock(run.lock):
            if time.monotonic() - run.since > FOR_LOCK_S:
                reason = f'another process is still running in {run.folder}'
                end = attempts.ERROR
                self.finish(worker, run, reason, TrialState.FAIL, end=end, reason=reason)
        elif folder.ending(run.folder)['status'] in ('done', 'diverged'):
            self.settle(worker, run)  # its driver was lost before it recorded the result
        else:
            point = ', '.join(f'{k}={attempts.shown(v)}' for k, v in run.params.items())
            self.say(point + f'; from step {run.reached:,}' * bool(run.reached), worker)
            words = [f'--config={self.sweep.config}', f'--workdir={run.folder}']
            with open(run.folder / 'log.txt', 'ab') as log:
                run.log_start = log.tell()
                run.process = self.group.start(
                    [*self.program, *words, *points.flags(self.sweep, run.params)],
                    cpus=worker.cpus,
                    env={k: v for k, v in os.environ.items() if k not in SECRETS} | worker.env,
                    pass_fds=[run.lock.fileno()],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

    def watch(self, run: Run) -> None:
        """Stops a run to be pruned, and kills one that takes too long to stop."""
        if self.report(run) and run.stopped_at is None and self.retry(run.trial.should_prune):
            run.pruned = True
            run.ask_to_stop()
        if self.group.stop and run.stopped_at is None:  # the signal was forwarded to it
            run.stopped_at = time.monotonic()
        if run.process and run.stopped_at and time.monotonic() - run.stopped_at > TO_SAVE_S:
            run.process.kill()

    def report(self, run: Run) -> bool:
        """Reports progress and new evaluations to Optuna; returns whether there were any."""
        metrics = read_lines(run.folder / 'metrics.jsonl')
        new = {k: v for k, v in folder.evaluations(metrics).items() if k not in run.reported}
        if (reached := folder.step(metrics)) > run.reached and not run.taken:
            run.reached = reached
            self.retry(run.trial.set_user_attr, 'reached', reached)
        for epoch, error in new.items():
            self.retry(run.trial.report, error, epoch)
            run.reported.add(epoch)
        return bool(new)

    def settle(self, worker: Worker, run: Run) -> None:
        """Ends the attempt of a run whose process has ended."""
        status, log = (run.process.returncode, run.folder / 'log.txt') if run.process else (0, None)
        output = log.read_bytes()[run.log_start :].decode(errors='replace') if log else ''
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.report(run)
        ended = folder.ending(run.folder)
        facts = {k: ended[k] for k in ('step', 'seconds', 'reason') if k in ended}
        if resumed := re.findall(r'resuming at step ([\d,]+)', output):
            facts['resumed_at'] = int(resumed[-1].replace(',', ''))
        state, error, last = TrialState.FAIL, None, folder.last_line(output)
        if ended['status'] == 'done':
            state, error = TrialState.COMPLETE, ended['final_error']
            words = f'top-1 error {error:.2%}'
        elif ended['status'] == 'diverged':
            # Pruned in Optuna, so that TPE avoids its neighborhood.
            state, facts['outcome'] = TrialState.PRUNED, 'diverged'
            words = f'diverged: {ended.get("reason")}'
        elif run.pruned:
            state, words = TrialState.PRUNED, 'pruned'
        elif self.group.stop:
            facts['end'], words = attempts.RETURNED, 'saved, and back in the queue'
        elif status == MISTAKE:  # every other trial would fail the same way
            facts['end'], words = attempts.RETURNED, 'back in the queue'
            self.mistake = f'trial {run.point} did not start: {last}'
            self.group.end()
        else:
            facts |= {'end': attempts.ERROR, 'reason': f'exit status {status} ({last})'}
            words = f'{facts["reason"]}; log in {log}'
        self.finish(worker, run, words, state, error, **facts)

    def finish(
        self,
        worker: Worker,
        run: Run,
        words: str,
        state: TrialState,
        error: float | None = None,
        **facts: object,
    ) -> None:
        """Ends an attempt and prints its outcome."""
        ours = not run.taken and self.retry(self.queue.end, run.trial, state, error, **facts)
        self.done = self.count_done()
        self.say(words if ours else 'was taken over', worker)
        run.lock.close()
        worker.run, self.next_claim = None, 0.0

    def count_done(self) -> int:
        outcomes = map(attempts.outcome, self.retry(self.queue.by_point))
        return sum(outcome in attempts.FINISHED for outcome in outcomes)

    def say(self, words: str, worker: Worker | None = None) -> None:
        """Prints a line with the time, the sweep's progress and its ETA."""
        who = f'worker {worker.index}, point {worker.run.point}: ' if worker and worker.run else ''
        total, ended, eta = len(self.queue.points), self.done - self.done_at_start, ''
        if ended and self.done < total:
            seconds = (time.monotonic() - self.started) / ended * (total - self.done)
            eta = f', ETA {datetime.timedelta(seconds=round(seconds))}'
        print(f'{time.strftime("%H:%M:%S")} [{self.done}/{total}{eta}] {who}{words}', flush=True)
        self.next_line = time.monotonic() + SAY_S
