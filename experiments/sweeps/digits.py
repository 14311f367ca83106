"""A sweep of learning rate, momentum and class bias on the bundled MNIST digits.

    python -m launch.sweep --sweep=experiments/sweeps/digits.py --study=digits --workers=2
    python -m launch.sweep report --study=digits

A demonstration of sweeps that takes minutes. Each trial trains a network a tenth the size of
quickstart.py's for three epochs on 4,000 digits, and is scored on the 1,000 held-out digits. TPE
chooses the points; trials worse than the median are pruned after one epoch.
Cost: 24 trials of at most 20 seconds on one CPU core each. In one sweep, the best trial reached
8.8 % with learning rate 0.017, momentum 0.93 and class bias 1; half of the trials were pruned.
"""

from experiments.space import Sweep, choice, log_uniform, uniform


def get_sweep() -> Sweep:
    return Sweep(
        config='experiments/configs/quickstart.py',
        space={
            'optim.lr': log_uniform(0.001, 0.3),
            'optim.momentum': uniform(0.5, 0.95),
            'model.class_bias': choice(0.0, 1.0),
        },
        sampler='tpe',
        trials=24,
        prune_after=1,
        fixed={
            'model.blocks.mlpconv1.features': (32, 32, 16),
            'model.blocks.mlpconv2.features': (32, 32, 16),
            'model.blocks.mlpconv3.features': (32, 32, 10),
            'train.duration': '3ep',
            'checkpoint.every': '0.5ep',
        },
    )
