"""Reads runs as records, from a run's folder or from the JSON file collected from it.

A preempted run is reported as it stood at its last evaluation.
"""

import json
import pathlib
import re
import shlex

from nin_jax.errors import UserError
from nin_jax.files import file_sha256, read_json, write_text
from nin_jax.runs.workdir import differences

# What the reports read of every record.
# fmt: off
KEYS = {
    'name', 'seed', 'status', 'config', 'final_error', 'epoch', 'epochs', 'device', 'seconds',
    'command',
}
# fmt: on
COLUMNS = ('epoch', 'train_loss', 'train_error', 'test_loss', 'test_error')


class RunError(UserError):
    """A run that cannot be reported."""


def load(path: pathlib.Path) -> list[dict]:
    """Reads the runs at a path: a run's folder, a collected .json, or a folder of either.

    Raises:
      RunError: a run has no result yet, or the path contains no run.
    """
    if path.suffix == '.json' and path.is_file():
        return [check(read_json(path), path)]
    if (path / 'config.json').exists():
        return [from_workdir(path)]
    folders = sorted(config.parent for config in path.glob('*/config.json'))
    found = sorted(path.glob('*.json'))
    if not folders and not found:
        raise RunError(f"'{path}' contains no run: give a run's --workdir, or a folder of results")
    return [from_workdir(f) for f in folders] + [check(read_json(p), p) for p in found]


def check(run: dict, path: pathlib.Path) -> dict:
    """Returns the run; raises RunError unless it is done, or preempted after an evaluation."""
    if KEYS - set(run):
        raise RunError(f"'{path}' is not the record of a run: leave it out")
    if run['status'] not in ('done', 'preempted') or run['final_error'] is None:
        raise RunError(
            f"the run in '{path}' has no result ({run['status']} at epoch {run['epoch']:.4g}): "
            'run its command again or leave it out'
        )
    run['device'].setdefault('processes', 1)  # older records lack it
    return run


def from_workdir(folder: pathlib.Path) -> dict:
    """Reads a run's summary, and its metrics at every evaluation."""
    if not (folder / 'summary.json').exists():
        raise RunError(
            f"the run in '{folder}' has no result (it has no summary.json): "
            'run its command again or leave it out'
        )
    run = read_json(folder / 'summary.json')
    rows = epochs(metrics(folder, run)) if run.get('status') in ('done', 'preempted') else []
    if run.get('status') == 'preempted' and rows:
        run |= {'epoch': rows[-1][0], 'final_error': rows[-1][4]}
    run |= {'name': run_name(folder), 'columns': COLUMNS, 'epochs': rows}
    check(run, folder)
    run['config']['data.dir'] = ''  # specific to this machine
    run['command'] = portable(run['command'], run['name'])
    return run


def portable(command: str, name: str) -> str:
    """Returns a run's command without the folders and addresses of its machines."""
    text = re.sub(r'(\s--?(?:workdir|distributed|config\.data\.dir))\s', r'\1=', command)
    return shlex.join(
        re.sub(r'^--?workdir=[/~].*', f'--workdir=runs/{name}', word)
        for word in shlex.split(text)
        if not re.match(r'--?(config\.data\.dir|distributed)=', word)
    )


def metrics(folder: pathlib.Path, run: dict) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl; RunError unless they are what it wrote."""
    path = folder / 'metrics.jsonl'
    try:
        if run.pop('metrics_sha256', None) not in (None, file_sha256(path)):
            if run['status'] == 'preempted':
                raise RunError(
                    f"the run in '{folder}' has gone on since it was preempted: wait for its end, "
                    'or run its command again'
                )
            raise ValueError('its SHA-256 does not match')
        lines = [json.loads(line) for line in path.open()]
    except (OSError, ValueError) as e:
        raise RunError(f"'{path}' is damaged ({e}): leave the run out") from None
    return [line for line in lines if line['attempt'] == run['attempt']]


def run_name(folder: pathlib.Path) -> str:
    """'cifar10-seed0' for runs/cifar10/seed0; 'aug' for runs/aug."""
    parts = folder.resolve().parts
    return '-'.join(parts[-2:] if re.fullmatch(r'seed\d+', parts[-1]) else parts[-1:])


def epochs(lines: list[dict]) -> list[list[float]]:
    """Returns a row of COLUMNS per evaluation; training values are means since the previous one."""
    rows, since, last = [], [], 0
    for line in lines:
        if line['kind'] == 'train':
            since.append((line['step'] - last, line['loss'], line['error']))
            last = line['step']
        elif since:
            steps = sum(n for n, _, _ in since)
            loss, error = (sum(s[0] * s[i] for s in since) / steps for i in (1, 2))
            values = (line['epoch'], loss, error, line['loss'], line['error'])
            rows.append([round(v, 7) for v in values])
            since = []
    return rows


def collect(run: dict, folder: pathlib.Path) -> pathlib.Path:
    """Writes a run as a JSON file, one key per line; RunError if another run has its name."""
    path = folder / f'{run["name"]}.json'
    run = check(run, path)
    there = check(read_json(path), path) if path.exists() else run
    for key, differ in (
        ('config', differences(there['config'], run['config'])),
        ('device', there['device'] != run['device']),
    ):
        if differ:
            raise RunError(
                f"'{path}' belongs to a run with a different {key}: rename or delete one"
            )
    if there.get('status') == 'done' != run['status']:
        raise RunError(f"'{path}' is of a finished run, and this one is not: delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f'{json.dumps(k)}: {json.dumps(v)}' for k, v in run.items())
    write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')
    return path
