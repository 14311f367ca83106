"""Cloud TPU VMs by gcloud: the commands as lists of words, and what their answers mean.

The Cloud TPU API knows the chips from v2 to v6e and is no longer developed. A module with the same
functions for Compute Engine or GKE goes in its place; `launch/tpu_machine.py` imports it.

Sources: `gcloud compute tpus {queued-resources,tpu-vm} COMMAND --help` of SDK 528; the states are
those of QueuedResourceState and Node in the API's v2 reference.
"""

import dataclasses

# What a queued resource or its node says once it will not run again: delete it, ask for another.
GONE = ('SUSPENDED', 'FAILED', 'PREEMPTED', 'TERMINATED', 'STOPPED')
READY = 'ACTIVE'


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice: one queued resource with one node, of one or more VMs ("workers")."""

    name: str
    project: str
    zone: str
    type: str = ''
    version: str = ''
    spot: bool = False

    @property
    def place(self) -> list[str]:
        return [f'--project={self.project}', f'--zone={self.zone}', '--quiet']


QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
NODE = ['gcloud', 'compute', 'tpus', 'tpu-vm']


def create(s: Slice) -> list[str]:
    """Asks for the slice; comes back before it is there."""
    return [
        *QUEUED,
        'create',
        s.name,
        f'--node-id={s.name}',
        f'--accelerator-type={s.type}',
        f'--runtime-version={s.version}',
        *(['--spot'] if s.spot else []),
        '--async',
        *s.place,
    ]


def delete(s: Slice) -> list[str]:
    """Deletes the queued resource and its node; comes back when both are gone."""
    return [*QUEUED, 'delete', s.name, '--force', *s.place]


def queue_state(s: Slice) -> list[str]:
    return [*QUEUED, 'describe', s.name, '--format=value(state.state)', *s.place]


def node_state(s: Slice) -> list[str]:
    """The node's own state: it tells a pre-emption before the queued resource does."""
    return [*NODE, 'describe', s.name, '--format=value(state)', *s.place]


def copy(s: Slice, files: list[str]) -> list[str]:
    """Copies files into the home folder of every worker."""
    return [*NODE, 'scp', *files, f'{s.name}:', '--worker=all', *s.place]


def shell(s: Slice, command: str, worker: str = 'all') -> list[str]:
    """Runs a shell command on workers: 'all', or the number of one (gcloud's own default is 0)."""
    return [*NODE, 'ssh', s.name, f'--worker={worker}', f'--command={command}', *s.place]


def fetch(bucket: str, folder: str) -> list[str]:
    """Copies a folder of the bucket to the same path here; files that are the same stay."""
    return ['gcloud', 'storage', 'rsync', '--recursive', f'gs://{bucket}/{folder}', folder]


def is_missing(stderr: str) -> bool:
    """Whether a failed describe says that there is no such thing; it may only have failed."""
    return 'NOT_FOUND' in stderr


def overall_state(queue: str, node: str) -> str:
    """One state of both: the queued resource's, unless the node is known to be lost."""
    return node if queue == READY and node in GONE else queue
