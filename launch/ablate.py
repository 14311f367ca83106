"""Ablates a recipe: trains the paper's run, the recipe, and the recipe without each of its changes.

    python -m launch.ablate --workdir=runs/ablate --seeds=3 --only=fast,flip
    python -m launch.ablate --recipe=modern --workdir=runs/ablate_modern

Runs are sequential. Each is a process of experiments.main with the same remaining flags, and so the
same budget. Seed n of a run is in WORKDIR/NAME/seed<n>. The command ends with a table of results.
Repeat the command to resume. Exit status: as launch.seeds.
"""

import argparse
import sys

from experiments import cli
from launch import seeds

CIFAR10 = 'experiments/configs/cifar10.py'
BLOCKS = ('mlpconv1', 'mlpconv2', 'mlpconv3')
NO_INIT = tuple(f'--config.model.blocks.{b}.init_std=(0.05, 0.05, 0.05)' for b in BLOCKS)
DROPOUT = tuple(f'--config.model.blocks.{b}.dropout=0.5' for b in BLOCKS[:2])
# The flags that revert each switch of a recipe to the paper's value.
FAST = {
    'norm': ('--config.model.norm=none',),
    'class_maps': ('--config.model.class_maps=relu',),
    'init': NO_INIT,
    'dropout': DROPOUT,
    'preprocess': ('--config.preprocess.recipe=gcn_zca',),
    'crops': ('--config.augment.crop_pad=0',),
    'flip': ('--config.augment.flip=False', '--config.augment.alternate_flips=False'),
    'alternate_flips': ('--config.augment.alternate_flips=False',),
    'label_smoothing': ('--config.augment.label_smoothing=0.0',),
    'schedule': ('--config.optim.schedule=drops', '--config.optim.drops=77% 88%'),
    # Nesterov momentum with the learning rates of SGD; Muon's do not transfer.
    'rule': (
        '--config.optim.rule=nesterov',
        '--config.optim.bias_lr=1.0',
        '--config.optim.last_layer_lr=1.0',
    ),
    'image_sizes': ('--config.train.image_sizes=',),
    'freeze': ('--config.train.freeze=',),
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


def runs_of(recipe: str) -> dict[str, tuple[str, ...]]:
    """Returns config and flags, by name, of the paper's run, the recipe and each ablation."""
    config = f'{CIFAR10}:{recipe}'
    switched = {name: (config, *flags) for name, flags in SWITCHES[recipe].items()}
    return {'paper': (CIFAR10,), recipe: (config,)} | switched


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog='launch.ablate', allow_abbrev=False)
    parser.error = lambda message: sys.exit(cli.print_error(message))
    parser.add_argument(
        '--workdir', required=True, type=cli.folder, help='parent folder of the runs'
    )
    parser.add_argument('--seeds', type=int, default=1, help='number of seeds per run, from 0')
    parser.add_argument('--recipe', choices=SWITCHES, default='fast', help='recipe to ablate')
    parser.add_argument('--only', default='', help='comma-separated names of runs; default: all')
    args, others = parser.parse_known_args(argv)
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
    print(f'\n{"run":16} {"config":44} {"reverted":40} result')
    for name in names:
        config, *back = runs[name]
        folders = [args.workdir / name / f'seed{n}' for n in range(args.seeds)]
        changed = back[0].removeprefix('--config.') + ', ...' * (len(back) > 1) if back else ''
        print(f'{name:16} {config:44} {changed:40} {seeds.sentence(folders)}')
    return worst


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
