"""python -m launch.jobset: what it prints, against the fields and schemas that Kubernetes has."""

import re
import subprocess
import sys

import pytest
import yaml

from launch.clusters import jobset
from tests.helpers import ROOT

TRAIN = [
    *('python', '-m', 'experiments.main', '--config=a.py:b', '--workdir=/mnt/nin/runs/b'),
    '--distributed=auto',
]
CAPPED = ['python', '-m', 'launch.attempts', '--', *TRAIN]
PREPARE = ['python', '-m', 'experiments.prepare', 'cifar10']
GPU = ['--hosts=2', '--chips=nvidia.com/gpu=8']
TPU = [
    *('--hosts=4', '--chips=google.com/tpu=4', '--select'),
    'cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology=4x4',
]
TOPOLOGY = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
# The fields of JobSet's v1alpha2 schema (config/components/crd of kubernetes-sigs/jobset).
SPEC = {
    *('coordinator', 'failurePolicy', 'managedBy', 'network', 'replicatedJobs', 'startupPolicy'),
    *('successPolicy', 'suspend', 'ttlSecondsAfterFinished'),
}
REASONS = {
    *('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded'),
    'PodFailurePolicy',
}


def render(capsys, *flags: str, command: list[str] = TRAIN) -> list[dict]:
    words = ['--name=nin', '--image=r/nin_jax:x', '--claim=nin', *flags, '--', *command]
    assert jobset.main(words) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def parts(job_set: dict) -> tuple[dict, dict, dict]:
    """Spec of the Job, of its pod, and its container."""
    job = job_set['spec']['replicatedJobs'][0]['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    return job, pod, container


@pytest.mark.parametrize('flags', [GPU, TPU])
def test_it_is_what_jobset_and_jax_expect(flags, capsys):
    account, role, binding, job_set = render(capsys, *flags)
    assert job_set['apiVersion'] == 'jobset.x-k8s.io/v1alpha2' and job_set['kind'] == 'JobSet'
    assert set(job_set['spec']) <= SPEC
    (replicated,) = job_set['spec']['replicatedJobs']
    assert set(replicated) <= {'name', 'replicas', 'template', 'dependsOn', 'groupName'}
    job, pod, container = parts(job_set)
    hosts = int(flags[0].split('=')[1])
    # jax's K8sCluster: the index from an Indexed job, the count from its parallelism.
    assert job['completionMode'] == 'Indexed'
    assert job['parallelism'] == job['completions'] == hosts and job['backoffLimit'] == 0
    assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] >= 120
    assert container['command'] == CAPPED
    resource, chips = flags[1].removeprefix('--chips=').split('=')
    assert container['resources']['limits'] == {resource: int(chips)}
    assert pod['nodeSelector'] == dict(pair.split('=') for pair in flags[3:])
    assert pod['serviceAccountName'] == account['metadata']['name']
    assert binding['roleRef']['name'] == role['metadata']['name']
    allowed = {r: rule['verbs'] for rule in role['rules'] for r in rule['resources']}
    # What jax's K8sCluster calls: list pods, list services, read the job.
    assert 'list' in allowed['pods'] and 'list' in allowed['services'] and 'get' in allowed['jobs']
    # JobSet names pods NAME-run-0-INDEX-xxxxx, of which a label may have 63 characters.
    assert len(job_set['metadata']['name'] + '-run-0-') + 12 < 63


def outcome(job_set: dict, code: int, conditions: tuple = ()) -> str:
    """What becomes of a failed pod, by the documented order of both policies' rules."""
    job, _, container = parts(job_set)
    reason = 'BackoffLimitExceeded'  # backoffLimit is 0
    for rule in job['podFailurePolicy']['rules']:
        codes = rule.get('onExitCodes')
        wanted = [c['type'] for c in rule.get('onPodConditions', []) if c['status'] == 'True']
        assert not codes or codes['containerName'] == container['name']
        assert not codes or codes['operator'] == 'In'
        if (codes and code in codes['values']) or set(wanted) & set(conditions):
            if rule['action'] == 'Ignore':
                return 'the pod is replaced'
            assert rule['action'] == 'FailJob'
            reason = 'PodFailurePolicy'
            break
    for rule in job_set['spec']['failurePolicy']['rules']:
        assert set(rule) <= {'name', 'action', 'onJobFailureReasons', 'targetReplicatedJobs'}
        assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
        assert set(rule['onJobFailureReasons']) <= REASONS
        if reason in rule['onJobFailureReasons']:
            return rule['action']
    return 'RestartJobSet'


@pytest.mark.parametrize('flags', [GPU, TPU, ['--chips=nvidia.com/gpu=1']])
def test_exit_codes(flags, capsys):
    *_, job_set = render(capsys, *flags)
    alone = not flags[0].startswith('--hosts')
    assert outcome(job_set, 2) == outcome(job_set, 127) == 'FailJobSet'
    assert (outcome(job_set, 1) == 'FailJobSet') == alone  # diverged; else it may have lost a host
    for code in (75, 134, 137, 143):
        assert outcome(job_set, code) == 'RestartJobSetAndIgnoreMaxRestarts'
    for code in (75, 137, 143):  # spot pre-emption, a drained node, an eviction
        assert outcome(job_set, code, ('DisruptionTarget',)) == 'the pod is replaced'


def test_a_command_without_a_workdir_is_restarted_a_number_of_times(capsys):
    *_, job_set = render(capsys, '--chips=cpu=1', command=PREPARE)
    assert parts(job_set)[2]['command'] == PREPARE
    assert outcome(job_set, 75) == 'RestartJobSet'
    assert job_set['spec']['failurePolicy']['maxRestarts'] == 20
    assert outcome(job_set, 75, ('DisruptionTarget',)) == 'the pod is replaced'


def test_a_tpu_slice_is_not_shared(capsys):
    *_, job_set = render(capsys, *TPU)
    assert job_set['metadata']['annotations'] == {TOPOLOGY: 'cloud.google.com/gke-nodepool'}
    *_, job_set = render(capsys, *GPU)
    assert job_set['metadata']['annotations'] == {}
    *_, job_set = render(capsys, *GPU, '--exclusive=example.com/rack')
    assert job_set['metadata']['annotations'] == {TOPOLOGY: 'example.com/rack'}


def test_namespace_queue_environment_and_secrets(capsys):
    flags = ['--namespace=team', '--queue=gpus', '--env', 'A=b=c d', 'B=', '--secret', 'pg', 's3']
    account, role, binding, job_set = render(capsys, *GPU, *flags)
    documents = (account, role, binding, job_set)
    assert [d['metadata']['namespace'] for d in documents] == ['team'] * 4
    assert binding['subjects'][0]['namespace'] == 'team'  # the API server requires it
    assert job_set['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'gpus'}
    container = parts(job_set)[2]
    env = {pair['name']: pair['value'] for pair in container['env']}
    assert env == {'TFDS_DATA_DIR': '/mnt/nin/tensorflow_datasets', 'A': 'b=c d', 'B': ''}
    assert container['envFrom'] == [{'secretRef': {'name': 'pg'}}, {'secretRef': {'name': 's3'}}]


ALL = ['--namespace=team', '--queue=q', '--exclusive=x/y', '--env', 'A=b', '--secret', 'pg']


@pytest.mark.parametrize('flags', [GPU, TPU, [*GPU, *ALL]])
def test_kubernetes_schemas(flags, capsys):
    """Kubernetes' own schemas, strictly: a field it does not know is an error."""
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    *others, job_set = render(capsys, *flags)
    template = job_set['spec']['replicatedJobs'][0]['template']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'nin'}, **template}
    bucket = yaml.safe_load_all((ROOT / 'launch' / 'clusters' / 'gke_bucket.yaml').read_text())
    for document in [*others, job, *bucket]:
        kubernetes_validate.validate(document, '1.33', strict=True)
    job['spec']['template']['spec']['restartPolicies'] = 'Never'
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, '1.33', strict=True)


NEEDED = ['--name=nin', '--image=i', '--claim=c', '--chips=x=1']


@pytest.mark.parametrize(
    'words, key',
    [
        (NEEDED, 'command'),
        ([*NEEDED, '--name=Nin', '--', 'a'], "--name='Nin'"),
        ([*NEEDED, '--queue=a b', '--', 'a'], "--queue='a b'"),
        ([*NEEDED, '--namespace=A', '--', 'a'], "--namespace='A'"),
        ([*NEEDED, '--env', 'A', '--', 'a'], "'A'"),
        ([*NEEDED, '--chips=8', '--', 'a'], "'8'"),
        ([*NEEDED, '--chips=x=0', '--', 'a'], '--chips=x=0'),
        (['--name=nin', '--', 'a'], '--image'),
    ],
)
def test_mistakes(words, key, capsys):
    try:
        status = jobset.main(words)
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.startswith('error: ') and key in err and err.count('\n') == 1


def test_the_public_command():
    words = [sys.executable, '-m', 'launch.jobset', *NEEDED, '--', *TRAIN]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('kind: JobSet') == 1


def test_launching_does_not_import_jax():
    code = "import sys, launch.jobset, launch.attempts; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
