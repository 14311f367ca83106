"""One TPU slice: runs the backend's commands, here and on its VMs, and reads their answers."""

import argparse
import os
import pathlib
import shlex
import subprocess

from launch import tpu_gcloud as cloud
from launch.tpu_watch import Trouble
from nin_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
LOGS = pathlib.Path('build', 'launch')  # under ROOT: bundles, and what the commands of `up` print
ON_VM = 'bash nin_jax/launch/tpu_run.sh'
MINUTE = 60


class Machine:
    """One slice: the backend's commands, run one after another, each for a bounded time.

    Args:
      slice_: which.
      args: the flags.
      log: file for what the commands print; None for the terminal.
    """

    def __init__(self, slice_: cloud.Slice, args: argparse.Namespace, log: pathlib.Path | None):
        self.slice, self.args, self.log = slice_, args, log

    def call(self, words: list[str], minutes: float, ask: bool = False) -> str:
        """Runs a command; returns what it printed if `ask`. Raises Trouble if it fails."""
        if self.args.dry_run:
            print(shlex.join(words))
            return ''
        name = shlex.join(words[:6])
        try:
            with open(self.log or os.devnull, 'a') as log:
                shown = None if self.log is None else log
                done = subprocess.run(
                    words,
                    cwd=ROOT,
                    stdout=subprocess.PIPE if ask else shown,
                    stderr=subprocess.PIPE if ask else shown,
                    stdin=subprocess.DEVNULL,
                    text=True,
                    timeout=minutes * MINUTE,
                )
        except FileNotFoundError:
            raise UserError(f"'{words[0]}' is not installed here: see launch/README.md") from None
        except subprocess.TimeoutExpired:
            raise Trouble(f'{name} took more than {minutes:g} min') from None
        if done.returncode:
            said = (done.stderr or '').strip().splitlines() if ask else []
            if ask and cloud.is_missing(done.stderr):
                return 'NOT_FOUND'
            where = f': {said[-1]}' if said else f'; see {self.log}' if self.log else ''
            raise Trouble(f'{name} ended with status {done.returncode}{where}')
        return done.stdout or ''

    def state(self) -> str | None:
        queue = self.call(cloud.queue_state(self.slice), 2, ask=True).strip()
        if queue == 'NOT_FOUND':
            return None
        node = ''
        if queue == cloud.READY or self.args.dry_run:
            node = self.call(cloud.node_state(self.slice), 2, ask=True).strip()
        return cloud.overall_state(queue, node)

    def processes(self) -> list[str]:
        """The command's state on every worker, in no particular order."""
        words = shlex.join(['status', *self.args.command])
        command = f'{ON_VM} {words} 2>/dev/null || echo nin_run: absent'
        lines = self.call(cloud.shell(self.slice, command), 5, ask=True).splitlines()
        return [line.removeprefix('nin_run: ') for line in lines if line.startswith('nin_run: ')]

    def create(self) -> None:
        self.call(cloud.create(self.slice), 10)

    def delete(self) -> None:
        self.call(cloud.delete(self.slice), 30)

    def setup(self) -> None:
        bundle = bundle_of(self.args.name)
        self.call(cloud.copy(self.slice, [str(bundle), 'launch/tpu_setup.sh']), 10)
        words = ['bash', 'tpu_setup.sh', bundle.name, self.args.bucket, *self.args.data]
        self.call(cloud.shell(self.slice, shlex.join(words)), 60)

    def start(self) -> None:
        self.call(cloud.shell(self.slice, f'{ON_VM} start {shlex.join(self.args.command)}'), 5)

    def status(self) -> None:
        state = self.state()
        processes = self.processes() if state == cloud.READY or self.args.dry_run else []
        if not self.args.dry_run:
            print(f'{self.slice.name}: ' + ', '.join([state or 'no such slice', *processes]))

    def logs(self) -> None:
        tail = 'tail -n 200 -F nin_run/log'
        self.call(cloud.shell(self.slice, tail, self.args.worker), 24 * 60)

    def stop(self) -> None:
        self.call(cloud.shell(self.slice, f'{ON_VM} stop'), 5)


def bundle_of(name: str) -> pathlib.Path:
    return LOGS / f'{name}.bundle'


def make_bundle(args: argparse.Namespace) -> None:
    """Packs this commit, with its history, so that runs on the VM can tell the commit they are of.

    `up` packs once, at its start: a slice that replaces another gets the same source.
    """
    words = ['git', 'bundle', 'create', '--quiet', str(bundle_of(args.name)), 'HEAD']
    if args.dry_run:
        print(shlex.join(words))
        return
    changed = git('status', '--porcelain', '--untracked-files=no').split()
    if changed:
        raise UserError(
            f"'{changed[1]}' is changed: commit it, the TPU gets the source of a commit"
        )
    (ROOT / bundle_of(args.name)).parent.mkdir(parents=True, exist_ok=True)
    git(*words[1:])


def git(*words: str) -> str:
    try:
        done = subprocess.run(
            ['git', *words], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as e:
        said = (getattr(e, 'stderr', '') or str(e)).strip().splitlines()[-1]
        raise UserError(f'git {words[0]} failed ({said}): run it in a git checkout') from None
    return done.stdout
