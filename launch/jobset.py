"""Prints a Kubernetes JobSet that runs one command on several hosts, from launch/jobset.yaml.

    python -m launch.jobset --name=nin --image=registry/nin_jax:cuda13 --claim=nin --hosts=2 \\
        --chips=nvidia.com/gpu=8 -- python -m experiments.main \\
        --config=experiments/configs/cifar10.py --workdir=/mnt/nin/runs/x --distributed=auto \\
        | kubectl apply -f -

For a TPU slice on GKE:

    --hosts=4 --chips=google.com/tpu=4 \\
        --select cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice \\
        cloud.google.com/gke-tpu-topology=4x4

--claim is a PersistentVolumeClaim that all hosts may write to; it becomes /mnt/nin.
"""

import argparse
import json
import pathlib
import re
import string
import sys

from experiments import cli

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')


def main(argv: list[str]) -> int:
    words, command = argv, []
    if '--' in argv:
        at = argv.index('--')
        words, command = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(
        prog='launch.jobset',
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: sys.exit(cli.print_error(message))
    parser.add_argument('--name', required=True, help='of the JobSet and its service account')
    parser.add_argument('--image', required=True, help='built from launch/Dockerfile')
    parser.add_argument('--claim', required=True, help='a PersistentVolumeClaim')
    parser.add_argument('--hosts', type=int, default=1, help='pods, one for each host')
    parser.add_argument('--chips', required=True, help='RESOURCE=N for each host')
    parser.add_argument('--select', nargs='*', default=[], help='KEY=VALUE of the nodes to use')
    args = parser.parse_args(words)
    if not command:
        return cli.print_error('a command is missing: write it behind --')
    if not re.fullmatch('[a-z]([-a-z0-9]{0,30}[a-z0-9])?', args.name):
        return cli.print_error(f"--name='{args.name}': use a-z, 0-9 and -, at most 32 of them")
    for pair in [args.chips, *args.select]:
        if not re.fullmatch('[^=]+=[^=]+', pair):
            return cli.print_error(f"'{pair}' is not of the form KEY=VALUE")
    resource, chips = args.chips.split('=')
    if args.hosts < 1 or not re.fullmatch('[1-9][0-9]*', chips):
        return cli.print_error(f'--hosts={args.hosts} --chips={args.chips}: give 1 or more of each')
    print(
        string.Template(TEMPLATE.read_text()).substitute(
            name=args.name,
            image=json.dumps(args.image),
            claim=json.dumps(args.claim),
            hosts=args.hosts,
            # JSON is YAML. Among several hosts a lost one makes the others end with 1, too.
            for_good=json.dumps([1, 2] if args.hosts == 1 else [2]),
            select=json.dumps(dict(pair.split('=') for pair in args.select)),
            command=json.dumps(command),
            resource=json.dumps(resource),
            chips=chips,
        ),
        end='',
    )
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
