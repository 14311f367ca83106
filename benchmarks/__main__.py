"""Benchmarks this code base on this machine against PyTorch; writes a JSON and a Markdown file.

    pip install -e '.[prepare,benchmarks]'
    python -m benchmarks --out=results/benchmarks/cpu.json
    python -m benchmarks --parts=throughput --networks=cifar10 --batches=128 --rounds=3
    python -m benchmarks --parts=recipe --rounds=3  # minutes of cifar10.py:fast

On a machine with a GPU and the GPU builds of both libraries, the same command benchmarks the GPU;
use `--steps=100` there. A measurement that fails (no C++ compiler for torch.compile, a dataset that
is not prepared) becomes a row with the reason.
"""

import argparse
import json
import pathlib
import sys

from benchmarks import backends, peak_flops, recipe, scaling, startup, tables, throughput
from benchmarks.environment import environment, positive
from experiments import cli

PARTS = ('throughput', 'recipe', 'startup', 'scaling')


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    peak = peak_flops.measure(limit=options.limit)
    results = environment() | {'peak_flops': peak, 'throughput': []}

    def keep() -> None:  # after each table, so that an interrupted run keeps its results
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + '\n')
            options.out.with_suffix('.md').write_text(tables.report(results))

    if 'throughput' in options.parts:
        for network in options.networks:
            for batch_size in options.batches:
                rows = throughput.measure(
                    network,
                    batch_size,
                    options.variants,
                    steps=options.steps,
                    rounds=options.rounds,
                    limit=options.limit,
                )
                results['throughput'] += rows
                keep()
                print(tables.throughput(rows, results['peak_flops']), flush=True)
    if 'recipe' in options.parts:
        results['recipe'] = recipe.measure(
            options.recipe,
            options.variants,
            steps=options.steps,
            rounds=options.rounds,
            limit=options.limit,
        )
        keep()
        print(tables.recipe(results['recipe']), flush=True)
    if 'startup' in options.parts:
        results['startup'] = startup.measure(options.repeats, options.limit)
        keep()
        print(tables.startup(results['startup']), flush=True)
    if 'scaling' in options.parts:
        results['scaling'] = scaling.measure(options.networks[0], options.repeats, options.limit)
        keep()
        print(tables.scaling(results['scaling']), flush=True)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks', description=__doc__.splitlines()[0], allow_abbrev=False
    )

    def names(known):
        def split(text: str) -> list[str]:
            if wrong := [name for name in text.split(',') if name not in known]:
                raise argparse.ArgumentTypeError(f'{wrong[0]!r} is not one of {", ".join(known)}')
            return text.split(',')

        return split

    def positives(text: str) -> list[int]:
        return [positive(word) for word in text.split(',')]

    def json_file(text: str) -> pathlib.Path:
        if not text.endswith('.json'):
            raise argparse.ArgumentTypeError(f'{text!r} does not end in .json')
        return pathlib.Path(text)

    def choice(flag: str, known, default: list[str]):
        parser.add_argument(
            flag, type=names(known), default=default, help=f'any of: {", ".join(known)}'
        )

    choice('--parts', PARTS, list(PARTS))
    choice('--networks', backends.NETWORKS, ['cifar10', 'cifar100', 'mnist'])
    choice('--variants', throughput.VARIANTS, list(throughput.VARIANTS))
    parser.add_argument('--recipe', choices=backends.NETWORKS, default='cifar10:fast')
    parser.add_argument('--batches', type=positives, default=[32, 128])
    parser.add_argument(
        '--steps', type=positive, default=4, help='batches per measurement (ours: one dispatch)'
    )
    parser.add_argument('--rounds', type=positive, default=7, help='rounds; the median is reported')
    parser.add_argument('--repeats', type=positive, default=3, help='for start-up and scaling')
    parser.add_argument(
        '--limit', type=positive, default=600, help='seconds to wait for one measurement'
    )
    parser.add_argument(
        '--out', type=json_file, help='JSON file to write; a Markdown file goes beside it'
    )
    return parser.parse_args(argv)


if __name__ == '__main__':
    sys.exit(cli.guarded(main, sys.argv[1:]))
