"""Loses the workers of a sweep by SIGKILL, at random, and checks the account afterwards.

    python -m tests.launch.sweep.stress --losses=500
    python -m tests.launch.sweep.stress --losses=500 --postgres --restarts=5

Several drivers share a study whose runs are stubs of 0.1 s. A killed driver is replaced at once;
in every other case its runs are killed with it.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

from launch.sweep import __main__ as entry
from launch.sweep import attempts, flags, study
from tests.launch.sweep.server import Postgres

HERE = pathlib.Path(__file__).parent
PROGRAM = (sys.executable, '-S', '-E', str(HERE / 'stub.py'))
SWEEP = """
from experiments.space import Sweep, choice

def get_sweep():
    return Sweep(
        config='tests/tiny_page.py',
        space={{'seed': choice(*range(1, {count} + 1))}},
        sampler='grid',
    )
"""


def write_sweep(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A sweep config of `count` points whose errors are known: point n has (n + 1) / 1000."""
    path = folder / 'sweep.py'
    path.write_text(SWEEP.format(count=count))
    return path


def drive(words: Sequence[str], log: pathlib.Path) -> None:
    """One driver; to be called in a process of its own."""
    with open(log, 'a', buffering=1) as f:
        sys.stdout = sys.stderr = f
        status = entry.main(words, PROGRAM)
    os._exit(status)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
        return [int(word) for word in path.read_text().split()]
    return []


def kill(driver: multiprocessing.Process, with_runs: bool) -> None:
    """SIGKILL to a driver and, as when a machine is lost, to its runs."""
    runs = children(driver.pid) if with_runs else []
    for pid in (driver.pid, *runs):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.join()


def stress(
    folder: pathlib.Path,
    url: str,
    losses: int,
    count: int,
    drivers: int,
    workers: int,
    every_s: float,
    restart: Sequence = (),
) -> dict:
    """Runs a sweep of `count` points until about `losses` workers were lost, then to its end.

    Args:
      url: of the database.
      every_s: mean seconds between two kills.
      restart: functions that restart the database, called at even distances.

    Returns:
      Counts, all of which have been checked.
    """
    path, log = write_sweep(folder, count), folder / 'log.txt'
    words = [f'--sweep={path}', '--study=s', f'--workdir={folder}', f'--storage={url}']
    words += [f'--workers={workers}', '--grace=4', '--devices=cpu']
    context, rng = multiprocessing.get_context('fork'), random.Random(0)

    def start() -> multiprocessing.Process:
        process = context.Process(target=drive, args=(words, log))
        process.start()
        return process

    crew, killed, statuses, restarts = [start() for _ in range(drivers)], set(), [], 0
    given, until = 0, time.monotonic() + 3600
    while crew:
        assert time.monotonic() < until, 'the sweep did not come to its end'
        time.sleep(rng.uniform(0.5, 1.5) * every_s if given < losses else 0.2)
        for driver in [d for d in crew if not d.is_alive()]:
            crew.remove(driver)
            statuses.append(driver.exitcode)
        if crew and given < losses:
            driver = rng.choice(crew)
            if children(driver.pid):
                given += workers  # nearly all of its workers hold an attempt
                killed.add(driver.pid)
                kill(driver, with_runs=rng.random() < 0.5)
                crew.remove(driver)
                crew.append(start())
        if restarts < len(restart) and given >= losses * (restarts + 1) / (len(restart) + 1):
            restart[restarts]()
            restarts += 1
    for traceback in re.findall(r'^Traceback.*?^\S*Error.*?$', log.read_text(), re.M | re.S):
        print(traceback, flush=True)
    counts = check(folder, url, count, killed, statuses) | {'restarts': restarts}
    print(counts, flush=True)
    return counts


def check(folder: pathlib.Path, url: str, count: int, killed: set[int], statuses: list) -> dict:
    """Every point has one result, its own; every loss belongs to a driver that was killed."""
    storage = flags.Storage(url)
    database = study.connect(storage, study.RetryPolicy(storage, 60))
    every = attempts.Attempts(study.join(database, 's'), database).by_point()
    tries = [t for per_point in every for t in per_point]
    done = [t for t in tries if t.state.name == 'COMPLETE']
    lost = [t for t in tries if t.state.name == 'FAIL' and 'end' not in t.user_attrs]
    workers = [t.user_attrs['worker'] for t in lost if 'worker' in t.user_attrs]
    owners = {int(worker.split(':')[-1].split('/')[0]) for worker in workers}
    counts = {
        'points': count,
        'complete': len(done),
        'killed drivers': len(killed),
        'lost': len(lost),
        'lost before the first heartbeat': len(lost) - len(workers),
        'lost without a kill': len(owners - killed),
        'duplicates': sum(t.user_attrs.get('end') == 'duplicate' for t in tries),
        'errors': sum(t.user_attrs.get('end') == 'error' for t in tries),
        'given up': sum(t.user_attrs.get('end') == 'given up' for t in tries),
        'two at once': len(list(folder.glob('trial-*/two at once'))),
        'most losses of a point': max(attempts.lost(per_point) for per_point in every),
    }
    assert set(statuses) == {0}, (statuses, counts)
    assert [sum(t in per_point for t in done) for per_point in every] == [1] * count, counts
    assert all(t.value == (t.user_attrs['point'] + 1) / 1000 for t in done)
    for name in ('lost without a kill', 'errors', 'given up', 'two at once'):
        assert counts[name] == 0, counts
    for number in range(count):
        steps = (folder / f'trial-{number}' / 'metrics.jsonl').read_text().count('\n')
        assert steps == 5, f'point {number} made {steps} steps'
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--losses', type=int, default=500)
    parser.add_argument('--points', type=int, default=300)
    parser.add_argument('--drivers', type=int, default=4)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--every', type=float, default=0.7)
    parser.add_argument('--postgres', action='store_true')
    parser.add_argument('--restarts', type=int, default=0)
    args = parser.parse_args()
    sizes = (args.losses, args.points, args.drivers, args.workers, args.every)
    with tempfile.TemporaryDirectory() as folder:
        if not args.postgres:
            stress(pathlib.Path(folder), f'sqlite:///{folder}/study.db', *sizes)
            return
        with Postgres() as server:
            stress(pathlib.Path(folder), server.url, *sizes, [server.restart] * args.restarts)


if __name__ == '__main__':
    main()
