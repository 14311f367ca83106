"""CIFAR-10, section 4.6 of the paper: global average pooling in the network of Hinton et al. 2012.

    python -m experiments.main --config=experiments/configs/hinton.py:gap --workdir=runs/hinton_gap

variant      changes                                          paper's test error
:fc          16 local maps, fully connected head (default)    17.56 %
:fc_dropout  :fc with dropout 0.5 on the head's inputs        15.99 %
:gap         10 local maps, global average pooling            16.46 %
:smoke       smoke test: four steps on 512 images

The paper: three convolutional layers and one locally connected layer, whose 16 maps become 10 for
global average pooling. Hinton et al. (arXiv 1207.0580, appendix "Models for CIFAR-10"), cited from
memory: each convolution has 64 filters of 5x5, followed by 3x3 pooling with stride 2, max pooling
first and average pooling then; local response normalization after the first two (9 maps, alpha
0.001, beta 0.75); 3x3 local filters; dropout on the local layer. cuda-convnet's
layers-conv-local-11pct.cfg, by the same authors: same padding and ReLU in convolutional and local
layers. Assumed: a separate bias at each position, the preprocessing of table 1, He initialization,
the learning rate and the schedule.
Cost: 47,000 steps, 1.3 PFLOP. Needs `python -m experiments.prepare cifar10`.
"""

from ml_collections import ConfigDict

from nin_jax.config import block, default_config, only_one, smoke, variants

ARMS = ('fc', 'fc_dropout', 'gap')


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, *ARMS)
    arm = only_one(chosen & set(ARMS))
    config = default_config()
    config.model.head = 'gap' if arm == 'gap' else 'fc'
    if arm == 'fc_dropout':
        config.model.head_dropout = 0.5
    maps = 10 if arm == 'gap' else 16
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((64,), kernel=5, pool='max_rnorm', init_std=()),
            mlpconv2=block((64,), kernel=5, pool='avg_rnorm', init_std=()),
            mlpconv3=block((64,), kernel=5, pool='avg', init_std=()),
            mlpconv4=block((maps,), kernel=3, local=True, init_std=()),
        )
    )
    config.optim.lr = 0.01
    config.optim.last_layer_lr = 1.0
    config.optim.drops = '100ep 110ep'
    config.train.duration = '120ep'
    if 'smoke' in chosen:
        smoke(config)
    return config
