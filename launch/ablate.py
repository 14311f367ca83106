"""A recipe beside the paper's, and with each of its switches set back alone.

    python -m launch.ablate --workdir=runs/ablate --seeds=1 --config.train.duration=2ep
    python -m launch.ablate --recipe=fast --workdir=runs/ablate --seeds=3 --only=fast,flip

One run after another, each a process of experiments.main with the same remaining flags, so at the
same budget; the last lines are a table. Run n's folder is WORKDIR/NAME/seed<n>. Repeat the command
to resume. Exit status as launch.seeds.
"""

import argparse
import pathlib
import sys

from experiments import cli
from launch import seeds

CIFAR10 = 'experiments/configs/cifar10.py'
BLOCKS = ('mlpconv1', 'mlpconv2', 'mlpconv3')
NO_INIT = tuple(f'--config.model.blocks.{b}.init_std=(0.05, 0.05, 0.05)' for b in BLOCKS)
DROPOUT = tuple(f'--config.model.blocks.{b}.dropout=0.5' for b in BLOCKS[:2])
# What sets each switch of a recipe back to what the paper's run does.
SHARED = {
    'norm': ('--config.model.norm=none',),
    'class_maps': ('--config.model.class_maps=relu',),
    'init': NO_INIT,
    'dropout': DROPOUT,
    'crops': ('--config.augment.crop_pad=0',),
    'flip': ('--config.augment.flip=False',),
    'label_smoothing': ('--config.augment.label_smoothing=0.0',),
    'schedule': ('--config.optim.schedule=drops', '--config.optim.drops=77% 88%'),
}
SWITCHES: dict[str, dict[str, tuple[str, ...]]] = {
    'modern': SHARED
    | {
        'cutmix': ('--config.augment.cutmix=0.0',),
        'rule': ('--config.optim.rule=sgd',),
        'ema': ('--config.train.ema=0.0',),
        'tta': ('--config.eval.tta=none',),
    },
    'fast': SHARED
    | {
        # Nesterov's momentum with the modern recipe's rates: Muon's rates mean nothing to it.
        'rule': (
            '--config.optim.rule=nesterov',
            '--config.optim.bias_lr=1.0',
            '--config.optim.last_layer_lr=1.0',
        ),
        'image_sizes': ('--config.train.image_sizes=',),
        'batch_size': ('--config.train.batch_size=500',),
    },
}


def runs_of(recipe: str) -> dict[str, tuple[str, ...]]:
    """Name -> config and flags of the paper's run, the recipe, and the recipe less one switch."""
    config = f'{CIFAR10}:{recipe}'
    switched = {name: (config, *flags) for name, flags in SWITCHES[recipe].items()}
    return {'paper': (CIFAR10,), recipe: (config,)} | switched


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog='launch.ablate', allow_abbrev=False)
    parser.error = lambda message: sys.exit(cli.print_error(message))
    parser.add_argument('--workdir', required=True, help="folder of the runs' folders")
    parser.add_argument('--seeds', type=int, default=1, help='how many of each, from 0 on')
    parser.add_argument('--recipe', choices=SWITCHES, default='modern', help='whose switches')
    parser.add_argument('--only', default='', help='names, with commas between; all if not given')
    args, others = parser.parse_known_args(argv)
    runs = runs_of(args.recipe)
    names = args.only.split(',') if args.only else list(runs)
    for name in names:
        if name not in runs:
            return cli.print_error(f"--only: no run '{name}': choose from {', '.join(runs)}")
    worst = 0
    for name in names:
        config, *back = runs[name]
        folder = pathlib.Path(args.workdir) / name
        flags = [f'--config={config}', f'--workdir={folder}', f'--seeds={args.seeds}']
        status = seeds.main([*flags, *back, *others])
        if status not in (0, 1):
            return status
        worst = max(worst, status)
    print(f'\n{"run":16} {"config":44} {"set back":40} result')
    for name in names:
        config, *back = runs[name]
        folders = [pathlib.Path(args.workdir) / name / f'seed{n}' for n in range(args.seeds)]
        changed = back[0].removeprefix('--config.') + ', ...' * (len(back) > 1) if back else ''
        print(f'{name:16} {config:44} {changed:40} {seeds.sentence(folders)}')
    return worst


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
