"""launch/tpu/: the commands it prints, and whole runs on an invented cloud of folders."""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, wait_until
from tests.stand_ins import BASH, on_path

TPU = ROOT / 'launch' / 'tpu' / 'tpu.sh'
PLACE = {
    'NIN_TPU_PROJECT': 'my-project',
    'NIN_TPU_ZONE': 'us-west4-a',
    'NIN_TPU_BUCKET': 'gs://my-bucket',
}
GCLOUD = 'gcloud compute tpus'
END = '--project=my-project --zone=us-west4-a --quiet'
LOOK = [
    f"{GCLOUD} queued-resources describe nin '--format=value(state.state)' {END}",
    f"{GCLOUD} tpu-vm describe nin '--format=value(state)' {END}",
]
RUN_SH = 'bash nin_jax/launch/tpu/run.sh'


def ssh(command: str, worker: str = 'all') -> str:
    return f"{GCLOUD} tpu-vm ssh nin --worker={worker} '--command={command} ' {END}"


DRY_RUNS = {
    'create --spot': [
        f'{GCLOUD} queued-resources create nin --node-id=nin --accelerator-type=v5litepod-8 '
        f'--runtime-version=v2-alpha-tpuv5-lite --spot --async {END}'
    ],
    'status': [*LOOK, ssh(f'{RUN_SH} status')],
    'setup cifar10': [
        *LOOK,
        'git bundle create --quiet build/launch/nin.bundle HEAD',
        f'{GCLOUD} tpu-vm scp build/launch/nin.bundle launch/tpu/setup.sh nin: --worker=all {END}',
        ssh('bash setup.sh nin.bundle my-bucket cifar10'),
    ],
    'run python -m x --workdir=/mnt/nin/x': [
        *LOOK,
        ssh(f'{RUN_SH} start python -m x --workdir=/mnt/nin/x'),
    ],
    'logs 1': [*LOOK, ssh('tail -n 200 -F nin_run/log', worker='1')],
    'stop': [*LOOK, ssh(f'{RUN_SH} stop')],
    'fetch runs/x': ['gcloud storage rsync --recursive gs://my-bucket/runs/x runs/x'],
    'delete': [
        *LOOK,
        ssh(f'{RUN_SH} save'),
        f'{GCLOUD} queued-resources delete nin --force {END}',
    ],
}


def tpu(*words: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith('NIN_TPU_')}
    return subprocess.run(
        [BASH, 'launch/tpu/tpu.sh', *words],
        cwd=cwd,
        env=kept | PLACE | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize('words', DRY_RUNS)
def test_dry_runs_print_the_commands_and_run_none(words, tmp_path):
    path = on_path(tmp_path, gcloud='touch "$OUT/called"')['PATH']
    done = tpu('--dry-run', *words.split(), PATH=path, OUT=str(tmp_path))
    assert done.returncode == 0 and not done.stderr
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert printed == [shlex.split(line) for line in DRY_RUNS[words]]
    assert not (tmp_path / 'called').exists()


def test_a_command_reaches_the_workers_as_it_was_said():
    done = tpu('--dry-run', 'run', 'python', 'a b', "c'd", '$HOME')
    (option,) = [w for w in shlex.split(done.stdout.splitlines()[-1]) if '--command=' in w]
    assert shlex.split(option)[-4:] == ['python', 'a b', "c'd", '$HOME']


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed')
def test_gcloud_knows_every_flag():
    seen = {}
    for line in [line for lines in DRY_RUNS.values() for line in lines]:
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


@pytest.mark.parametrize(
    'words, env, key',
    [
        (['up'], {}, "'up'"),
        ([], {}, 'verb'),
        (['create', '--spto'], {}, '--spto'),
        (['create'], {'NIN_TPU_BUCKET': ''}, 'NIN_TPU_BUCKET'),
        (['create'], {'NIN_TPU_ZONE': ''}, 'NIN_TPU_ZONE'),
        (['run'], {}, 'command'),
        (['fetch'], {}, 'folder'),
    ],
)
def test_mistakes(words, env, key, tmp_path):
    path = on_path(tmp_path, gcloud='exit 9')['PATH']
    done = tpu(*words, **{'PATH': path} | env)
    assert done.returncode == 2 and done.stderr.startswith('error: ')
    assert key in done.stderr and done.stderr.count('\n') == 1


def test_a_missing_gcloud_is_named(tmp_path):
    (tmp_path / 'dirname').symlink_to(shutil.which('dirname'))
    done = tpu('status', PATH=str(tmp_path))
    assert done.returncode == 2 and 'gcloud is not installed' in done.stderr


def test_the_command_of_old_names_its_successors():
    done = subprocess.run(
        [sys.executable, '-m', 'launch.tpu', 'up'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and 'launch/sky/tpu.yaml' in done.stderr


# --- whole runs: only gcloud, gcsfuse, sudo, uv and the mount are stand-ins

STUBS = {
    'sudo': 'exec "$@"',
    'umount': 'true',
    'mountpoint': '[ -e "$HOME/mounted" ]',
    'findmnt': 'cat "$HOME/mounted"',
    'gcsfuse': 'echo "gcsfuse $*" >>"$FAKE_CLOUD/calls"; echo my-bucket >"$HOME/mounted"',
    'hostname': 'echo "worker$WORKER"',
    'python3': f"""
case "$*" in
*'uv venv'*) mkdir -p "$HOME/nin_venv/bin" && cp "$0" "$HOME/nin_venv/bin/python" ;;
*'-m pip'* | *'-m uv'*) echo "python3 $*" >>"$FAKE_CLOUD/calls" ;;
*'import jax'*) echo 'python: stub' ;;
*) exec {sys.executable} "$@" ;;
esac""",
}
# Counts in the bucket until stopped, or to its argument; ends as STATUS says. With a child.
COUNT = """
import os, pathlib, signal, subprocess, sys, time
stubborn, end, status = sys.argv[1] == 'stubborn', int(sys.argv[2]), int(sys.argv[3])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
child = subprocess.Popen(['sleep', '1000'])
file = pathlib.Path(os.environ['NIN_MOUNT'], 'worker' + os.environ['WORKER'])
for i in range(end):
    file.write_text(str(child.pid))
    time.sleep(0.1)
    if asked and not stubborn:
        print('saved', flush=True)
        child.kill()
        sys.exit(75)
print('the end', flush=True)
child.kill()
sys.exit(status)
"""
needs_flock = pytest.mark.skipif(not shutil.which('flock'), reason='TPU VMs have Linux')


class Cloud:
    """A checkout of its own with launch/tpu in it, and the stand-ins on the PATH."""

    def __init__(self, root: pathlib.Path):
        self.root, self.slice, self.bucket = root, root / 'cloud' / 'nin', root / 'bucket'
        self.checkout = root / 'checkout'
        shutil.copytree(ROOT / 'launch' / 'tpu', self.checkout / 'launch' / 'tpu')
        (self.checkout / 'count.py').write_text(COUNT)
        (self.checkout / '.gitignore').write_text('build/\n')
        identity = ['-c', 'user.name=t', '-c', 'user.email=t@example.org']
        for words in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-qm', 'first']):
            subprocess.run(['git', *words], cwd=self.checkout, check=True)
        for name in ('bin', 'cloud', 'bucket'):
            (root / name).mkdir()
        self.env = on_path(root / 'bin', **STUBS)
        shutil.copy(ROOT / 'tests' / 'launch' / 'fake_gcloud.sh', root / 'bin' / 'gcloud')
        (root / 'bin' / 'gcloud').chmod(0o755)
        self.env |= {'FAKE_CLOUD': str(root / 'cloud'), 'NIN_MOUNT': str(self.bucket)}

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        return tpu(*words, cwd=self.checkout, **self.env | env)

    def set(self, queued: str, node: str) -> None:
        (self.slice / 'queued').write_text(queued)
        (self.slice / 'node').write_text(node)

    def statuses(self) -> list[str]:
        lines = self('status').stdout.splitlines()
        return [line.split(': ')[1] for line in lines[1:]]

    def logs(self) -> list[str]:
        files = [self.bucket.glob(f'logs/worker{i}/*.log') for i in range(2)]
        return [''.join(f.read_text() for f in sorted(each)) for each in files]


def end_group(pid: int) -> None:
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    assert cloud('create', '--spot').returncode == 0
    yield cloud
    for file in cloud.slice.glob('*/nin_run/pid'):
        end_group(int(file.read_text()))


@pytest.fixture
def ready(cloud):
    cloud.set('ACTIVE', 'READY')
    done = cloud('setup')
    assert done.returncode == 0, done.stderr
    return cloud


@pytest.mark.parametrize(
    'queued, node',
    [
        *[('ACTIVE', s) for s in ('REPAIRING', 'DELETING', 'PREEMPTED', 'CREATING', 'STOPPED', '')],
        *[(s, 'READY') for s in ('SUSPENDED', 'SUSPENDING', 'FAILED', 'UNKNOWN_STATE')],
    ],
)
def test_only_a_ready_node_of_an_active_resource_is_usable(cloud, queued, node):
    cloud.set(queued, node)
    for words in (['run', 'true'], ['stop'], ['setup'], ['logs']):
        done = cloud(*words)
        assert done.returncode == 75 and queued in done.stderr
    assert ' ssh ' not in (cloud.root / 'cloud' / 'calls').read_text()


def test_a_missing_node_is_not_usable(cloud):
    (cloud.slice / 'queued').write_text('ACTIVE')
    done = cloud('run', 'true')
    assert done.returncode == 75 and 'NOT_FOUND' in done.stderr


def test_a_cloud_that_does_not_answer_is_not_taken_for_a_missing_slice(cloud):
    on_path(cloud.root / 'bin', gcloud='echo ERROR: PERMISSION_DENIED >&2; exit 1')
    done = cloud('delete')
    assert done.returncode == 1 and 'PERMISSION_DENIED' in done.stderr


def test_setup_mounts_the_bucket_and_takes_a_commit_only(cloud):
    cloud.set('ACTIVE', 'READY')
    (cloud.checkout / 'count.py').write_text('# changed\n')
    done = cloud('setup')
    assert done.returncode == 2 and "'count.py'" in done.stderr
    subprocess.run(['git', 'checkout', '-q', 'count.py'], cwd=cloud.checkout, check=True)
    assert cloud('setup').returncode == 0 == cloud('setup').returncode
    calls = (cloud.root / 'cloud' / 'calls').read_text()
    assert calls.count('gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0') == 2  # one per worker
    assert calls.count('[prepare,sweep,stream] jax[tpu]') == 4
    done = cloud('setup', NIN_TPU_BUCKET='another')
    assert done.returncode == 1 and 'my-bucket is mounted' in done.stderr


@needs_flock
@pytest.mark.parametrize('how', ['not mounted', 'not writable'])
def test_nothing_starts_without_the_bucket(ready, how):
    """As after a restart of the VM: training would begin again at step 0, on its own disk."""
    env = {}
    if how == 'not mounted':
        for i in range(2):
            (ready.slice / str(i) / 'mounted').unlink()
    else:
        env = {'NIN_MOUNT': str(ready.root / 'nowhere')}
    done = ready('run', 'python', 'count.py', 'mild', '999', '0', **env)
    assert done.returncode == 1
    assert done.stderr.count('nothing was started') == 2
    assert ready.statuses() == ['absent'] * 2 and not list(ready.bucket.glob('worker*'))


@needs_flock
@pytest.mark.processes
@pytest.mark.parametrize('status', [0, 2])
def test_the_log_outlives_the_vms(ready, status):
    assert ready('run', 'python', 'count.py', 'mild', '1', str(status)).returncode == 0
    wait_until(lambda: ready.statuses() == [f'exit {status}'] * 2, 20)
    assert all(f'exit status {status}' in log for log in ready.logs())
    assert ready('delete').returncode == 0 and not ready.slice.exists()
    assert all('count.py mild 1' in log and 'the end' in log for log in ready.logs())


@needs_flock
@pytest.mark.processes
def test_delete_copies_the_log_of_a_running_command(ready):
    assert ready('run', 'sh', '-c', 'echo begun; exec sleep 1000').returncode == 0
    pids = [int(file.read_text()) for file in ready.slice.glob('*/nin_run/pid')]
    try:
        assert ready('delete').returncode == 0
        assert all('begun' in log for log in ready.logs())
    finally:
        for pid in pids:
            end_group(pid)


@needs_flock
@pytest.mark.processes
@pytest.mark.parametrize('how, ends', [('mild', 'exit 75'), ('stubborn', 'exit 137')])
def test_stop_ends_the_command_and_its_children(ready, how, ends):
    assert ready('run', 'python', 'count.py', how, '999', '0').returncode == 0
    files = [ready.bucket / f'worker{i}' for i in range(2)]
    wait_until(lambda: all(f.exists() for f in files) and ready.statuses() == ['running'] * 2, 20)
    refused = ready('run', 'true')
    assert refused.returncode == 1 and refused.stderr.count('a command is running') == 2
    done = ready('stop', NIN_STOP_SECONDS='2' if how == 'stubborn' else '20')
    assert done.returncode == 0 and ready.statuses() == [ends] * 2
    time.sleep(0.5)
    assert not any(pathlib.Path('/proc', f.read_text(), 'fd').exists() and alive(f) for f in files)
    assert ready.statuses() == [ends] * 2  # and nothing starts it again
    assert all(f'exit status {ends.split()[1]}' in log for log in ready.logs())


def alive(file: pathlib.Path) -> bool:
    state = pathlib.Path('/proc', file.read_text(), 'stat').read_text().rpartition(')')[2].split()
    return state[0] != 'Z'


def test_delete_takes_the_queued_resource_and_says_what_is_left(cloud):
    done = cloud('delete')  # while it still waits for a node
    assert done.returncode == 0 and not cloud.slice.exists()
    assert cloud('delete').returncode == 0  # again
    cloud('create')
    (cloud.root / 'cloud' / 'stuck').touch()
    done = cloud('delete')
    assert done.returncode == 1 and 'still there' in done.stderr
