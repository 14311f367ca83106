"""A grid over learning rate and weight decay on CIFAR-10, with a tenth of the schedule.

    python -m launch.sweep --sweep=experiments/sweeps/cifar10_decay.py --study=cifar10_decay

Question: the paper tunes weight decay on the validation images, and gives neither its value nor the
learning rate. How sensitive is the error to the authors' 0.1 and 0.0001?
Cost: 20 trials of 8,100 steps (40,000 training images), 1.4 PFLOP each: one to two
days in total on two CPU cores. Needs `python -m experiments.prepare cifar10`.
"""

from experiments.space import Sweep, choice


def get_sweep() -> Sweep:
    return Sweep(
        config='experiments/configs/cifar10.py',
        space={
            'optim.lr': choice(0.01, 0.03, 0.1, 0.2),
            'optim.weight_decay': choice(0.0, 3e-5, 1e-4, 3e-4, 1e-3),
        },
        sampler='grid',
        prune_after=5,
        fixed={'train.duration': '26ep', 'optim.drops': '20ep 23ep', 'model.class_bias': 1.0},
    )
