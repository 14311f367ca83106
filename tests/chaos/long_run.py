"""Memory, open files and disk of a long run with many checkpoints, evaluations and records.

    python -m tests.chaos.long_run --steps=10000

Looks at the process from outside (/proc) and at its folder, five times a second; fits a line to
the memory after the first fifth of the steps. Fails above --slope KiB per 1,000 steps, or if files
stay open, or checkpoints pile up, or metrics.jsonl lacks a line.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.chaos.lab import PAGE, ROOT

CALL, EVERY = 5, 50  # steps


def main() -> int:
    parser = argparse.ArgumentParser(prog='tests.chaos.long_run')
    parser.add_argument('--steps', type=int, default=10_000)
    parser.add_argument('--slope', type=float, default=100.0, help='KiB per 1,000 steps allowed')
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix='long-'))
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen(
            command(folder / 'run', args.steps),
            cwd=ROOT,
            env=os.environ | {'JAX_PLATFORMS': 'cpu'},
            stdout=log,
            stderr=log,
        )
        samples = watch(process, folder / 'run')
    problems = judge(folder / 'run', process.returncode, np.array(samples), args)
    for problem in problems:
        print(f'{problem}; see {folder}')
    if not problems:
        shutil.rmtree(folder)
    return bool(problems)


def command(workdir: pathlib.Path, steps: int) -> list[str]:
    return [
        *(sys.executable, '-m', 'experiments.main', f'--config={PAGE}', f'--workdir={workdir}'),
        *(f'--config.train.duration={steps}steps', f'--config.train.steps_per_call={CALL}'),
        *(f'--config.eval.every={EVERY}steps', f'--config.checkpoint.every={EVERY}steps'),
        '--config.optim.lr=0.02',  # at 0.1, a hidden layer dies
    ]


def watch(process: subprocess.Popen, workdir: pathlib.Path) -> list[tuple[float, ...]]:
    """Rows of step, KiB of memory, open files, threads, KiB of checkpoints, until it ends.

    Memory is the process's own, RssAnon: files' pages come and go as the kernel likes.
    """
    samples, metrics, size, step = [], workdir / 'metrics.jsonl', 0, 0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            status = dict(
                line.split(':', 1)
                for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines()
            )
            files = len(os.listdir(f'/proc/{process.pid}/fd'))
            memory, threads = kib(status['RssAnon']), int(status['Threads'])
            with open(metrics) as f:
                f.seek(size)
                new = f.read()
        except (FileNotFoundError, KeyError):  # not begun, or just over
            continue
        whole = new[: new.rfind('\n') + 1]
        size += len(whole)
        if whole:
            step = json.loads(whole.splitlines()[-1])['step']
        samples.append((step, memory, files, threads, used(workdir)))
    return samples


def kib(text: str) -> int:
    return int(text.split()[0])


def used(workdir: pathlib.Path) -> float:
    """KiB in checkpoints, one that vanishes meanwhile aside."""
    total = 0
    for root, _, files in os.walk(workdir / 'checkpoints'):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total / 1024


def judge(workdir: pathlib.Path, status: int, samples: np.ndarray, args) -> list[str]:
    """Prints the figures; returns what is wrong with them."""
    steps, memory, files, threads, disk = samples[samples[:, 0] >= args.steps / 5].T
    slope, start = np.polyfit(steps / 1000, memory, 1)
    late = steps >= args.steps * 3 / 5
    late_slope = np.polyfit(steps[late] / 1000, memory[late], 1)[0]
    kept = len(list((workdir / 'checkpoints').glob('[0-9]*')))
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    print(
        f'{args.steps:,} steps, {args.steps // EVERY} checkpoints and evaluations, '
        f'{len(steps)} samples after step {args.steps // 5:,}\n'
        f'memory     {start / 1024:.1f} MiB {slope:+.1f} KiB per 1,000 steps '
        f'(from step {args.steps * 3 // 5:,} on {late_slope:+.1f}), '
        f'{memory.min() / 1024:.1f} to {memory.max() / 1024:.1f} MiB\n'
        f'open files {files.min():.0f} to {files.max():.0f}, '
        f'threads {threads.min():.0f} to {threads.max():.0f}\n'
        f'disk       checkpoints {disk.min():.0f} to {disk.max():.0f} KiB, {kept} kept at the end; '
        f'metrics.jsonl {len(lines):,} lines'
    )
    expected = args.steps // CALL + args.steps // EVERY
    return [
        words
        for bad, words in (
            (status != 0, f'exit status {status}'),
            (slope > args.slope, f'memory grows by {slope:.1f} KiB per 1,000 steps'),
            (np.ptp(files) > 25, 'the number of open files is not steady'),
            (files[-20:].mean() > files[:20].mean() + 5, 'files stay open'),
            (kept > 3, f'{kept} checkpoints kept'),
            (disk.max() > 6 * disk[-1] / kept, 'checkpoints pile up on the disk'),
            (len(lines) != expected, f'{len(lines)} lines of metrics, expected {expected}'),
        )
        if bad
    ]


if __name__ == '__main__':
    sys.exit(main())
