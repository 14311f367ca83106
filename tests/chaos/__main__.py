"""Rounds of disturbances: `python -m tests.chaos --rounds=220 --seed=0`; see tests/chaos."""

import argparse
import collections
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np

from tests.chaos.lab import Lab, Trouble
from tests.chaos.rounds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog='tests.chaos', description=__doc__)
    parser.add_argument(
        '--rounds', type=int, default=len(KINDS), help='how many; default: %(default)s'
    )
    parser.add_argument('--seed', type=int, default=0, help='decides every kind and moment')
    parser.add_argument(
        '--first', type=int, default=0, help='number of the first round, to repeat one'
    )
    parser.add_argument('--folder', help='where; default: a temporary folder')
    args = parser.parse_args()
    folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix='chaos-')).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    start, met, failed = time.monotonic(), collections.defaultdict(collections.Counter), []
    lab = Lab(folder)
    print(f'undisturbed: {lab.digits.seconds:.1f} s, weights {lab.digits.weights[:16]}', flush=True)
    for n in range(args.first, args.first + args.rounds):
        # Each kind once in every len(KINDS) rounds, in an order of their own.
        rng = np.random.default_rng([args.seed, n])
        cycle, place = divmod(n, len(KINDS))
        order = np.random.default_rng([args.seed, cycle, 1]).permutation(len(KINDS))
        kind, where = KINDS[order[place]], folder / f'round{n}'
        try:
            met[kind.__name__][kind(lab, rng, where)] += 1
            shutil.rmtree(where, ignore_errors=True)
        except Trouble as e:
            met[kind.__name__]['FAILED'] += 1
            failed.append(f'round {n}, {kind.__name__}, left in {where}: {e}')
            print(failed[-1], flush=True)
    for kind in KINDS:
        if kind.__name__ in met:
            counts = met[kind.__name__]
            words = ', '.join(f'{count} {word}' for word, count in sorted(counts.items()))
            print(f'{kind.__name__:18} {counts.total():4}   {words}')
    different = sum('differ' in f for f in failed)
    print(
        f'{args.rounds} rounds, seed {args.seed}, {time.monotonic() - start:.0f} s: '
        f'lost {len(failed) - different}, silently different {different}'
    )
    if not failed and not args.folder:
        shutil.rmtree(folder)
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
