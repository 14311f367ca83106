"""The recipe for the lowest error, `:modern` of the dataset configs.

The fast recipe (_fast.py) for more epochs, with stronger augmentation and test-time augmentation.
For CIFAR-10 and CIFAR-100, five mlpconv layers of 3x3 convolutions replace the paper's three, with
fewer multiplications. `python -m launch.ablate --recipe=modern --workdir=runs/ablate_modern`
reverts each switch separately, and these layers.
"""

from ml_collections import ConfigDict

from experiments.configs._fast import fast, fast_digits
from nin_jax.config import block


def modern(config: ConfigDict) -> None:
    """Applies the recipe for CIFAR-10 and CIFAR-100 to a config with the paper's layers."""
    classes = config.model.blocks.mlpconv3.features[-1]
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((64, 64), kernel=3, pool='max'),
            mlpconv2=block((192, 192), kernel=3),
            mlpconv3=block((192, 192), kernel=3, pool='max'),
            mlpconv4=block((192, 192), kernel=3),
            mlpconv5=block((192, 192, classes), kernel=3),
        )
    )
    fast(config)
    config.augment.crop_pad = 3
    config.augment.cutout = 8
    config.train.duration = '20ep'
    config.eval.tta = 'flip_shift'


def modern_digits(config: ConfigDict, duration: str) -> None:
    """Applies the recipe for digits, without horizontal flips."""
    fast_digits(config)
    config.augment.cutout = 8
    config.train.duration = duration
    config.eval.tta = 'shift'
