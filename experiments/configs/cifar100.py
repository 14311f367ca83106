"""CIFAR-100, table 2 of the paper: NIN with dropout, no augmentation.

    python -m experiments.main --config=experiments/configs/cifar100.py --workdir=runs/cifar100

variant      changes                                          paper's test error
             the paper: the settings of cifar10.py            35.68 %
:released    values of the authors' released files            35.68 %
:fast        the recipe of _fast.py with random flips,        not reported
             crops by 2 pixels, smoothing of 0.1, 24x24
             pixels for half of its 5.6 epochs, no freezing
:modern      the recipe of _modern.py, 20 epochs              not reported
:smoke       smoke test: four steps on 512 images

The released files (cuda-convnet NIN/cifar-100_def, NIN/cifar-100_params) use initial weights that
are 50, 5 and 5 times smaller in the first three layers, a learning rate of 0.02 for every layer (a
coefficient of 2 on the cost times 0.01) and five times the weight decay. Such a network may never
leave its first plateau. Dropout and the order of the images are as in cifar10.py.
Cost: 102,000 steps, 17 PFLOP. :modern takes 10,000 steps, 0.74 PFLOP, and gets 27.10 % (one seed,
test-time augmentation); :fast takes 2,800 steps, 0.29 PFLOP, and gets 34.2 % (mean of three seeds).
Needs `python -m experiments.prepare cifar100`.
"""

from ml_collections import ConfigDict

from experiments.configs._fast import fast
from experiments.configs._modern import modern
from nin_jax.config import default_config, only_one, smoke, variants


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, 'released', 'modern', 'fast')
    only_one(chosen & {'released', 'modern', 'fast'})
    config = default_config()
    config.data.name = 'cifar100'
    config.model.blocks.mlpconv3.features = (192, 192, 100)
    if 'released' in chosen:
        config.model.blocks.mlpconv1.init_std = (0.001, 0.01, 0.01)
        config.optim.lr = 0.02
        config.optim.last_layer_lr = 1.0
        config.optim.weight_decay = 5e-4
    if 'modern' in chosen:
        modern(config)
    if 'fast' in chosen:
        fast(config)
        config.augment.crop_pad = 2
        config.augment.alternate_flips = False
        config.augment.label_smoothing = 0.1
        config.train.image_sizes = '24@50%'
        config.train.freeze = ''
        config.train.duration = '5.6ep'
    if 'smoke' in chosen:
        smoke(config)
    return config
