"""The modern recipe, `:modern` of the dataset configs: the paper's layers, trained a decade later.

Every line is a switch that can be reverted separately, such as `--config.model.norm=none`; `python
-m launch.ablate` does so for each. `train.microbatch`, the number of images per gradient, turns on
gradient accumulation. It is exact except for batch normalization, whose statistics are those of one
microbatch.
"""

from ml_collections import ConfigDict


def batch_normalized(config: ConfigDict) -> None:
    """He initialization, batch normalization in place of dropout, linear class maps."""
    for row in config.model.blocks.values():
        row.init_std = ()  # He initialization
        row.dropout = 0.0
    config.model.norm = 'batch'
    config.model.class_maps = 'linear'


def modern(config: ConfigDict) -> None:
    """Applies the recipe for CIFAR-10 and CIFAR-100 to a config."""
    batch_normalized(config)
    config.augment.crop_pad = 4
    config.augment.flip = True
    config.augment.cutmix = 1.0
    config.augment.label_smoothing = 0.1
    config.optim.rule = 'nesterov'
    config.optim.lr = 0.1
    config.optim.bias_lr = 1.0
    config.optim.last_layer_lr = 1.0
    config.optim.weight_decay = 5e-4
    config.optim.schedule = 'one_cycle'
    config.optim.warmup = '20%'
    config.optim.drops = ''
    config.train.duration = '200ep'
    config.train.ema = 0.999
    config.eval.tta = 'flip_shift'


def modern_digits(config: ConfigDict, duration: str) -> None:
    """Applies the recipe for digits, without horizontal flips."""
    modern(config)
    config.augment.crop_pad = 2
    config.augment.flip = False
    config.augment.cutmix = 0.0
    config.augment.cutout = 8
    config.eval.tta = 'shift'
    config.train.duration = duration
