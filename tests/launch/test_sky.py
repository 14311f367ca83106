"""launch/sky: the essentials of the YAML files, and SkyPilot's own parser and optimizer.

SkyPilot is installed on the launching machine only, in an environment of its own: NIN_SKY_PYTHON
names its Python. Tests that need it are skipped where it is absent.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from tests.helpers import ROOT
from tests.stand_ins import BASH

FILES = ['tpu', 'gpu']
SKY_PYTHON = os.environ.get('NIN_SKY_PYTHON', sys.executable)


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / 'launch' / 'sky' / f'{name}.yaml').read_text())


@pytest.mark.parametrize('name', FILES)
def test_essentials(name):
    task = load(name)
    assert task['resources']['use_spot'] is True
    # SkyPilot counts the hosts that it stops as 137, and any host's status is enough to recover:
    # with 137 in this list a mistake, 2, among several hosts would be rerun for ever.
    assert task['resources']['job_recovery'] == {'recover_on_exit_codes': [75]}
    assert task['file_mounts'] == {'/mnt/nin': {'source': 'gs://${BUCKET}', 'mode': 'MOUNT'}}
    assert task['envs']['BUCKET'] is None  # SkyPilot refuses to launch without it
    setup = task['setup'].splitlines()
    assert setup[0] == 'set -e'
    assert any("-e '.[prepare,sweep,stream]' 'jax[" in line for line in setup)
    assert 'experiments.prepare "$DATASET"' in setup[-1]
    assert not task['resources'].get('accelerator_args', {}).get('gcp_queued_resource')


# Records its command line, and exits with the given status.
PYTHON = """#!/bin/sh
echo "$JAX_PLATFORMS $*" >>"$HOME/said"
exit $STATUS
"""


def run(
    name: str, home: pathlib.Path, mounted: str = 'yes', **env: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs a task's `run` with stand-ins; returns the process and what Python was started with."""
    for file, text in {
        'nin_venv/bin/python': PYTHON,
        'bin/mountpoint': f'#!/bin/sh\nexit {int(not mounted)}\n',
    }.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text)
        (home / file).chmod(0o755)
    task = load(name)
    envs = {key: value or 'my-bucket' for key, value in task['envs'].items()}
    envs |= {'HOME': str(home), 'PATH': f'{home}/bin:{os.environ["PATH"]}'}
    envs |= {'SKYPILOT_NUM_NODES': '1', 'STATUS': '0'}
    done = subprocess.run(
        [BASH, '-c', task['run']], env=envs | env, capture_output=True, text=True, timeout=30
    )
    said = home / 'said'
    return done, said.read_text().splitlines() if said.exists() else []


@pytest.mark.parametrize('name', FILES)
def test_run_starts_nothing_without_the_bucket(name, tmp_path):
    done, said = run(name, tmp_path, mounted='')
    assert done.returncode == 1 and done.stderr.startswith('error: ') and not said


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize(
    'status, ends', [(0, 0), (1, 1), (2, 2), (75, 75), (134, 75), (137, 75), (143, 75)]
)
def test_run_ends_with_75_for_what_a_rerun_can_cure(name, status, ends, tmp_path):
    done, (said,) = run(name, tmp_path, STATUS=str(status))
    assert done.returncode == ends
    assert said.startswith(f'{"tpu" if name == "tpu" else "cuda"},cpu -m launch.attempts -- ')
    assert ' --workdir=/mnt/nin/runs/cifar10' in said
    assert ('--distributed' in said) == (name == 'tpu')


def test_several_gpu_nodes_find_each_other(tmp_path):
    nodes = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NUM_NODES': '2'}
    _, (said,) = run('gpu', tmp_path, **nodes, SKYPILOT_NODE_RANK='1')
    assert said.endswith(' --distributed=10.0.0.1:12345,2,1')


# A catalogue of a few machines with invented prices, in the format of those SkyPilot downloads.
CATALOGUES = {
    'gcp/vms.csv': """\
InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice
,,,tpu-v5litepod-8,1,tpu-v5litepod-8,us-west4,us-west4-a,9.6,4.1
n1-highmem-8,8,52,,,,us-west4,us-west4-a,0.5,0.2
g2-standard-4,4,16,,,,us-central1,us-central1-a,0.5,0.2
,,,L4,1,L4,us-central1,us-central1-a,0.3,0.1
""",
    'aws/vms.csv': """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone,GpuInfo
g6.xlarge,L4,1,4,16,0.8,0.4,us-east-1,us-east-1a,L4
""",
    'common/accelerators.csv': 'AcceleratorName,Clouds\nL4,"gcp,aws"\n',
}
DRY_RUN = """
import sys, unittest.mock, sky, yaml
from sky import optimizer
config = yaml.safe_load(open(sys.argv[1]))
envs = [tuple(word.split('=')) for word in sys.argv[2:]]
task = sky.Task.from_yaml_config(config, env_overrides=envs)
with sky.Dag() as dag:
    dag.add(task)
clouds = [sky.clouds.GCP(), sky.clouds.AWS()]
with unittest.mock.patch('sky.check.get_cached_enabled_clouds_or_refresh', return_value=clouds):
    optimizer.Optimizer.optimize(dag)
print('best:', task.best_resources)
"""


@pytest.fixture
def dry_run(tmp_path):
    """Parses a task file with SkyPilot's schema and chooses a machine for it, offline."""
    if subprocess.run([SKY_PYTHON, '-c', 'import sky'], capture_output=True).returncode:
        pytest.skip('SkyPilot is not installed: set NIN_SKY_PYTHON to a Python that has it')
    for name, text in CATALOGUES.items():
        file = tmp_path / '.sky' / 'catalogs' / 'v8' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    env = os.environ | {'HOME': str(tmp_path), 'SKYPILOT_DISABLE_USAGE_COLLECTION': '1'}

    def dry_run(file: pathlib.Path, *envs: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [SKY_PYTHON, '-c', DRY_RUN, str(file), *envs],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return dry_run


@pytest.mark.parametrize('name, machine', [('tpu', 'TPU-VM[Spot]'), ('gpu', 'g2-standard-4[Spot]')])
def test_skypilot_finds_a_machine(name, machine, dry_run):
    done = dry_run(ROOT / 'launch' / 'sky' / f'{name}.yaml', 'BUCKET=my-bucket')
    assert done.returncode == 0, done.stderr
    assert f'best: GCP({machine}' in done.stdout


@pytest.mark.parametrize('mistake', ['no bucket', 'unknown field', 'status'])
def test_skypilot_refuses_mistakes(mistake, dry_run, tmp_path):
    task, envs = load('tpu'), ['BUCKET=my-bucket']
    if mistake == 'no bucket':
        envs = []
    elif mistake == 'unknown field':
        task['resources']['use_spots'] = True
    else:
        task['resources']['job_recovery']['recover_on_exit_codes'] = [300]
    (tmp_path / 'task.yaml').write_text(yaml.safe_dump(task))
    done = dry_run(tmp_path / 'task.yaml', *envs)
    words = {'no bucket': 'BUCKET', 'unknown field': 'use_spots', 'status': '300'}
    assert done.returncode and words[mistake] in done.stderr
