"""The recipe for the lowest error, `:modern` of the dataset configs.

The fast recipe (_fast.py) for more epochs, with stronger augmentation and test-time augmentation.
`python -m launch.ablate --recipe=modern --workdir=runs/ablate_modern` reverts each switch
separately.
"""

from ml_collections import ConfigDict

from experiments.configs._fast import fast, fast_digits


def modern(config: ConfigDict) -> None:
    """Applies the recipe for CIFAR-10 and CIFAR-100 to a config."""
    fast(config)
    config.augment.crop_pad = 4
    config.augment.cutout = 8
    config.train.duration = '30ep'
    config.eval.tta = 'flip_shift'


def modern_digits(config: ConfigDict, duration: str) -> None:
    """Applies the recipe for digits, without horizontal flips."""
    fast_digits(config)
    config.augment.cutout = 8
    config.train.duration = duration
    config.eval.tta = 'shift'
