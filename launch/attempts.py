"""Runs a training command, with a limit on starts that make no progress.

    python -m launch.attempts [--most=10] -- python -m experiments.main --workdir=W ...

Launchers restart a run that was pre-empted or that failed temporarily. This program counts, in
W/attempts.json, the consecutive starts that saved no newer checkpoint, and refuses to start after
`most` of them. Runs that make progress can restart without limit. Of several processes, only the
first counts. Exit status: the command's; 2 if the limit is reached or the count cannot be written,
75 if that is temporary, such as a full disk.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable

from etils import epath

from nin_jax.errors import EXIT_USAGE, one_line, status_of

MOST = 10
# Kubernetes and SkyPilot start this once per host; SLURM's batch script starts it once per job.
RANKS = ('JOB_COMPLETION_INDEX', 'SKYPILOT_NODE_RANK')


def main(argv: list[str]) -> int:
    at = argv.index('--') if '--' in argv else len(argv)
    most, words = re.fullmatch(r'(?:--most=([1-9]\d*))?', ' '.join(argv[:at])), argv[at + 1 :]
    if not words or most is None:
        return fail('usage: python -m launch.attempts [--most=N] -- COMMAND...')
    workdir = find_workdir(words)
    if workdir and all(os.environ.get(name, '0') == '0' for name in RANKS):
        try:
            refusal = retry(lambda: count(epath.Path(workdir), int(most[1] or MOST)))
        except Exception as e:  # clients of buckets raise their own exceptions
            return fail(f"cannot count the starts in '{workdir}': {one_line(e)}", status_of(e))
        if refusal:
            return fail(refusal)
    try:
        os.execvp(words[0], words)
    except OSError as e:
        return fail(f"cannot start '{words[0]}': {e.strerror}")


def find_workdir(words: list[str]) -> str:
    """Returns the value of --workdir; '' if the command has none."""
    for word, after in zip(words, [*words[1:], ''], strict=True):
        if match := re.fullmatch(r'--?workdir(?:=(.*))?', word):
            return after if match[1] is None else match[1]
    return ''


def count(workdir: epath.Path, most: int) -> str:
    """Counts a start; returns an error message instead after `most` starts without progress."""
    file, step = workdir / 'attempts.json', newest_step(workdir)
    try:
        known = json.loads(file.read_text())
        best, starts = int(known['step']), int(known['starts'])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # missing, or truncated by a kill
        best, starts = -1, 0
    starts = 0 if step > best else starts
    if starts >= most:
        file.unlink()  # a manual rerun starts counting from zero
        return (
            f"'{workdir}' was started {starts} times without a checkpoint newer than step "
            f'{best}: find the cause in its log, then run the command again'
        )
    workdir.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({'step': max(step, best), 'starts': starts + 1}) + '\n')
    return ''


def newest_step(workdir: epath.Path) -> int:
    """Returns the step of the newest complete checkpoint; -1 if there is none."""
    try:
        names = [path.name for path in (workdir / 'checkpoints').iterdir()]
    except FileNotFoundError:
        return -1
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def retry(action: Callable[[], str], more: int = 2) -> str:
    """Retries an action on network storage up to `more` times; raises the last error."""
    for _ in range(more):
        try:
            return action()
        except Exception:
            time.sleep(float(os.environ.get('NIN_RETRY_SECONDS', '10')))
    return action()


def fail(message: str, status: int = EXIT_USAGE) -> int:
    print(f'error: {message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
