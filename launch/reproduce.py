"""Trains the runs behind RESULTS.md, except the quickstart and those with changed keys.

    python -m launch.reproduce --preset=cpu --workdir=runs/reproduce --dry-run
    python -m launch.reproduce --preset=cpu --workdir=runs/reproduce
    python -m launch.reproduce --preset=gpu --only=cifar10

The preset `cpu` is feasible on two CPU cores: the fast and modern recipes, the ablations with the
fast recipe, and the paper's runs as far as possible. The preset `gpu` is all of the paper's runs at
full length, except SVHN, and the fast and modern recipes, with five seeds each. Finished runs are
skipped and interrupted runs resume. After each experiment, WORKDIR/RESULTS.md and its figure are
rewritten. --dry-run prints every run with its number of images, its PFLOP, and its time on this
machine, estimated from a few measured steps.
Other flags, such as --config.data.dir, are passed to every run. Exit status: as launch.seeds.
"""

import dataclasses
import pathlib
import sys

from experiments import cli
from launch import seeds
from nin_jax.files import read_json
from nin_jax.runs.display import duration


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One config with several seeds; the folder of seed n is WORKDIR/`name`/seed<n>."""

    name: str
    config: str
    seeds: int
    flags: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The value of --config."""
        file, _, variant = self.config.partition(':')
        return f'experiments/configs/{file}.py' + (f':{variant}' if variant else '')


CLAIMS = ('linear', 'maxout', 'dropout', 'plain', 'one_size', 'fc', 'fc_dropout')
TO_24_EPOCHS = ('--config.train.duration=24ep',)
PRESETS: dict[str, tuple[Experiment, ...]] = {
    'cpu': (
        Experiment('cifar10_fast', 'cifar10:fast', 5),
        Experiment('cifar100_fast', 'cifar100:fast', 3),
        Experiment('mnist_fast', 'mnist:fast', 5),
        Experiment('claims', 'ablations:fast', 3),  # what the claims are compared with
        *(Experiment(f'claims_{arm}', f'ablations:{arm},fast', 3) for arm in CLAIMS),
        Experiment('cifar10_modern', 'cifar10:modern', 1),
        Experiment('cifar100_modern', 'cifar100:modern', 1),
        Experiment('mnist_modern', 'mnist:modern', 1),
        Experiment('mnist', 'mnist', 2),
        Experiment('cifar10_nodropout_24ep', 'cifar10:nodropout', 1, TO_24_EPOCHS),
        Experiment('cifar10', 'cifar10', 1),
    ),
    'gpu': (
        Experiment('cifar10', 'cifar10', 5),
        Experiment('cifar10_aug', 'cifar10:aug', 5),
        Experiment('cifar10_nodropout', 'cifar10:nodropout', 5),
        Experiment('cifar100', 'cifar100', 5),
        Experiment('mnist', 'mnist', 5),
        Experiment('ablations_fc', 'ablations:fc', 5),
        Experiment('ablations_fc_dropout', 'ablations:fc_dropout', 5),
        Experiment('ablations_linear', 'ablations:linear', 5),
        Experiment('ablations_maxout', 'ablations:maxout', 5),
        *(Experiment(f'hinton_{arm}', f'hinton:{arm}', 5) for arm in ('fc', 'fc_dropout', 'gap')),
        *(
            Experiment(f'{data}_{recipe}', f'{data}:{recipe}', 5)
            for recipe in ('fast', 'modern')
            for data in ('cifar10', 'cifar100', 'mnist')
        ),
    ),
}


def main(argv: list[str]) -> int:
    parser = cli.Parser('launch.reproduce', __doc__)
    parser.add_argument('--preset', choices=PRESETS, required=True, help='set of runs')
    parser.add_argument('--workdir', default='runs/reproduce', type=cli.folder)
    parser.add_argument('--only', default='', help='comma-separated names of experiments')
    parser.add_argument('--dry-run', action='store_true', help='print the runs without starting')
    args, words = parser.parse_known_args(argv)
    others = cli.flags_of_runs(words)
    experiments = {e.name: e for e in PRESETS[args.preset]}
    names = args.only.split(',') if args.only else list(experiments)
    for name in names:
        if name not in experiments:
            return cli.print_error(
                f"--only: no experiment '{name}': choose from {', '.join(experiments)}"
            )
    chosen = [experiments[name] for name in names]
    if args.dry_run:
        return print_plan(chosen, args.workdir, others)
    check_data([e for e in chosen if not is_done(e, args.workdir)], others)
    worst = 0
    for e in chosen:
        flags = [f'--config={e.path}', f'--workdir={args.workdir / e.name}', f'--seeds={e.seeds}']
        status = seeds.main([*flags, *e.flags, *others])
        if status not in (0, 1):
            return status
        worst = max(worst, status)
        write_results(args.workdir)
    return worst


def check_data(chosen: list[Experiment], flags: list[str]) -> None:
    """Raises DataError if a dataset is not prepared, before hours of training on another one."""
    from nin_jax.data import datasets

    for e in chosen:
        data = cli.load_config(e.path, [*e.flags, *flags]).data
        datasets.check_prepared(data.name, data.dir)


def write_results(workdir: pathlib.Path) -> None:
    """Writes RESULTS.md and its figure from the finished runs under `workdir`."""
    from experiments.report import document, records

    folders = sorted(path.parent for path in workdir.glob('*/seed*/summary.json'))
    done = [folder for folder in folders if state_of(folder)[0] == 'done']
    if done:
        runs = [run for folder in done for run in records.load(folder)]
        document.write(runs, sorted({str(f.parent) for f in done}), workdir / 'RESULTS.md')
        print(f'{workdir / "RESULTS.md"}: {len(runs)} runs', flush=True)


def print_plan(chosen: list[Experiment], workdir: pathlib.Path, flags: list[str]) -> int:
    """Prints every run with its images, PFLOP and estimated time; returns the exit status."""
    from launch.cost import measured_flops_per_s, training_cost  # slow import, after the checks

    costs = [training_cost(e.path, [*e.flags, *flags]) for e in chosen]
    flops_per_s = measured_flops_per_s()
    print(f'{"run":28}{"images":>12}{"PFLOP":>8}{"time":>12}  state')
    total = 0.0
    for e, (steps, images, flops) in zip(chosen, costs, strict=True):
        for seed in range(e.seeds):
            state, step = state_of(workdir / e.name / f'seed{seed}')
            total += 0.0 if state == 'done' else flops * (1 - step / steps)
            took = duration(flops / flops_per_s)
            print(f'{f"{e.name}/seed{seed}":28}{images:>12,}{flops / 1e15:8.2f}{took:>12}  {state}')
    print(
        f'{total / 1e15:.2f} PFLOP remaining, about {duration(total / flops_per_s)} of training at '
        f'the measured {flops_per_s / 1e9:,.0f} GFLOP/s, plus evaluation and compilation'
    )
    return 0


def is_done(e: Experiment, workdir: pathlib.Path) -> bool:
    """Whether all seeds have finished."""
    folders = [workdir / e.name / f'seed{seed}' for seed in range(e.seeds)]
    return all(state_of(folder)[0] == 'done' for folder in folders)


def state_of(folder: pathlib.Path) -> tuple[str, int]:
    """Returns 'new', 'done', 'diverged' or 'at step N', and the newest checkpoint's step."""
    steps = [int(p.name) for p in folder.glob('checkpoints/*') if p.name.isdecimal()]
    newest, path = max(steps, default=0), folder / 'summary.json'
    status = read_json(path)['status'] if path.exists() else ''
    if status in ('done', 'diverged'):
        return status, newest
    return f'at step {newest:,}' if newest else 'new', newest


if __name__ == '__main__':
    sys.exit(cli.guarded(main, sys.argv[1:]))
