"""launch/clusters/slurm.sbatch: with stand-ins for SLURM, and on a real SLURM on this machine."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests.helpers import ROOT, TINY_PAGE, summary, wait_until
from tests.stand_ins import BASH, on_path

SCRIPT = ROOT / 'launch' / 'clusters' / 'slurm.sbatch'

# Starts two tasks as srun would, and ends with the higher status of theirs.
SRUN = r"""
echo "$@" >>"$OUT/srun_said"
trap 'echo TERM >>"$OUT/srun_said"; exit 9' TERM
while [[ $1 == --* ]]; do shift; done
worst=0 pids=()
for i in 0 1; do SLURM_PROCID=$i "$@" & pids+=($!); echo $! >"$OUT/wrapper$i"; done
for pid in "${pids[@]}"; do wait "$pid"; s=$?; (( s > worst )) && worst=$s; done
exit "$worst"
"""
SCONTROL = r"""
if [ "$1" = show ]; then exec echo "   JobState=$STATE Reason=None"; fi
echo "$@" >>"$OUT/scontrol_said"
"""
# `python`: launch.attempts is the real one; training ends as $STATUSES says.
PYTHON = rf"""
if [ "$2" = launch.attempts ]; then PYTHONPATH={ROOT} exec {sys.executable} "$@"; fi
trap 'touch "$OUT/stopped$SLURM_PROCID"' TERM
printf '%s,' "$@" >"$OUT/task$SLURM_PROCID"
echo $$ >"$OUT/child$SLURM_PROCID"
if [ -n "$SLEEP" ]; then while [ ! -e "$OUT/stopped$SLURM_PROCID" ]; do sleep 0.05; done; fi
exit "$(cut -d' ' -f$((SLURM_PROCID + 1)) <<<"$STATUSES")"
"""


def sbatch(
    folder: pathlib.Path, statuses: str, sleep: str = '', state: str = 'RUNNING'
) -> subprocess.Popen:
    env = on_path(folder, srun=SRUN, scontrol=SCONTROL, python=PYTHON)
    env |= {'SLURM_JOB_ID': '42', 'STATUSES': statuses, 'SLEEP': sleep, 'STATE': state}
    words = ['--config=a page', f'--workdir={folder}/run']
    return subprocess.Popen([BASH, SCRIPT, *words], cwd=folder, env=env, stderr=subprocess.PIPE)


def requeued(folder: pathlib.Path) -> int:
    """How often; forgets it."""
    said = folder / 'scontrol_said'
    lines = said.read_text().splitlines() if said.exists() else []
    said.unlink(missing_ok=True)
    assert set(lines) <= {'requeue 42'}
    return len(lines)


@pytest.mark.parametrize(
    'statuses, status, again',
    [
        ('0 0', 0, False),
        ('1 1', 1, False),
        ('2 2', 2, False),
        ('75 75', 75, True),
        ('75 0', 75, True),
        ('134 75', 134, True),  # the runtime aborted one
        ('75 137', 137, True),  # one was killed, for its memory or as it hung
        ('143 143', 143, True),
        ('75 1', 75, False),  # the first lost the second, which failed by itself
        ('2 137', 137, False),
        ('139 75', 139, False),
    ],
)
def test_what_a_rerun_can_cure_is_requeued(tmp_path, statuses, status, again):
    assert sbatch(tmp_path, statuses).wait(timeout=20) == status
    assert requeued(tmp_path) == again
    words = f'-m,experiments.main,--config=a page,--workdir={tmp_path}/run,--distributed=auto,'
    assert [(tmp_path / f'task{i}').read_text() for i in range(2)] == [words] * 2
    assert not list(tmp_path.glob('*.failed'))


@pytest.mark.parametrize('state', ['CANCELLED', 'COMPLETING', 'TIMEOUT', ''])
def test_a_cancelled_job_is_not_requeued(tmp_path, state):
    assert sbatch(tmp_path, '75 75', state=state).wait(timeout=20) == 75
    assert not requeued(tmp_path)


def test_requeues_without_progress_are_capped(tmp_path):
    for step in (10, 20):
        (tmp_path / 'run' / 'checkpoints' / str(step)).mkdir(parents=True)
        for _ in range(10):
            assert sbatch(tmp_path, '75 75').wait(timeout=20) == 75
        assert requeued(tmp_path) == 10
    (tmp_path / 'task0').unlink()
    process = sbatch(tmp_path, '75 75')
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2 and b'error: ' in err and b'step 20' in err
    assert not requeued(tmp_path) and not (tmp_path / 'task0').exists()


def test_term_reaches_each_task_once(tmp_path):
    """SLURM signals the tasks' processes; a pre-empted job's shell gets a TERM as well."""
    process = sbatch(tmp_path, '75 75', sleep='yes')
    files = [tmp_path / f'{name}{i}' for name in ('wrapper', 'child') for i in range(2)]
    wait_until(lambda: all(f.exists() for f in files))
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None and not list(tmp_path.glob('stopped*'))
    for file in files:
        os.kill(int(file.read_text()), signal.SIGTERM)
    assert process.wait(timeout=10) == 75 and requeued(tmp_path) == 1


def test_options():
    text = SCRIPT.read_text()
    first_command = text.index('set -uo')
    assert text.rindex('#SBATCH --') < first_command  # SLURM reads none after the first command
    options = {}
    for name, value in re.findall(r'^#SBATCH --([a-z-]+)=?(.*)$', text, re.MULTILINE):
        options[name] = value
    assert options['ntasks-per-node'] == options['gpus-per-node']
    assert options['signal'] == 'TERM@120'  # to the tasks; B: would mean the shell alone
    assert options['requeue'] == '' and options['open-mode'] == 'append'


# --- a real SLURM: slurmctld and slurmd of Debian's slurm-wlm on loopback, one node, two "GPUs"

CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A cluster of one node; its jobs run in `folder`, which holds this checkout."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        host = socket.gethostname().split('.')[0]
        (folder / 'slurm.conf').write_text(CONF.format(host=host, folder=folder, ports=ports()))
        (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-1]\n')
        for name in ('gpu0', 'gpu1'):
            (folder / name).touch()
        (folder / 'bin').mkdir()
        self.env = on_path(folder / 'bin')
        self.env |= {'SLURM_CONF': str(folder / 'slurm.conf'), 'JAX_PLATFORMS': 'cpu'}
        self.env['PYTHONPATH'] = f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'
        self.daemons = []
        for name in ('slurmctld', 'slurmd'):
            with open(folder / f'{name}.log', 'w') as log:
                words = [name, '-D', *(['-N', host] if name == 'slurmd' else [])]
                self.daemons.append(subprocess.Popen(words, env=self.env, stdout=log, stderr=log))
        self.until(lambda: 'idle' in self.said('sinfo', '-h'), 30)

    def close(self) -> None:
        self.said('scancel', '--user=root')
        for process in reversed(self.daemons):
            process.terminate()
            process.wait(timeout=30)

    def said(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=self.folder, capture_output=True, text=True)
        return done.stdout

    def submit(self, *flags: str, options: tuple = ()) -> str:
        words = ['--parsable', '--ntasks-per-node=2', '--gpus-per-node=2', '--cpus-per-task=1']
        return self.said('sbatch', *words, *options, str(SCRIPT), *flags).strip()

    def field(self, job: str, name: str) -> str:
        match = re.search(rf'\b{name}=(\S+)', self.said('scontrol', 'show', 'job', job))
        return match[1] if match else ''

    def finish(self, job: str, seconds: float = 120) -> str:
        """Waits for the job's end without the two minutes before each requeued start."""

        def ended() -> bool:
            if self.field(job, 'JobState') == 'PENDING':
                time.sleep(3)  # slurmd refuses a start within a second of the last one's end
                self.said('scontrol', 'update', f'jobid={job}', 'starttime=now')
            if int(self.field(job, 'Restarts')) < self.log(job).count('requeueing job'):
                return False  # it shows as FAILED for a moment
            return self.field(job, 'JobState') in ('COMPLETED', 'FAILED', 'CANCELLED')

        self.until(ended, seconds)
        return self.log(job)

    def log(self, job: str) -> str:
        file = self.folder / f'nin-{job}.log'
        return file.read_text() if file.exists() else ''

    def until(self, what, seconds: float) -> None:
        def queue() -> str:
            return self.said('squeue') + self.said('sinfo', '-l')

        wait_until(what, seconds, said=queue, pause_s=0.3)


def ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    try:
        for s in sockets:
            s.bind(('127.0.0.1', 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@pytest.fixture
def slurm(tmp_path):
    if not shutil.which('slurmctld') or not shutil.which('slurmd') or os.geteuid():
        pytest.skip("needs root and Debian's slurm-wlm")
    slurm = Slurm(tmp_path)
    yield slurm
    slurm.close()


# Ends as the plan says for each start of the job and each of its tasks.
STAND_IN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
start, task = int(os.environ.get('SLURM_RESTART_COUNT', '0')), int(os.environ['SLURM_PROCID'])
status = eval(os.environ['PLAN'])[start][task]
print('start', start, 'task', task, 'ends with', status, flush=True)
if status == 75:
    time.sleep(1)
if status == 'waits':
    time.sleep(600)
if status in (134, 137, 143):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), status - 128)
sys.exit(status)
"""


def stand_in(slurm: Slurm, plan: Sequence[tuple[int | str, int | str]]) -> None:
    for file, text in {
        'experiments/main.py': STAND_IN,
        'launch/attempts.py': (ROOT / 'launch' / 'attempts.py').read_text(),
    }.items():
        (slurm.folder / file).parent.mkdir(exist_ok=True)
        (slurm.folder / file).write_text(text)
    slurm.env |= {'PLAN': repr(plan), 'PYTHONPATH': ''}


@pytest.mark.slow
@pytest.mark.processes
def test_a_real_slurm_requeues(slurm):
    stand_in(slurm, [(75, 75), (134, 75), (75, 137), (143, 75), (0, 0)])
    job = slurm.submit('--workdir=run')
    log = slurm.finish(job)
    assert slurm.field(job, 'JobState') == 'COMPLETED', log
    assert slurm.field(job, 'Restarts') == '4' and log.count('requeueing job') == 4


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize('statuses', [(2, 75), (1, 1)])
def test_a_real_slurm_does_not_requeue_what_no_rerun_cures(slurm, statuses):
    stand_in(slurm, [statuses])
    job = slurm.submit('--workdir=run')
    log = slurm.finish(job)
    assert slurm.field(job, 'JobState') == 'FAILED' and slurm.field(job, 'Restarts') == '0', log
    assert f'ended with status {statuses[0]}' in log


@pytest.mark.slow
@pytest.mark.processes
def test_scancel_ends_a_job_of_a_real_slurm_for_good(slurm):
    stand_in(slurm, [('waits', 'waits')] * 2)
    job = slurm.submit('--workdir=run')
    slurm.until(lambda: slurm.log(job).count('waits') == 2, 30)
    slurm.said('scancel', job)
    time.sleep(5)
    slurm.finish(job)
    assert slurm.field(job, 'JobState') == 'CANCELLED', slurm.log(job)
    assert slurm.log(job).count('waits') == 2


def task_process(run: pathlib.Path, task: str) -> int:
    """The process id of a training task."""
    for entry in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            words = (entry / 'cmdline').read_text().split('\0')
            environment = (entry / 'environ').read_text().split('\0')
            is_run = words[1:3] == ['-m', 'experiments.main'] and f'--workdir={run}' in words
            if is_run and f'SLURM_PROCID={task}' in environment:
                return int(entry.name)
    raise AssertionError(f'task {task} does not run')


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize('how', ['TERM to all tasks', 'KILL to one task'])
def test_a_real_slurm_trains_is_stopped_and_finishes(slurm, how):
    """Two processes train; SLURM sends TERM, as at its time limit, or one process is killed."""
    run = slurm.folder / 'run'
    flags = [f'--config={TINY_PAGE}', f'--workdir={run}', '--config.train.duration=160steps']
    (slurm.folder / 'experiments').symlink_to(ROOT / 'experiments')
    job = slurm.submit(*flags)
    slurm.until(lambda: list((run / 'checkpoints').glob('[0-9]*')), 120)
    if how == 'TERM to all tasks':
        slurm.said('scancel', '--signal=TERM', job)
    else:
        os.kill(task_process(run, '1'), signal.SIGKILL)
    slurm.until(lambda: 'requeueing job' in slurm.log(job), 180)
    log = slurm.finish(job, 240)
    assert slurm.field(job, 'JobState') == 'COMPLETED', log
    assert slurm.field(job, 'Restarts') == '1' and summary(run)['status'] == 'done', log
