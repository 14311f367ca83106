"""The modern recipe beside the paper's, and with each of its switches set back alone.

    python -m launch.ablate --workdir=runs/ablate --seeds=1 --config.train.duration=2ep
    python -m launch.ablate --workdir=runs/ablate --seeds=3 --only=paper,modern

One run after another, each a process of experiments.main with the same remaining flags, so at the
same budget; the last lines are a table. Run n's folder is WORKDIR/NAME/seed<n>. Repeat the command
to resume. Exit status as launch.seeds.
"""

import argparse
import pathlib
import sys

from experiments import cli
from launch import seeds

PAPER, MODERN = 'experiments/configs/cifar10.py', 'experiments/configs/cifar10.py:modern'
BLOCKS = ('mlpconv1', 'mlpconv2', 'mlpconv3')
# What sets each switch back to what the paper's run does.
RUNS: dict[str, tuple[str, ...]] = {
    'paper': (PAPER,),
    'modern': (MODERN,),
    'norm': (MODERN, '--config.model.norm=none'),
    'class_maps': (MODERN, '--config.model.class_maps=relu'),
    'init': (
        MODERN,
        *(f'--config.model.blocks.{b}.init_std=(0.05, 0.05, 0.05)' for b in BLOCKS),
    ),
    'dropout': (MODERN, *(f'--config.model.blocks.{b}.dropout=0.5' for b in BLOCKS[:2])),
    'crops': (MODERN, '--config.augment.crop_pad=0'),
    'flip': (MODERN, '--config.augment.flip=False'),
    'cutmix': (MODERN, '--config.augment.cutmix=0.0'),
    'label_smoothing': (MODERN, '--config.augment.label_smoothing=0.0'),
    'rule': (MODERN, '--config.optim.rule=sgd'),
    'schedule': (MODERN, '--config.optim.schedule=drops'),
    'ema': (MODERN, '--config.train.ema=0.0'),
    'tta': (MODERN, '--config.eval.tta=none'),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog='launch.ablate', allow_abbrev=False)
    parser.error = lambda message: sys.exit(cli.print_error(message))
    parser.add_argument('--workdir', required=True, help="folder of the runs' folders")
    parser.add_argument('--seeds', type=int, default=1, help='how many of each, from 0 on')
    parser.add_argument('--only', default=','.join(RUNS), help='names, with commas between')
    args, others = parser.parse_known_args(argv)
    names = args.only.split(',')
    for name in names:
        if name not in RUNS:
            return cli.print_error(f"--only: no run '{name}': choose from {', '.join(RUNS)}")
    worst = 0
    for name in names:
        page, *back = RUNS[name]
        folder = pathlib.Path(args.workdir) / name
        flags = [f'--config={page}', f'--workdir={folder}', f'--seeds={args.seeds}']
        status = seeds.main([*flags, *back, *others])
        if status not in (0, 1):
            return status
        worst = max(worst, status)
    print(f'\n{"run":16} {"page":44} {"set back":40} result')
    for name in names:
        page, *back = RUNS[name]
        folders = [pathlib.Path(args.workdir) / name / f'seed{n}' for n in range(args.seeds)]
        changed = back[0].removeprefix('--config.') + ', ...' * (len(back) > 1) if back else ''
        print(f'{name:16} {page:44} {changed:40} {seeds.sentence(folders)}')
    return worst


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
