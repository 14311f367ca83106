"""What each idea of the paper is worth: one piece of the CIFAR-10 network (cifar10.py) exchanged.

    python -m experiments.main --config=experiments/configs/ablations.py:fc --workdir=runs/fc

variant      changes                                          paper's test error
             nothing: the network of cifar10.py               10.41 %
:fc          fully connected layer in place of the global     11.59 %
             average pooling, 640 -> 10 (table 5)
:fc_dropout  the same, half of its inputs dropped (table 5)   10.88 %
:linear      one 5x5 or 3x3 convolution a block, 96, 192 and  none given
             10 maps, in place of each mlpconv
:maxout      the same with maxout units of two pieces in      none given
             place of ReLU
:dropout     dropout after the first two blocks, for :fast       none given
:plain       no crops, no mirror images, for :fast              none given
:fast        one of the above with the recipe of _fast.py, as in `ablations.py:linear,fast`
:smoke       four steps on 512 images, to see that it works

"The other parts of the model remain the same" (section 4.6), so dropout after the first two blocks
stays. The paper does not say how the fully connected head starts and learns: here, like the maps
before it, from weights of standard deviation 0.05, and at a tenth of the rate as the layer that
outputs the class scores. The paper has no run of :linear or :maxout. They keep the maps that pass
from block to block, and learn at 0.01: at 0.1 :maxout reaches NaN within 24 steps and :linear stays
at ln(10). (The Maxout network has another shape; it gets 11.68 %.) With :fast, a fully connected
head sees images of one size only. Costs as cifar10.py, 17 PFLOP; :linear 10, :maxout 20 PFLOP.
Needs `python -m experiments.prepare cifar10`.
"""

from ml_collections import ConfigDict

from experiments.configs._fast import fast
from nin_jax.config import default_config, only_one, smoke, variants

ARMS = ('fc', 'fc_dropout', 'linear', 'maxout', 'dropout', 'plain')


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, *ARMS, 'fast')
    arm = only_one(chosen & set(ARMS))
    config = default_config()
    if 'fast' in chosen:
        fast(config)
    match arm:
        case 'fc' | 'fc_dropout':
            config.model.head = 'fc'
            config.model.head_dropout = 0.5 if arm == 'fc_dropout' else 0.0
            config.model.class_maps = 'relu'
            config.train.image_sizes = ''  # the head is made for one size of image
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
            config.augment.flip = False
    if 'smoke' in chosen:
        smoke(config)
    return config
