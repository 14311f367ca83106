"""The low-compute recipe, `:fast` of the dataset configs, for CPUs and GPUs.

It trains the paper's layers with batch normalization, Muon, a one-cycle learning rate schedule,
progressive resizing and a first mlpconv layer that stops training early. Every ingredient is a
switch; `python -m launch.ablate --recipe=fast --workdir=runs/ablate` reverts each one separately.
Batch normalization uses the statistics of `train.microbatch` images on every machine.
"""

from ml_collections import ConfigDict


def fast(config: ConfigDict) -> None:
    """Applies the recipe for CIFAR-10 and CIFAR-100 to a config."""
    for row in config.model.blocks.values():
        row.init_std = ()  # He initialization
        row.dropout = 0.0
    config.model.norm = 'batch'
    config.model.class_maps = 'linear'
    config.preprocess.recipe = 'patch_zca'
    config.augment.crop_pad = 1
    config.augment.flip = True
    config.augment.alternate_flips = True
    config.augment.label_smoothing = 0.2
    config.optim.rule = 'muon'
    config.optim.lr = 0.065
    config.optim.bias_lr = 0.05
    config.optim.last_layer_lr = 0.3
    config.optim.weight_decay = 5e-4
    config.optim.schedule = 'one_cycle'
    config.optim.warmup = '20%'
    config.optim.drops = ''
    config.train.batch_size = 100
    config.train.microbatch = 50
    config.train.image_sizes = '20@30% 24@60%'
    config.train.freeze = '65%'
    config.train.duration = '5.4ep'
    config.eval.every = '100%'
    config.checkpoint.every = '1ep'


def fast_digits(config: ConfigDict) -> None:
    """Applies the recipe for digits, without horizontal flips."""
    fast(config)
    config.preprocess.recipe = 'scale'
    config.augment.crop_pad = 2
    config.augment.flip = config.augment.alternate_flips = False
    config.augment.label_smoothing = 0.1
    config.train.image_sizes = '20@50%'
    config.train.freeze = ''
    config.train.duration = '2.5ep'
