"""Ablations of the paper: the CIFAR-10 network (cifar10.py) with one component replaced.

    python -m experiments.main --config=experiments/configs/ablations.py:fc --workdir=runs/fc

variant      changes                                          paper's test error
             unchanged: the network of cifar10.py             10.41 %
:fc          fully connected layer instead of global average  11.59 %
             pooling, 640 -> 10 (table 5)
:fc_dropout  :fc with dropout 0.5 on its inputs (table 5)     10.88 %
:linear      one linear convolution per block instead of      not reported
             each mlpconv, 5x5 or 3x3 with 96, 192, 10 maps
:maxout      :linear with maxout units of two pieces instead  not reported
             of ReLU
:dropout     dropout after the first two blocks, for :fast    not reported
:plain       no random crops or flips, for :fast              not reported
:one_size    images of one size and fewer epochs, for :fast:  not reported
             the network to compare :fc,fast with
:fast        one of the above with the recipe of _fast.py, as in `ablations.py:linear,fast`;
             alone, the network to compare these with, except :fc,fast
:smoke       smoke test: four steps on 512 images

"The other parts of the model remain the same" (section 4.6), so dropout after the first two blocks
stays. The paper does not give the initialization or learning rate of the fully connected head. Here
its weights have standard deviation 0.05, like the layers before it, and a tenth of the learning
rate, like the layer that computes the class scores. The paper does not report :linear or :maxout.
They keep the number of maps between blocks and use a learning rate of 0.01. At 0.1, :maxout reaches
NaN within 24 steps and the loss of :linear stays at ln(10). (The Maxout network, at 11.68 %, has a
different shape.) A fully connected head takes images of one size only, so with :fast its runs have
fewer epochs, for as much compute. The 1x1 convolution before it is then a layer like the others,
with batch normalization and ReLU, and the rate of the last layer is the head's.
Errors measured with :fast are in RESULTS.md.
Cost: as cifar10.py, 17 PFLOP; :linear 10, :maxout 19 PFLOP. With :fast 0.2, :linear 0.1 PFLOP.
Needs `python -m experiments.prepare cifar10`.
"""

from ml_collections import ConfigDict

from experiments.configs._fast import fast
from nin_jax.config import default_config, only_one, smoke, variants
from nin_jax.errors import ConfigError

ARMS = ('fc', 'fc_dropout', 'linear', 'maxout', 'dropout', 'plain', 'one_size')
ONE_SIZE = {'fc', 'fc_dropout', 'one_size'}
OF_FAST = {'dropout', 'plain', 'one_size'}  # change nothing in the paper's run


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, *ARMS, 'fast')
    arm = only_one(chosen & set(ARMS))
    if arm in OF_FAST and 'fast' not in chosen:
        raise ConfigError(f"variant ':{arm}' compares with the fast recipe: write ':{arm},fast'")
    config = default_config()
    if 'fast' in chosen:
        fast(config)
        if arm in ONE_SIZE:
            config.train.image_sizes = ''
            config.train.duration = '3.5ep'
    match arm:
        case 'fc' | 'fc_dropout':
            config.model.head = 'fc'
            config.model.head_dropout = 0.5 if arm == 'fc_dropout' else 0.0
            config.model.class_maps = 'relu'  # there are none: the recipe's 'linear' is an error
        case 'linear' | 'maxout':
            for row in config.model.blocks.values():
                row.features = row.features[-1:]
                row.init_std = row.init_std[-1:]
                row.pieces = 2 if arm == 'maxout' else 1
            if 'fast' not in chosen:
                config.optim.lr = 0.01
        case 'dropout':
            config.model.blocks.mlpconv1.dropout = 0.5
            config.model.blocks.mlpconv2.dropout = 0.5
        case 'plain':
            config.augment.crop_pad = 0
            config.augment.flip = config.augment.alternate_flips = False
    if 'smoke' in chosen:
        smoke(config)
    return config
