"""CIFAR-10, table 1 of the paper: NIN with dropout.

    python -m experiments.main --config=experiments/configs/cifar10.py --workdir=runs/cifar10

variant      changes                                          paper's test error   measured
             as released: no augmentation                     10.41 %              not measured yet
:aug         crops from 4 pixels of padding, mirror images    8.81 %               not measured yet
:nodropout   no dropout                                       14.51 %              not measured yet
:smoke       four steps on 512 images, to see that it works

Schedule, learning rates and initial weights are those of the authors' cuda-convnet files
(NIN/cifar-10_def, NIN/cifar-10_params, README.md): 200 epochs, then 30 at a tenth and 30 at a
hundredth of the rate. The paper does not give the schedule of the augmented run; it is the same
here. Costs 102,000 steps, 17 PFLOP: hours on a laptop's GPU, weeks on its CPU.
Needs `python -m experiments.prepare cifar10`.
"""

from ml_collections import ConfigDict

from nin_jax.config import default_config, smoke, variants


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, 'aug', 'nodropout')
    config = default_config()  # its values are this run's
    if 'aug' in chosen:
        config.augment.crop_pad = 4
        config.augment.flip = True
    if 'nodropout' in chosen:
        config.model.blocks.mlpconv1.dropout = 0.0
        config.model.blocks.mlpconv2.dropout = 0.0
    if 'smoke' in chosen:
        smoke(config)
    return config
