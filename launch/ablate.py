"""Ablates a recipe: trains the paper's run, the recipe, and the recipe without each of its changes.

    python -m launch.ablate --workdir=runs/ablate --seeds=3 --only=fast,flip
    python -m launch.ablate --recipe=modern --workdir=runs/ablate_modern

Runs are sequential. Each is a process of experiments.main with the same remaining flags, and so the
same budget. Seed n of a run is in WORKDIR/NAME/seed<n>. With --recipe=modern, the run `layers` is
the fast recipe, which has the paper's layers, with the modern recipe's other keys. The command ends
with a table of the finished seeds, in WORKDIR/ablation.md or --out. Repeat the command to resume.
Exit status: as launch.seeds.
"""

import pathlib
import shlex
import sys

from ml_collections import ConfigDict

from experiments import cli
from experiments.report.groups import (
    by_hardware,
    count_of_seeds,
    mean_and_std,
    paired_difference,
)
from experiments.report.markdown import cost
from launch import seeds
from nin_jax.config import flatten
from nin_jax.files import read_json

CIFAR10 = 'experiments/configs/cifar10.py'
DROPS = '--config.optim.drops=77% 88%'  # the paper's 200 and 230 of 260 epochs
# The flags that revert each ingredient of a recipe, to the paper's value unless stated otherwise.
# Those of its layers are in `of_layers`.
FAST = {
    'norm': ('--config.model.norm=none',),
    'class_maps': ('--config.model.class_maps=relu',),
    # Whitening of whole images takes one image size: compare with `image_sizes`.
    'preprocess': ('--config.preprocess.recipe=gcn_zca', '--config.train.image_sizes='),
    'crops': ('--config.augment.crop_pad=0',),
    'flip': ('--config.augment.flip=False', '--config.augment.alternate_flips=False'),
    'alternate_flips': ('--config.augment.alternate_flips=False',),
    'label_smoothing': ('--config.augment.label_smoothing=0.0',),
    'schedule': ('--config.optim.schedule=drops', DROPS, '--config.optim.warmup=0%'),
    # Nesterov momentum with the same learning rate for all layers; Muon's rates do not transfer.
    'rule': (
        '--config.optim.rule=nesterov',
        '--config.optim.bias_lr=1.0',
        '--config.optim.last_layer_lr=1.0',
    ),
    'weight_decay': ('--config.optim.weight_decay=0.0001',),
    'image_sizes': ('--config.train.image_sizes=',),
    'freeze': ('--config.train.freeze=',),
    # A fifth as many steps. The paper's 128 is not a multiple of train.microbatch.
    'batch_size': ('--config.train.batch_size=500',),
}
SWITCHES: dict[str, dict[str, tuple[str, ...]]] = {
    'fast': FAST,
    'modern': FAST
    | {
        'cutout': ('--config.augment.cutout=0',),
        'tta': ('--config.eval.tta=none',),
    },
}

HEAD = """# Ablation of `{recipe}`

Made by `{command}`; do not edit.

Every run is the recipe with the keys of one ingredient changed, for the same number of epochs.
Top-1 error after the last step, on {origin}.
Differences are from the whole recipe, in percentage points, over common seeds; with several seeds,
with their 95 % interval. PFLOP are those of one run.

"""


def runs_of(recipe: str) -> dict[str, tuple[str, ...]]:
    """Returns config and flags, by name, of the paper's run, the recipe and each ablation."""
    path = f'{CIFAR10}:{recipe}'
    config = cli.load_config(path)
    shortened = (f'--config.train.duration={config.train.duration}', DROPS)
    switches = of_layers(config.model.blocks) | SWITCHES[recipe]
    runs = {'paper': (CIFAR10, *shortened), recipe: (path,)}
    if recipe != 'fast':  # the paper's layers, which :fast has
        fast = f'{CIFAR10}:fast'
        runs['layers'] = (fast, *changes(cli.load_config(fast), config))
    return runs | {name: (path, *flags) for name, flags in switches.items()}


def changes(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Returns the flags that turn one config into another, except for its layer table."""
    old = flatten(before)
    return [
        f'--config.{key}={value}'
        for key, value in flatten(after).items()
        if not key.startswith('model.blocks.') and value != old[key]
    ]


def of_layers(blocks: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Returns the flags for the paper's initialization, and for its dropout after each pooling."""
    flag = '--config.model.blocks.{}.{}={}'.format
    return {
        'init': tuple(
            flag(name, 'init_std', (0.05,) * len(row.features)) for name, row in blocks.items()
        ),
        'dropout': tuple(
            flag(name, 'dropout', 0.5) for name, row in blocks.items() if row.pool != 'none'
        ),
    }


def main(argv: list[str]) -> int:
    parser = cli.Parser('launch.ablate', __doc__)
    parser.add_argument(
        '--workdir', required=True, type=cli.folder, help='parent folder of the runs'
    )
    parser.add_argument('--seeds', type=int, default=1, help='number of seeds per run, from 0')
    parser.add_argument('--recipe', choices=SWITCHES, default='fast', help='recipe to ablate')
    parser.add_argument('--only', default='', help='comma-separated names of runs; default: all')
    parser.add_argument('--out', type=cli.folder, help='default: WORKDIR/ablation.md')
    args, words = parser.parse_known_args(argv)
    others = cli.flags_of_runs(words)
    runs = runs_of(args.recipe)
    names = args.only.split(',') if args.only else list(runs)
    for name in names:
        if name not in runs:
            return cli.print_error(f"--only: no run '{name}': choose from {', '.join(runs)}")
    worst = 0
    for name in names:
        config, *back = runs[name]
        folder = args.workdir / name
        flags = [f'--config={config}', f'--workdir={folder}', f'--seeds={args.seeds}']
        status = seeds.main([*flags, *back, *others])
        if status not in (0, 1):
            return status
        worst = max(worst, status)
    command = shlex.join(['python', '-m', 'launch.ablate', *argv])
    text = page(args.recipe, {name: runs[name] for name in names}, args.workdir, others, command)
    out = args.out or args.workdir / 'ablation.md'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(f'\n{text}\n{out}')
    return worst


# ---- the table of results -----------------------------------------------------------------------


def page(
    recipe: str,
    runs: dict[str, tuple[str, ...]],
    workdir: pathlib.Path,
    flags: list[str],
    command: str,
) -> str:
    """Returns the results of all finished seeds of `runs` as Markdown.

    Args:
      recipe: the name of the run to compare the others with.
      runs: config and flags of each run by name, as runs_of returns them.
      workdir: parent folder of the runs.
      flags: the flags that all runs share.
      command: the command that writes the page.
    """
    finished = {name: finished_seeds(workdir / name) for name in runs}
    baseline = errors(finished.get(recipe, []))
    rows = [('run', 'changes', 'PFLOP', 'top-1 error', 'difference'), ('---',) * 5]
    for name, (config, *back) in runs.items():
        found = errors(finished[name])
        keys = [flag.removeprefix('--config.') for flag in back]
        other = [] if config == f'{CIFAR10}:{recipe}' else [config]
        changed = ', '.join(f'`{text}`' for text in other + keys)
        change = '' if name == recipe else paired_difference(found, baseline)
        rows.append((name, changed, petaflops(config, [*back, *flags]), error(found), change))
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    records = [record for seeds_of_run in finished.values() for record in seeds_of_run]
    head = HEAD.format(recipe=f'{CIFAR10}:{recipe}', command=command, origin=origin(records))
    return f'{head}{table}\n'


def finished_seeds(folder: pathlib.Path) -> list[dict]:
    """Returns the summaries of a run's finished seeds; without those that diverged."""
    summaries = [read_json(path) for path in sorted(folder.glob('seed*/summary.json'))]
    return [summary for summary in summaries if summary['status'] == 'done']


def errors(summaries: list[dict]) -> dict[int, float]:
    """Returns the top-1 error after the last step, in percent, by seed."""
    return {summary['seed']: 100 * summary['final_error'] for summary in summaries}


def error(found: dict[int, float]) -> str:
    """'10.43 ± 0.09 % (5 seeds)'."""
    if not found:
        return 'diverged'
    return f'{mean_and_std(list(found.values()))} % ({count_of_seeds(len(found))})'


def petaflops(config: str, flags: list[str]) -> str:
    """Returns the floating-point operations of one run in units of 1e15."""
    from launch.cost import training_cost  # slow import, after the runs

    return f'{training_cost(config, flags).flops / 1e15:.3f}'


def origin(records: list[dict]) -> str:
    """Returns the commits, evaluation images and hardware of the runs."""
    commits = ', '.join(sorted({record['commit'] for record in records}))
    images = ', '.join(sorted({f'{record["eval_images"]:,}' for record in records}))
    splits = ', '.join(sorted({record['config']['data.eval'] for record in records}))
    hardware = '; '.join(map(cost, by_hardware(records)))
    return f'{images} images of `{splits}`; commit {commits}; {hardware}'


if __name__ == '__main__':
    sys.exit(cli.guarded(main, sys.argv[1:]))
