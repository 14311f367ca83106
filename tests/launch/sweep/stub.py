"""Stands in for experiments.main: five steps in about 0.1 s, resumed and stopped as a run would.

STUB_STEP_S, in the environment, is how long a step takes; STUB_FAILS names points, with commas
between, and the exit status with which they end, such as 3:1.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

STEPS = 5


def main(argv: list[str]) -> int:
    words = dict(word.removeprefix('--').partition('=')[::2] for word in argv)
    folder = pathlib.Path(words['workdir'])
    number = int(folder.name.removeprefix('trial-'))
    lock = open(folder / 'stub.lock', 'a')  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / 'two at once').touch()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    fails = dict(pair.split(':') for pair in os.environ.get('STUB_FAILS', '').split(',') if pair)
    if str(number) in fails:
        print(f'error: point {number} fails')
        return int(fails[str(number)])
    metrics = folder / 'metrics.jsonl'
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    if done:
        print(f'resuming at step {done}')
    error = float(words['config.seed']) / 1000
    with open(metrics, 'a') as f:
        for step in range(done + 1, STEPS + 1):
            if stop:
                return 75
            time.sleep(float(os.environ.get('STUB_STEP_S', '0.02')))
            line = dict(kind='eval', attempt=0, epoch=step, step=step, loss=0.0, error=error)
            f.write(json.dumps(line) + '\n')
            f.flush()
    summary = {'status': 'done', 'final_error': error, 'step': STEPS, 'seconds': {'train': 0.1}}
    (folder / 'summary.tmp').write_text(json.dumps(summary))
    (folder / 'summary.tmp').rename(folder / 'summary.json')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
