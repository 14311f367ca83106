"""The fast recipe on the paper's four datasets, each with the CIFAR-10 layer table.

    python -m launch.sweep --sweep=experiments/sweeps/datasets.py --study=datasets
    python -m launch.sweep report --study=datasets

Question: how far does one recipe of 0.2 PFLOP go without a change for the dataset? Each trial is
scored on the validation images. Digits are not mirrored.
Cost: 4 trials of 0.16 to 0.19 PFLOP, about 20 minutes each on two CPU cores.
Needs `python -m experiments.prepare mnist svhn_cropped cifar10 cifar100`.
"""

from experiments.space import Sweep


def get_sweep() -> Sweep:
    digits = {'augment.flip': False, 'augment.alternate_flips': False}
    return Sweep(
        config='experiments/configs/cifar10.py:fast',
        points=(
            {},
            {'data.name': 'cifar100', 'model.blocks.mlpconv3.features': (192, 192, 100)},
            {'data.name': 'svhn_cropped', 'train.duration': '2600steps'} | digits,
            {'data.name': 'mnist'} | digits,
        ),
    )
