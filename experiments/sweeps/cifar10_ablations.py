"""The effect of dropout, augmentation and global average pooling on CIFAR-10.

    python -m launch.sweep --sweep=experiments/sweeps/cifar10_ablations.py --study=ablations

Question: the comparisons of table 1 and sections 4.2 and 4.6, and augmentation without dropout.
Each trial runs the whole schedule on the 40,000 training images and is scored on the 10,000
validation images.
Cost: 6 trials of 81,000 steps, 14 PFLOP each. Needs `python -m experiments.prepare cifar10`.
"""

from experiments.space import Sweep


def get_sweep() -> Sweep:
    no_dropout = {'model.blocks.mlpconv1.dropout': 0.0, 'model.blocks.mlpconv2.dropout': 0.0}
    augmented = {'augment.crop_pad': 4, 'augment.flip': True}
    return Sweep(
        config='experiments/configs/cifar10.py',
        points=(
            {},
            no_dropout,
            augmented,
            no_dropout | augmented,
            {'model.head': 'fc'},
            {'model.head': 'fc', 'model.head_dropout': 0.5},
        ),
        fixed={'model.class_bias': 1.0},
    )
