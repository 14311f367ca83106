"""launch.tpu: the commands it prints, what it decides, and a whole run on a made-up cloud."""

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from launch import tpu, tpu_gcloud
from launch.tpu_watch import Action, Patience, Trouble, next_action, watch

GOLDENS = ROOT / 'tests' / 'goldens'
TRAIN = [
    *('python', '-m', 'experiments.main', '--config=experiments/configs/cifar10.py:aug'),
    *('--workdir=/mnt/nin/runs/aug', '--distributed=auto'),
]
SLICE = [
    *('--name=nin', '--project=my-project', '--zone=us-west4-a', '--type=v5litepod-16'),
    *('--version=v2-alpha-tpuv5-lite', '--bucket=gs://my-bucket'),
]
SWEEP = [
    *('python', '-m', 'launch.sweep', '--sweep=experiments/sweeps/lr.py', '--study=lr'),
    '--storage=postgresql://nin@10.0.0.2/sweeps',
]
COMMANDS = {
    'up': ['up', *SLICE, '--spot', '--data', 'cifar10', '--delete-when-done', '--', *TRAIN],
    'create': ['create', *SLICE, '--spot'],
    'setup': ['setup', *SLICE, '--data', 'cifar10', 'svhn_cropped'],
    'run': ['run', *SLICE, '--', *TRAIN],
    'status': ['status', *SLICE],
    'logs': ['logs', *SLICE, '--worker=1'],
    'stop': ['stop', *SLICE],
    'fetch': ['fetch', '--bucket=my-bucket', '--folder=runs/aug'],
    'delete': ['delete', *SLICE],
    'fan_out': ['up', *SLICE, '--type=v5litepod-8', '--count=2', '--', *SWEEP],
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in os.environ:
        if name.startswith('NIN_TPU_'):
            monkeypatch.delenv(name)


@pytest.mark.parametrize('name', COMMANDS)
def test_dry_runs_print_the_commands(name, capsys, monkeypatch):
    def no_process(*_, **__):
        raise AssertionError('a dry run started a process')

    monkeypatch.setattr(subprocess, 'run', no_process)
    first, *rest = COMMANDS[name]
    assert tpu.main([first, '--dry-run', *rest]) == 0
    assert capsys.readouterr().out == (GOLDENS / f'tpu_{name}.txt').read_text()


def test_every_verb_has_a_golden():
    assert {words[0] for words in COMMANDS.values()} == set(tpu.NEEDS)
    assert {p.stem for p in GOLDENS.glob('tpu_*')} == {f'tpu_{name}' for name in COMMANDS}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed')
def test_gcloud_knows_every_flag():
    lines = set(''.join((GOLDENS / f'tpu_{n}.txt').read_text() for n in COMMANDS).splitlines())
    seen = {}
    for line in lines:
        words = line.split(' ')
        if words[0] == 'gcloud':
            verb = tuple(words[: 5 if words[1] == 'compute' else 3])
            flags = re.findall(r" '?(--[a-z-]+)", line.split('--command=')[0])
            seen.setdefault(verb, set()).update(flags)
    assert len(seen) == 7
    for verb, flags in seen.items():
        text = subprocess.run([*verb, '--help'], capture_output=True, text=True).stdout
        plain = re.sub(r'\x1b\[[0-9;]*m|.\x08', '', text)
        known = set(re.findall(r'--[a-z][a-z-]*', plain)) | {'--quiet', '--project', '--format'}
        assert flags <= known, f'{" ".join(verb)}: {flags - known}'


def test_launching_does_not_import_jax():
    code = "import sys, launch.tpu, launch.jobset; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    'words, sentence',
    [
        (['create'], '--name is missing: say, for instance, --name=nin, or set NIN_TPU_NAME'),
        ([*COMMANDS['create'], '--zone='], '--zone is missing: say, for instance'),
        (['run', *SLICE], 'run needs a command behind --, such as'),
        (['up', *SLICE, '--'], 'up needs a command behind --'),
        (['create', *SLICE, '--count=0'], '--count=0: give 1 or more'),
        (['begin', *SLICE], 'invalid choice'),
        (['create', *SLICE, '--spto'], 'unrecognized arguments: --spto'),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, capsys):
    try:
        status = tpu.main(words)
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.startswith('error: ') and sentence in err and err.count('\n') == 1


def test_flags_come_from_the_environment(capsys, monkeypatch):
    for flag in SLICE:
        name, value = flag.removeprefix('--').split('=')
        monkeypatch.setenv(f'NIN_TPU_{name.upper()}', value)
    assert tpu.main(['create', '--spot', '--dry-run']) == 0
    assert capsys.readouterr().out == (GOLDENS / 'tpu_create.txt').read_text()


def test_a_tool_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setenv('PATH', '')
    assert tpu.main(['delete', *SLICE]) == 2
    assert "'gcloud' is not installed here" in capsys.readouterr().err


# --- what to do next

STATES = [
    *('STATE_UNSPECIFIED', 'CREATING', 'ACCEPTED', 'PROVISIONING', 'FAILED', 'DELETING', 'ACTIVE'),
    *('SUSPENDING', 'SUSPENDED', 'WAITING_FOR_RESOURCES', 'PREEMPTED', 'TERMINATED', None),
]


@pytest.mark.parametrize(
    'state, processes, action',
    [
        (None, [], Action.CREATE),
        ('WAITING_FOR_RESOURCES', [], Action.WAIT),
        ('PROVISIONING', [], Action.WAIT),
        ('SUSPENDING', ['running'], Action.WAIT),  # cannot be deleted yet
        ('DELETING', [], Action.WAIT),
        ('A STATE OF NEXT YEAR', [], Action.WAIT),
        ('SUSPENDED', ['exit 0'], Action.RECREATE),
        ('FAILED', [], Action.RECREATE),
        ('PREEMPTED', [], Action.RECREATE),
        ('ACTIVE', [], Action.SETUP),
        ('ACTIVE', ['absent', 'exit 0'], Action.SETUP),
        ('ACTIVE', ['running', 'absent'], Action.LOOK_ON),
        ('ACTIVE', ['running', 'exit 0'], Action.LOOK_ON),
        ('ACTIVE', ['running', 'busy'], Action.REFUSE),
        ('ACTIVE', ['exit 0', 'exit 0'], Action.DONE),
        ('ACTIVE', ['exit 1', 'exit 1'], Action.DONE),
        ('ACTIVE', ['exit 2'], Action.DONE),
        ('ACTIVE', ['exit 75', 'exit 75'], Action.RUN),
        ('ACTIVE', ['exit 137', 'exit 1'], Action.RUN),  # one was killed, and took the other along
        ('ACTIVE', ['exit 0', 'lost'], Action.RUN),
        ('ACTIVE', ['lost'], Action.RUN),
    ],
)
def test_next_action(state, processes, action):
    assert next_action(state, processes) is action


def test_overall_state():
    assert tpu_gcloud.overall_state('ACTIVE', 'READY') == 'ACTIVE'
    assert tpu_gcloud.overall_state('ACTIVE', 'PREEMPTED') == 'PREEMPTED'
    assert tpu_gcloud.overall_state('SUSPENDING', 'PREEMPTED') == 'SUSPENDING'


class Script:
    """A machine whose looks are read off a list of (state, processes), and a clock beside it."""

    def __init__(self, *looks, fails=()):
        self.looks, self.fails = iter(looks), fails
        self.did, self.said, self.seconds = [], [], 0.0

    def state(self):
        state, self._processes = next(self.looks)
        if isinstance(state, Trouble):
            raise state
        return state

    def processes(self):
        return self._processes

    def _do(self, what):
        self.did.append(what)
        if what in self.fails:
            raise Trouble(f'{what} failed')

    def create(self):
        self._do('create')

    def delete(self):
        self._do('delete')

    def setup(self):
        self._do('setup')

    def start(self):
        self._do('start')

    def sleep(self, seconds):
        self.seconds += seconds
        return False

    def watch(self, **patience):
        return watch(self, Patience(**patience), self.said.append, lambda: self.seconds, self.sleep)


RUNNING = ('ACTIVE', ['running', 'running'])


def test_watch_replaces_a_pre_empted_slice():
    script = Script(
        (None, []),
        ('WAITING_FOR_RESOURCES', []),
        ('PROVISIONING', []),
        ('ACTIVE', ['absent', 'absent']),
        *[RUNNING] * 3,
        ('SUSPENDING', []),
        ('SUSPENDED', []),
        (Trouble('describe: the network is down'), []),
        ('WAITING_FOR_RESOURCES', []),
        ('ACTIVE', ['absent', 'absent']),
        RUNNING,
        ('ACTIVE', ['exit 0', 'exit 0']),
    )
    assert script.watch(failures=0) == 0  # none of this is a failure
    start = ['setup', 'start']
    assert script.did == ['create', *start, 'delete', 'create', *start]
    assert len([line for line in script.said if 'running' in line]) == 2  # told once each


def test_watch_starts_a_crashed_run_again_without_setting_it_up():
    crashed = ('ACTIVE', ['exit 1', 'exit 137'])
    script = Script(RUNNING, crashed, RUNNING, ('ACTIVE', ['exit 1', 'exit 1']))
    assert script.watch() == 1
    assert script.did == ['start']


def test_watch_starts_afresh_what_had_ended_before():
    done = ('ACTIVE', ['exit 2', 'exit 2'])
    script = Script(done, RUNNING, done)
    assert script.watch() == 2
    assert script.did == ['setup', 'start']


def test_watch_gives_up_after_failures_in_a_row():
    crash = [RUNNING, ('ACTIVE', ['exit 137'])]
    script = Script(RUNNING, *crash * 10)
    with pytest.raises(Trouble, match=r'gave up after 3 failures in a row, the last: .*exit 137'):
        script.watch(failures=2)
    assert script.did == ['start'] * 3


def test_a_settled_run_clears_the_failures():
    crash = [*[RUNNING] * 11, ('ACTIVE', ['exit 137'])]
    script = Script(*crash * 10, RUNNING, ('ACTIVE', ['exit 0']))
    assert script.watch(failures=2, poll=60, settled=600) == 0
    assert script.did == ['start'] * 10


def test_watch_bounds_failed_requests_set_up_and_waiting():
    with pytest.raises(Trouble, match='3 failures in a row'):
        Script(*[('FAILED', [])] * 9).watch(failures=2)
    with pytest.raises(Trouble, match='the last: setup failed'):
        Script(*[('ACTIVE', ['absent'])] * 9, fails=['setup']).watch(failures=2)
    with pytest.raises(Trouble, match='nothing ran for 1 h'):
        Script(*[('WAITING_FOR_RESOURCES', [])] * 99).watch(idle=3600)
    with pytest.raises(Trouble, match='nothing ran for 1 h'):
        Script(*[(Trouble('no network'), [])] * 99).watch(idle=3600)
    with pytest.raises(Trouble, match='stop it first'):
        Script(('ACTIVE', ['busy'])).watch()


def test_watch_can_be_stopped():
    script = Script(RUNNING, RUNNING)
    script.sleep = lambda seconds: True
    assert script.watch() is None


# --- a whole run on a made-up cloud: only gcloud, gcsfuse, sudo and uv are not the real ones

STUBS = {
    'sudo': 'exec "$@"',
    'mountpoint': 'exit 1',
    'gcsfuse': 'echo "gcsfuse $*" >>"$FAKE_CLOUD/calls"',
    'lsb_release': 'echo jammy',
    'python3': f"""
case "$*" in
*'uv venv'*) mkdir -p "$HOME/nin_venv/bin" && cp "$0" "$HOME/nin_venv/bin/python" ;;
*'-m pip'* | *'-m uv'*) echo "python3 $*" >>"$FAKE_CLOUD/calls" ;;
*'import jax'*) echo 'python: stub' ;;
*) exec {sys.executable} "$@" ;;
esac""",
}

# Counts in the bucket, to 6 or to 99, a quarter of a second each; goes on where the file says.
STAND_IN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
file = pathlib.Path(os.environ['NIN_MOUNT'], 'worker' + os.environ['WORKER'])
assert pathlib.Path('launch/tpu_run.sh').exists() and os.environ['JAX_PLATFORMS'] == 'tpu,cpu'
steps = file.read_text() if file.exists() else ''
while len(steps) < int(sys.argv[2]):
    time.sleep(0.25)
    steps += sys.argv[1]
    file.write_text(steps)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> pathlib.Path:
    """A checkout of its own with launch.tpu in it, and the stand-ins on the PATH."""
    for folder in ('launch', 'nin_jax', 'experiments'):
        ignore = shutil.ignore_patterns('__pycache__', 'assets')
        shutil.copytree(ROOT / folder, tmp_path / 'checkout' / folder, ignore=ignore)
    (tmp_path / 'checkout' / 'count.py').write_text(STAND_IN)
    (tmp_path / 'checkout' / '.gitignore').write_text('build/\n')
    identity = ['-c', 'user.name=t', '-c', 'user.email=t@example.org']
    for words in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-qm', 'first']):
        subprocess.run(['git', *words], cwd=tmp_path / 'checkout', check=True)
    (tmp_path / 'bin').mkdir()
    for name, text in STUBS.items():
        (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\n{text}\n')
    shutil.copy(ROOT / 'tests' / 'fake_gcloud.sh', tmp_path / 'bin' / 'gcloud')
    for file in (tmp_path / 'bin').iterdir():
        file.chmod(0o755)
    for name in ('cloud', 'bucket'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE_CLOUD', str(tmp_path / 'cloud'))
    monkeypatch.setenv('NIN_MOUNT', str(tmp_path / 'bucket'))
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    yield tmp_path
    for pid in (tmp_path / 'cloud').glob('*/*/nin_run/pid'):
        subprocess.run(['kill', '-9', pid.read_text().strip()], capture_output=True)


def wait_for(what, seconds: float = 15):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f'{what} did not come true within {seconds} s'
        time.sleep(0.02)
    return value


def up(cloud: pathlib.Path, *command: str, flags: tuple = ()) -> subprocess.Popen:
    words = [sys.executable, '-m', 'launch.tpu', 'up', *SLICE, '--poll=0.1', *flags, '--', *command]
    return subprocess.Popen(
        words, cwd=cloud / 'checkout', stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.skipif(not shutil.which('flock'), reason='flock is for Linux, as TPU VMs are')
def test_up_survives_a_pre_emption(cloud):
    process = up(cloud, 'python', 'count.py', 'a', '6', flags=('--delete-when-done',))
    files = [cloud / 'bucket' / f'worker{i}' for i in range(2)]
    wait_for(lambda: all(f.exists() and len(f.read_text()) >= 2 for f in files))
    slice_ = cloud / 'cloud' / 'nin'
    (slice_ / 'state').write_text('SUSPENDED\n')  # and its machines are gone
    for pid in slice_.glob('*/nin_run/pid'):
        subprocess.run(['kill', '-9', pid.read_text().strip()])
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert [f.read_text() for f in files] == ['a' * 6] * 2
    assert 'SUSPENDED, no run: lost; deleting it and asking for another' in out
    assert 'exit 0, exit 0: done' in out and 'deleted' in out
    calls = (cloud / 'cloud' / 'calls').read_text()
    verbs = [verb for verb, _ in itertools.groupby(re.findall(r'queued-resources (\w+)', calls))]
    verbs = [v for v in verbs if v != 'describe']
    assert verbs == ['create', 'delete', 'create', 'delete']
    assert calls.count('gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0') == 4
    assert calls.count('jax[tpu]') == 4  # two workers, twice


@pytest.mark.skipif(not shutil.which('flock'), reason='flock is for Linux, as TPU VMs are')
def test_run_status_stop_on_the_made_up_cloud(cloud, capfd, monkeypatch):
    def say(verb, *command, flags=()):
        words = [sys.executable, '-m', 'launch.tpu', verb, *SLICE, *flags, '--', *command]
        return subprocess.run(words, cwd=cloud / 'checkout', capture_output=True, text=True)

    assert say('status').stdout == 'nin: no such slice\n'
    assert say('create').returncode == 0
    assert say('status').stdout == 'nin: PROVISIONING\n'
    assert say('status').stdout == 'nin: ACTIVE, absent, absent\n'
    assert say('setup').returncode == 0
    (cloud / 'checkout' / 'count.py').write_text('# changed\n')
    refused = say('setup')
    assert refused.returncode == 2 and "'count.py' is changed: commit it" in refused.stderr
    assert say('run', 'python', 'count.py', 'b', '99').returncode == 0
    assert say('status').stdout == 'nin: ACTIVE, running, running\n'
    assert say('run', 'true').returncode == 1  # one at a time
    subprocess.run(['git', 'checkout', '-q', 'count.py'], cwd=cloud / 'checkout', check=True)
    other = up(cloud, 'true')
    out, _ = other.communicate(timeout=20)
    assert other.returncode == 1 and 'another command runs there: stop it first' in out
    watcher = up(cloud, 'python', 'count.py', 'b', '99')
    assert any('running, running: running' in line for line in iter(watcher.stdout.readline, ''))
    watcher.terminate()
    out, _ = watcher.communicate(timeout=20)
    assert watcher.returncode == 75 and 'stopped watching; the slices go on' in out
    assert say('stop').returncode == 0
    wait_for(lambda: say('status').stdout == 'nin: ACTIVE, exit 75, exit 75\n')
    assert say('delete').returncode == 0
    assert not (cloud / 'cloud' / 'nin').exists()


def test_a_slice_that_cannot_be_had_ends_with_a_sentence(cloud, monkeypatch):
    (cloud / 'bin' / 'gcloud').write_text('#!/bin/sh\necho ERROR: PERMISSION_DENIED >&2\nexit 1\n')
    words = [sys.executable, '-m', 'launch.tpu', 'status', *SLICE]
    done = subprocess.run(words, cwd=cloud / 'checkout', capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith('error: gcloud compute tpus queued-resources describe nin ended')
    assert 'PERMISSION_DENIED' in done.stderr
