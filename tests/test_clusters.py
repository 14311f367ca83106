"""Clusters, as far as can be told without one: shell scripts, SLURM, Kubernetes, the Dockerfile."""

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
import yaml
from helpers import ROOT, TINY_PAGE

from launch import jobset

PATTERNS = ('launch/*.sh', 'launch/*.sbatch', 'tests/*.sh', '.ci/run')
SHELL = sorted(str(p.relative_to(ROOT)) for pattern in PATTERNS for p in ROOT.glob(pattern))
BASH = shutil.which('bash') or 'bash'
NEW_BASH = subprocess.run([BASH, '-c', '((BASH_VERSINFO[0]*100+BASH_VERSINFO[1]>=501))']).returncode
needs_new_bash = pytest.mark.skipif(NEW_BASH != 0, reason='local.sh needs bash 5.1')


@pytest.mark.parametrize('script', SHELL)
def test_shellcheck(script):
    shellcheck = pathlib.Path(sys.executable).with_name('shellcheck')
    command = [str(shellcheck) if shellcheck.exists() else 'shellcheck', script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def on_path(folder: pathlib.Path, **scripts: str) -> dict:
    """The environment with these scripts, and this Python as `python`, first on the PATH."""
    for name, text in scripts.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (folder / name).chmod(0o755)
    if not (folder / 'python').exists():
        (folder / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / 'python').chmod(0o755)
    return os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', 'OUT': str(folder)}


# --- launch/local.sh

# Notes its flags; ends as its plan says, or 0.2 s after being asked to, if asked but once.
STAND_IN = r"""
import os, pathlib, signal, sys, time
folder, flags, asked = pathlib.Path(os.environ['OUT']), sys.argv[1:], []
index = flags[-1].rsplit(',', 1)[1]
for s in (signal.SIGTERM, signal.SIGINT):
    signal.signal(s, lambda *_: asked.append(s))
(folder / f'gpu{index}').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', ''))
(folder / f'flags{index}').write_text(' '.join(flags))
plan = folder / f'plan{index}'
if plan.exists():
    while not all((folder / f'flags{i}').exists() for i in range(2)):
        time.sleep(0.01)
    sys.exit(int(plan.read_text()))
while not asked or os.environ.get('STUBBORN') == index:
    time.sleep(0.02)
end = time.monotonic() + 0.2
while time.monotonic() < end:
    time.sleep(0.02)
sys.exit(75 if len(asked) == 1 else 9)
"""


def local(folder: pathlib.Path, *words: str, **environment: str) -> subprocess.Popen:
    (folder / 'stand_in.py').write_text(STAND_IN)
    env = on_path(folder) | {'NIN_COMMAND': f'python {folder}/stand_in.py'} | environment
    return subprocess.Popen(
        [BASH, 'launch/local.sh', *words],
        cwd=ROOT,
        env=env,
        # A background job's children ignore SIGINT from their birth, and bash cannot undo that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(*files: pathlib.Path) -> None:
    end = time.monotonic() + 10
    while not all(f.exists() for f in files):
        assert time.monotonic() < end, f'{files} did not come'
        time.sleep(0.01)


@needs_new_bash
@pytest.mark.parametrize('asked', [signal.SIGTERM, signal.SIGINT])
def test_local_hands_on_signals_once(tmp_path, asked):
    process = local(tmp_path, '2', '--config=a page', '--workdir=w')
    files = [tmp_path / f'flags{i}' for i in range(2)]
    wait_for(*files)
    time.sleep(0.1)
    if asked == signal.SIGINT:
        os.killpg(process.pid, asked)  # as a terminal does at Ctrl-C
    else:
        process.send_signal(asked)
    assert process.wait(timeout=10) == 75
    first, second = [f.read_text() for f in files]
    match = re.fullmatch(r'--config=a page --workdir=w --distributed=(127.0.0.1:\d+),2,0', first)
    assert match and second.endswith(f' --distributed={match[1]},2,1')


@needs_new_bash
@pytest.mark.parametrize('plans, status', [('00', 0), ('11', 1), ('01', 1), ('20', 2)])
def test_local_ends_with_the_worst_status(tmp_path, plans, status):
    for i, plan in enumerate(plans):
        (tmp_path / f'plan{i}').write_text(plan)
    assert local(tmp_path, '2').wait(timeout=10) == status


@needs_new_bash
@pytest.mark.parametrize('stubborn', ['', '0'])
def test_local_ends_the_others_when_one_dies(tmp_path, stubborn):
    (tmp_path / 'plan1').write_text('3')
    process = local(tmp_path, '2', STUBBORN=stubborn, NIN_GRACE_SECONDS='0.3')
    _, err = process.communicate(timeout=10)
    assert process.returncode == 3
    told = [line for line in err.splitlines() if line.startswith('process ')]
    lines = ['process 1 of 2 ended with status 3', 'process 0 of 2 ended with status 137']
    assert told == lines[: 2 if stubborn else 1]


@needs_new_bash
def test_local_takes_each_gpu(tmp_path):
    on_path(tmp_path, **{'nvidia-smi': 'printf "GPU 0: A\\nGPU 1: A\\n"'})
    for i in range(2):
        (tmp_path / f'plan{i}').write_text('0')
    assert local(tmp_path, 'gpus').wait(timeout=10) == 0
    assert [(tmp_path / f'gpu{i}').read_text() for i in range(2)] == ['0', '1']


@needs_new_bash
@pytest.mark.parametrize('words', [[], ['0'], ['two'], ['--config=x'], ['gpus']])
def test_local_tells_mistakes(words, tmp_path):
    on_path(tmp_path, **{'nvidia-smi': 'exit 9'})
    process = local(tmp_path, *words)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2 and re.fullmatch('error: .*\n', err)


@pytest.mark.slow
@needs_new_bash
def test_local_trains_with_two_processes(tmp_path):
    env = on_path(tmp_path) | {'JAX_PLATFORMS': 'cpu'}
    words = ['launch/local.sh', '2', f'--config={TINY_PAGE}', f'--workdir={tmp_path}/run']
    done = subprocess.run([BASH, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'summary.json').exists()


# --- launch/slurm.sbatch

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
TASK = r"""
trap 'touch "$OUT/stopped$SLURM_PROCID"' TERM
printf '%s,' "$@" >"$OUT/task$SLURM_PROCID"
echo $$ >"$OUT/child$SLURM_PROCID"
if [ -n "$SLEEP" ]; then while [ ! -e "$OUT/stopped$SLURM_PROCID" ]; do sleep 0.05; done; fi
exit "$(cut -d' ' -f$((SLURM_PROCID + 1)) <<<"$STATUSES")"
"""


def sbatch(folder: pathlib.Path, statuses: str, sleep: str = '') -> subprocess.Popen:
    scontrol = 'echo "$@" >>"$OUT/scontrol_said"'
    env = on_path(folder, srun=SRUN, scontrol=scontrol, python=TASK)
    env |= {'SLURM_JOB_ID': '42', 'STATUSES': statuses, 'SLEEP': sleep}
    script = ROOT / 'launch' / 'slurm.sbatch'
    return subprocess.Popen([BASH, script, '--config=a page'], cwd=folder, env=env)


@pytest.mark.parametrize(
    'statuses, status, again',
    [
        ('0 0', 0, False),
        ('1 1', 1, False),
        ('2 2', 2, False),
        ('75 75', 75, True),
        ('75 0', 75, True),
        ('75 1', 75, False),  # the first lost the second, which failed by itself
        ('137 75', 137, False),
    ],
)
def test_sbatch_queues_again_what_was_stopped(tmp_path, statuses, status, again):
    assert sbatch(tmp_path, statuses).wait(timeout=10) == status
    said = tmp_path / 'scontrol_said'
    assert (said.read_text() if said.exists() else '') == ('requeue 42\n' if again else '')
    words = '-m,experiments.main,--config=a page,--distributed=auto,'
    assert [(tmp_path / f'task{i}').read_text() for i in range(2)] == [words] * 2
    assert not list(tmp_path.glob('*.failed'))


def test_sbatch_term_reaches_each_task_once(tmp_path):
    """SLURM signals the tasks' processes; a preempted job's shell gets a TERM as well."""
    process = sbatch(tmp_path, '75 75', sleep='yes')
    files = [tmp_path / f'{name}{i}' for name in ('wrapper', 'child') for i in range(2)]
    wait_for(*files)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None and not list(tmp_path.glob('stopped*'))
    for file in files:
        os.kill(int(file.read_text()), signal.SIGTERM)
    assert process.wait(timeout=10) == 75
    assert (tmp_path / 'scontrol_said').read_text() == 'requeue 42\n'


def test_sbatch_options():
    text = (ROOT / 'launch' / 'slurm.sbatch').read_text()
    first_command = text.index('set -uo')
    assert text.rindex('#SBATCH --') < first_command  # SLURM reads none after the first command
    options = dict(
        line.removeprefix('#SBATCH --').partition('=')[::2]
        for line in text.splitlines()
        if line.startswith('#SBATCH ')
    )
    assert options['ntasks-per-node'] == options['gpus-per-node']
    assert options['signal'] == 'TERM@120'  # to the tasks; B: would mean the shell alone
    assert options['requeue'] == '' and options['open-mode'] == 'append'


# --- Kubernetes

TRAIN = ['python', '-m', 'experiments.main', '--config=a.py:b', '--distributed=auto']
GPU = ['--hosts=2', '--chips=nvidia.com/gpu=8']
TPU = [
    *('--hosts=4', '--chips=google.com/tpu=4', '--select'),
    'cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology=4x4',
]
# The fields of JobSet's v1alpha2 schema (config/components/crd of kubernetes-sigs/jobset).
SPEC = {
    *('coordinator', 'failurePolicy', 'managedBy', 'network', 'replicatedJobs', 'startupPolicy'),
    *('successPolicy', 'suspend', 'ttlSecondsAfterFinished'),
}


def render(capsys, *flags: str) -> list[dict]:
    words = ['--name=nin', '--image=r/nin_jax:x', '--claim=nin', *flags, '--', *TRAIN]
    assert jobset.main(words) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


@pytest.mark.parametrize('flags', [GPU, TPU])
def test_jobset_is_what_jobset_and_jax_expect(flags, capsys):
    account, role, binding, job_set = render(capsys, *flags)
    assert job_set['apiVersion'] == 'jobset.x-k8s.io/v1alpha2' and job_set['kind'] == 'JobSet'
    spec = job_set['spec']
    assert set(spec) <= SPEC
    assert set(spec['failurePolicy']) <= {'maxRestarts', 'restartStrategy', 'rules'}
    for rule in spec['failurePolicy']['rules']:
        assert set(rule) <= {'name', 'action', 'onJobFailureReasons', 'targetReplicatedJobs'}
        assert rule['action'] in (
            'FailJobSet',
            'RestartJobSet',
            'RestartJobSetAndIgnoreMaxRestarts',
        )
        assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
        assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
    (replicated,) = spec['replicatedJobs']
    assert set(replicated) <= {'name', 'replicas', 'template', 'dependsOn', 'groupName'}
    job = replicated['template']['spec']
    hosts = int(flags[0].split('=')[1])
    # jax's K8sCluster: the index from an Indexed job, the count from its parallelism.
    assert job['completionMode'] == 'Indexed'
    assert job['parallelism'] == job['completions'] == hosts and job['backoffLimit'] == 0
    assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2]
    pod = job['template']['spec']
    assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] >= 120
    (container,) = pod['containers']
    assert container['name'] == job['podFailurePolicy']['rules'][0]['onExitCodes']['containerName']
    assert container['command'] == TRAIN
    resource, chips = flags[1].removeprefix('--chips=').split('=')
    assert container['resources']['limits'] == {resource: int(chips)}
    assert pod['nodeSelector'] == dict(pair.split('=') for pair in flags[3:])
    assert pod['serviceAccountName'] == account['metadata']['name']
    assert binding['subjects'][0]['name'] == account['metadata']['name']
    assert binding['roleRef']['name'] == role['metadata']['name']
    allowed = {r: rule['verbs'] for rule in role['rules'] for r in rule['resources']}
    # What jax's K8sCluster calls: list pods, list services, read the job.
    assert 'list' in allowed['pods'] and 'list' in allowed['services'] and 'get' in allowed['jobs']
    # JobSet names pods NAME-run-0-INDEX-xxxxx, of which a label may have 63 characters.
    assert len(job_set['metadata']['name'] + '-run-0-') + 12 < 63


def test_a_single_host_fails_for_good_when_it_diverges(capsys):
    *_, job_set = render(capsys, '--chips=nvidia.com/gpu=1')
    policy = job_set['spec']['replicatedJobs'][0]['template']['spec']['podFailurePolicy']
    assert policy['rules'][0]['onExitCodes']['values'] == [1, 2]


@pytest.mark.parametrize('flags', [GPU, TPU])
def test_kubernetes_schemas(flags, capsys):
    """Kubernetes' own schemas, strictly: a field it does not know is an error."""
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    *others, job_set = render(capsys, *flags)
    template = job_set['spec']['replicatedJobs'][0]['template']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'nin'}, **template}
    bucket = yaml.safe_load_all((ROOT / 'launch' / 'gke_bucket.yaml').read_text())
    for document in [*others, job, *bucket]:
        kubernetes_validate.validate(document, '1.33', strict=True)
    job['spec']['template']['spec']['restartPolicies'] = 'Never'
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, '1.33', strict=True)


@pytest.mark.parametrize(
    'words, sentence',
    [
        (['--name=nin', '--image=i', '--claim=c', '--chips=x=1'], 'a command is missing'),
        (['--name=Nin', '--image=i', '--claim=c', '--chips=x=1', '--', 'a'], "--name='Nin'"),
        (
            ['--name=nin', '--image=i', '--claim=c', '--chips=8', '--', 'a'],
            "'8' is not of the form",
        ),
        (['--name=nin', '--image=i', '--claim=c', '--chips=x=0', '--', 'a'], 'give 1 or more'),
        (['--name=nin', '--', 'a'], 'the following arguments are required'),
    ],
)
def test_jobset_tells_mistakes(words, sentence, capsys):
    try:
        status = jobset.main(words)
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.startswith('error: ') and sentence in err and err.count('\n') == 1


# --- launch/Dockerfile


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continued lines joined."""
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    lines = [line for line in text.splitlines() if not line.startswith('#')]
    joined = re.sub(r'\\\n', '', '\n'.join(lines))
    return [tuple(line.split(' ', 1)) for line in joined.splitlines() if line.strip()]


def test_dockerfile_manners():
    words = steps()
    kinds = [kind for kind, _ in words]
    assert kinds[0] == 'FROM' and re.fullmatch(r'python:3\.1[123]-slim', words[0][1])
    assert kinds.index('USER') < kinds.index('ENTRYPOINT') == len(kinds) - 1
    assert dict(words)['USER'] not in ('root', '0')
    assert all('--no-cache-dir' in rest for kind, rest in words if 'pip install' in rest)
    sent = {w[1:] for w in (ROOT / '.dockerignore').read_text().split() if w.startswith('!')}
    copied = {rest.split()[0] for kind, rest in words if kind == 'COPY'}
    assert copied == sent and all((ROOT / name).exists() for name in copied)


class Image:
    """Runs a Dockerfile's steps in a folder, with a virtual environment for FROM's Python.

    Not covered: the base image itself, its system packages, layers, and paths outside WORKDIR.
    """

    def __init__(self, root: pathlib.Path, **build_args: str):
        self.root, self.build_args = root, build_args
        self.cwd, self.user = root, None
        # Root's own Python may lie where the image's user cannot look.
        python = '/usr/bin/python3' if os.geteuid() == 0 else sys.executable
        subprocess.run([python, '-m', 'venv', root / 'usr'], check=True)
        (root / 'home').mkdir()
        (root / 'home').chmod(0o777)
        path = f'{root}/usr/bin:/usr/bin:/bin'
        self.env = {'PATH': path, 'HOME': str(root / 'home'), 'PIP_QUIET': '1'}
        # No users are made on this machine; what was asked for is looked at instead.
        (root / 'usr' / 'bin' / 'useradd').write_text(f'#!/bin/sh\necho "$@" >{root}/useradd\n')
        (root / 'usr' / 'bin' / 'useradd').chmod(0o755)

    def build(self) -> None:
        for kind, rest in steps()[1:]:
            getattr(self, kind)(rest)

    def WORKDIR(self, rest):
        self.cwd = self.root / rest.lstrip('/')
        self.cwd.mkdir()

    def ARG(self, rest):
        name, _, default = rest.partition('=')
        self.env[name] = self.build_args.get(name, default)

    def ENV(self, rest):
        pairs = [word.split('=', 1) for word in shlex.split(rest)]
        self.env |= {k: re.sub(r'\$(\w+)', lambda m: self.env[m[1]], v) for k, v in pairs}

    def COPY(self, rest):
        source, target = rest.split()
        if (ROOT / source).is_dir():
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / source, self.cwd / target, ignore=ignore)
        else:
            shutil.copy(ROOT / source, self.cwd / target)

    def RUN(self, rest):
        subprocess.run(['/bin/sh', '-c', rest], cwd=self.cwd, env=self.env, check=True)

    def USER(self, rest):
        self.user = rest

    def ENTRYPOINT(self, rest):
        self.entrypoint = yaml.safe_load(rest)

    def run(self, *words: str) -> subprocess.CompletedProcess:
        uid = int(re.search(r'--uid (\d+)', (self.root / 'useradd').read_text())[1])
        who = {'user': uid, 'group': uid, 'extra_groups': []} if os.geteuid() == 0 else {}
        return subprocess.run(
            [*self.entrypoint, *words],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            **who,
        )


@pytest.mark.slow
def test_dockerfile_steps_make_an_image_that_trains(tmp_path_factory):
    """Every step of the Dockerfile for a CPU, then the entry point as the user it names."""
    root = tmp_path_factory.mktemp('image')
    for folder in (root, root.parent, root.parent.parent):
        folder.chmod(0o755)  # pytest's own folders are for their owner alone
    image = Image(root, ACCELERATOR='cpu', COMMIT='c0ffee')
    image.build()
    page = 'experiments/configs/quickstart.py:smoke'
    done = image.run(f'--config={page}', f'--workdir={root}/home/run')
    assert done.returncode == 0, done.stderr
    summary = yaml.safe_load((root / 'home' / 'run' / 'summary.json').read_text())
    assert summary['status'] == 'done' and summary['commit'] == 'c0ffee'
    packages = subprocess.run(
        [root / 'usr/bin/python', '-m', 'pip', 'list'], capture_output=True, text=True
    ).stdout
    assert re.search('^kubernetes ', packages, re.M) and not re.search('nvidia|libtpu', packages)


def test_dockerfile_refuses_another_accelerator(tmp_path):
    run = next(rest for kind, rest in steps() if kind == 'RUN' and 'ACCELERATOR' in rest)
    (tmp_path / 'pip').write_text('#!/bin/sh\necho pip "$@"\n')
    (tmp_path / 'pip').chmod(0o755)

    def try_(accelerator):
        env = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'ACCELERATOR': accelerator}
        return subprocess.run(['/bin/sh', '-c', run], env=env, capture_output=True, text=True)

    assert try_('cpu').stdout.endswith('-r requirements.txt jax[k8s]\n')
    assert try_('cuda13').stdout.endswith('jax[k8s,cuda13]\n')
    assert try_('tpu').stdout.endswith('jax[k8s,tpu]\n')
    done = try_('gpu')
    assert done.returncode == 2 and "not 'gpu'" in done.stderr and not done.stdout
