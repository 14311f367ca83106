"""Prints a Kubernetes JobSet that runs one command on several hosts; see jobset.yaml.

    python -m launch.jobset --name=nin --image=registry/nin_jax:cuda13 --claim=nin --hosts=2 \\
        --chips=nvidia.com/gpu=8 -- python -m experiments.main \\
        --config=experiments/configs/cifar10.py --workdir=/mnt/nin/runs/x --distributed=auto \\
        | kubectl apply -f -

For a TPU slice on GKE, on spot capacity:

    --hosts=4 --chips=google.com/tpu=4 --select cloud.google.com/gke-spot=true \\
        cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice \\
        cloud.google.com/gke-tpu-topology=4x4

--claim is a PersistentVolumeClaim that all hosts can write to, mounted at /mnt/nin. A command with
--workdir is restarted while it makes progress (launch.attempts); other commands, up to 20 times.
Exit status 2 is a permanent failure; on a single host, 1 is too.
"""

import argparse
import json
import pathlib
import re
import string
import sys

from launch import attempts

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')
NAME = '[a-z]([-a-z0-9]{0,30}[a-z0-9])?'  # JobSet appends to it; a label has at most 63 characters
PERMANENT = [2, 126, 127]  # a user error; the command is not executable or does not exist


def main(argv: list[str]) -> int:
    at = argv.index('--') if '--' in argv else len(argv)
    args, command = make_parser().parse_args(argv[:at]), argv[at + 1 :]
    if not command:
        return attempts.fail('the command is missing: write it after --')
    for flag in ('name', 'namespace', 'queue'):
        value = getattr(args, flag)
        if value and not re.fullmatch(NAME, value):
            return attempts.fail(f"--{flag}='{value}': use a-z, 0-9 and -, at most 32 characters")
    for pair in [args.chips, *args.select]:
        if not re.fullmatch('[^=]+=[^=]+', pair):
            return attempts.fail(f"'{pair}' is not of the form KEY=VALUE")
    for pair in args.env:
        if not re.match('[A-Za-z_][A-Za-z0-9_]*=', pair):
            return attempts.fail(f"--env '{pair}' is not of the form NAME=VALUE")
    if args.hosts < 1 or not re.fullmatch('[1-9][0-9]*', args.chips.split('=')[1]):
        return attempts.fail(f'--hosts={args.hosts} --chips={args.chips}: both must be at least 1')
    print(string.Template(TEMPLATE.read_text()).substitute(fields(args, command)), end='')
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='launch.jobset',
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: sys.exit(attempts.fail(message))
    add = parser.add_argument
    add('--name', required=True, help='name of the JobSet and its service account')
    add('--image', required=True, help='container image, built from launch/Dockerfile')
    add('--claim', required=True, help='a PersistentVolumeClaim')
    add('--hosts', type=int, default=1, help='number of pods, one per host')
    add('--chips', required=True, help='RESOURCE=N per host')
    add('--select', nargs='*', default=[], help='KEY=VALUE labels of the nodes to use')
    add('--namespace', default='default', help='namespace of all objects')
    add('--queue', default='', help='a LocalQueue of Kueue')
    add(
        '--exclusive',
        help='node label for exclusive placement; for TPUs the node pool, which is one slice',
    )
    add('--env', nargs='*', default=[], help='NAME=VALUE environment variables')
    add('--secret', nargs='*', default=[], help='Secrets whose keys become environment variables')
    return parser


def fields(args: argparse.Namespace, command: list[str]) -> dict[str, str]:
    """Returns the values for the template's placeholders, as JSON, which is valid YAML."""
    resource, chips = args.chips.split('=')
    exclusive = args.exclusive
    if exclusive is None and resource == 'google.com/tpu':
        exclusive = 'cloud.google.com/gke-nodepool'
    restart = 'RestartJobSet'
    if attempts.find_workdir(command):
        restart = 'RestartJobSetAndIgnoreMaxRestarts'
        command = ['python', '-m', 'launch.attempts', '--', *command]
    env = {'TFDS_DATA_DIR': '/mnt/nin/tensorflow_datasets'}
    env |= dict(pair.split('=', 1) for pair in args.env)
    values = {
        'name': args.name,
        'namespace': args.namespace,
        'labels': {'kueue.x-k8s.io/queue-name': args.queue} if args.queue else {},
        'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': exclusive}
        if exclusive
        else {},
        'restart': restart,
        'image': args.image,
        'claim': args.claim,
        'hosts': args.hosts,
        # With several hosts, status 1 can be caused by the loss of another host.
        'for_good': sorted([1, *PERMANENT] if args.hosts == 1 else PERMANENT),
        'select': dict(pair.split('=') for pair in args.select),
        'command': command,
        'env': [{'name': name, 'value': value} for name, value in env.items()],
        'secrets': [{'secretRef': {'name': name}} for name in args.secret],
        'resource': resource,
        'chips': int(chips),
    }
    return {key: json.dumps(value) for key, value in values.items()}


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
