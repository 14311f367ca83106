"""Training and forward throughput, this code base and PyTorch side by side.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.throughput --networks cifar10,mnist --batches 32,128 --out cpu.json

Every contestant lives in a process of its own (so that peak memory and thread pools are its own)
and they take turns, round after round, while the others sleep: what else the machine does hits all
alike. The median round counts. Compilation and warm-up are timed apart. On a machine with a GPU
and the GPU builds of both libraries the same command makes the GPU's table.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from functools import partial

from benchmarks import contestants

VARIANTS = {  # name -> (dtype, function that builds it)
    'ours': ('float32', contestants.ours),
    'torch': ('float32', partial(contestants.pytorch, channels_last=False, compiled=False)),
    'torch nhwc': ('float32', partial(contestants.pytorch, channels_last=True, compiled=False)),
    'torch compile': ('float32', partial(contestants.pytorch, channels_last=True, compiled=True)),
    'ours bf16': ('bfloat16', contestants.ours),
    'torch nhwc bf16': (
        'bfloat16',
        partial(contestants.pytorch, channels_last=True, compiled=False),
    ),
    'torch compile bf16': (
        'bfloat16',
        partial(contestants.pytorch, channels_last=True, compiled=True),
    ),
}
MODES = {'train': 6, 'forward': 2}  # FLOP for each multiply-add of the forward pass


def serve(pipe, variant: str, network: str, batch_size: int, steps: int) -> None:
    """A contestant's process: answers (mode, 'seconds') until told to stop."""
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # leave the others some of the GPU
    dtype, build = VARIANTS[variant]
    try:
        contestant = build(network, dtype, batch_size, steps)
        while (mode := pipe.recv()) != 'stop':
            pipe.send(getattr(contestant, mode)())
        pipe.send(contestant.peak_memory())
    except Exception as e:
        # A variant that the machine lacks (no C++ compiler for torch.compile, ...) is a row.
        pipe.send(f'{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ""}')


def ask(pipe, question: str, seconds: float) -> float | str:
    """The answer, or why there is none."""
    try:
        pipe.send(question)
        return pipe.recv() if pipe.poll(seconds) else f'no answer in {seconds:.0f} s'
    except (EOFError, OSError):
        return 'its process died'


def measure(network: str, batch_size: int, options: argparse.Namespace) -> list[dict]:
    """Rows of results, one for each variant and mode."""
    context = multiprocessing.get_context('spawn')
    processes, pipes, rows = {}, {}, {}
    for variant in options.variants:
        pipes[variant], theirs = context.Pipe()
        processes[variant] = context.Process(
            target=serve, daemon=True, args=(theirs, variant, network, batch_size, options.steps)
        )
        processes[variant].start()
        theirs.close()  # so that a dead process ends the wait for its answer
        for mode in MODES:  # one after the other: compilation is timed too
            warm_up = ask(pipes[variant], mode, options.limit)
            rows[variant, mode] = dict(
                network=network,
                batch_size=batch_size,
                variant=variant,
                mode=mode,
                dtype=VARIANTS[variant][0],
                compile_and_first_s=warm_up,
                rounds_s=[],
            )
            if isinstance(warm_up, str):
                rows[variant, mode]['failed'] = warm_up
    for _ in range(options.rounds):
        for mode in MODES:
            for variant in options.variants:
                row = rows[variant, mode]
                if 'failed' in row:
                    continue
                seconds = ask(pipes[variant], mode, options.limit)
                if isinstance(seconds, str):
                    row['failed'] = seconds
                else:
                    row['rounds_s'].append(seconds)
    for variant, process in processes.items():
        peak = ask(pipes[variant], 'stop', 30)
        process.join(10)
        if process.is_alive():
            process.kill()
        for mode in MODES:
            rows[variant, mode]['peak_memory_bytes'] = peak
    return finish(list(rows.values()), network, batch_size, options.steps)


def finish(rows: list[dict], network: str, batch_size: int, steps: int) -> list[dict]:
    """Adds images/s, FLOP/s and the ratio to the best PyTorch row of the same mode and dtype."""
    macs = contestants.macs_per_image(network)
    for row in rows:
        if 'failed' not in row:
            row['images_per_s'] = batch_size * steps / statistics.median(row['rounds_s'])
            row['flop_per_s'] = row['images_per_s'] * macs * MODES[row['mode']]
    for row in rows:
        rivals = [
            r['images_per_s']
            for r in rows
            if r['variant'].startswith('torch')
            and r['mode'] == row['mode']
            and r['dtype'] == row['dtype']
            and 'failed' not in r
        ]
        if rivals and 'failed' not in row:
            row['ratio_to_best_torch'] = row['images_per_s'] / max(rivals)
    return rows


def show(rows: list[dict]) -> None:
    head = rows[0]
    print(
        f'\n{head["network"]}, batch {head["batch_size"]}\n'
        f'{"mode":8} {"variant":19} {"images/s":>9} {"/ best torch":>12} {"GFLOP/s":>9} '
        f'{"first, s":>9} {"peak, MiB":>10}'
    )
    for row in sorted(rows, key=lambda row: list(MODES).index(row['mode'])):
        start = f'{row["mode"]:8} {row["variant"]:19} '
        if 'failed' in row:
            print(start + row['failed'][:80])
            continue
        ratio = f'{row["ratio_to_best_torch"]:.2f}' if 'ratio_to_best_torch' in row else ''
        print(
            start + f'{row["images_per_s"]:9.1f} {ratio:>12} '
            f'{row["flop_per_s"] / 1e9:9.1f} {row["compile_and_first_s"]:9.1f} '
            f'{row["peak_memory_bytes"] / 2**20:10.0f}',
            flush=True,
        )


def circumstances() -> dict:
    """Command, commit, versions and hardware."""

    def output(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            return done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ''

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return 'not installed'

    cpu_info = pathlib.Path('/proc/cpuinfo')
    names = [
        line.split(':')[1].strip()
        for line in (cpu_info.read_text().splitlines() if cpu_info.exists() else ())
        if line.startswith('model name')
    ]
    return {
        'command': ['python', '-m', 'benchmarks.throughput', *sys.argv[1:]],
        'commit': output('git', 'rev-parse', 'HEAD') or 'unknown',
        'uncommitted_changes': bool(output('git', 'status', '--porcelain')),
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'python': platform.python_version(),
        'versions': {package: version(package) for package in ('jax', 'jaxlib', 'flax', 'torch')},
        'cpu': names[0] if names else platform.processor(),
        'cpu_count': len(os.sched_getaffinity(0)),
        'load_average': os.getloadavg(),
        'gpu': output('nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader'),
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def names(known):
        def split(text: str) -> list[str]:
            if wrong := [name for name in text.split(',') if name not in known]:
                raise argparse.ArgumentTypeError(f'{wrong[0]!r} is not one of {", ".join(known)}')
            return text.split(',')

        return split

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
        return int(text)

    parser.add_argument(
        '--networks', type=names(contestants.NETWORKS), default=['cifar10', 'cifar100', 'mnist']
    )
    parser.add_argument(
        '--variants',
        type=names(VARIANTS),
        default=list(VARIANTS),
        help=f'of: {", ".join(VARIANTS)}',
    )
    parser.add_argument(
        '--batches', type=lambda text: [positive(b) for b in text.split(',')], default=[32, 128]
    )
    parser.add_argument(
        '--steps',
        type=positive,
        default=4,
        help='batches in a measurement (ours: one dispatch); on a GPU try 100',
    )
    parser.add_argument('--rounds', type=positive, default=7, help='the median round counts')
    parser.add_argument(
        '--limit', type=positive, default=600, help='seconds to wait for one measurement'
    )
    parser.add_argument('--out', type=pathlib.Path, help='write the results here, as JSON')
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    options = parse(argv)
    results = {**circumstances(), 'results': []}
    for network in options.networks:
        for batch_size in options.batches:
            rows = measure(network, batch_size, options)
            show(rows)
            results['results'] += rows
            if options.out:  # after each table: a run that is stopped keeps what it has
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
