"""The ImageNet NIN of the authors' Caffe model zoo: four mlpconv layers, 7,595,176 parameters.

    python -m experiments.main --config=experiments/configs/imagenet.py --workdir=runs/imagenet

variant      changes                                          Caffe's error
             as released: random crops and flips              40.64 %
:smoke       smoke test: four steps on 512 images

Not in the paper. Layers, learning rates and schedule are those of the authors' prototxt files,
which state 59.36 % accuracy on the 50,000 validation images (top-1, center crop). The authors
resized images to 256 x 256 and subtracted a mean image; here the shorter side is resized to 256,
and the mean color is subtracted.
Cost: 450,000 steps of 64 images, 180 PFLOP, and the decoding of 29 million images on the host.
Needs `imagenet2012` as folders of images or as TFDS prepares it: see nin_jax/data/photos.py.
"""

from ml_collections import ConfigDict

from nin_jax.config import block, default_config, smoke, variants


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg)
    config = default_config()
    config.data.name = 'imagenet2012'
    config.preprocess.recipe = 'mean'
    config.augment.flip = True
    first = (0.01, 0.05, 0.05)
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((96, 96, 96), kernel=11, stride=4, pool='max', init_std=first),
            mlpconv2=block((256, 256, 256), kernel=5, pool='max'),
            mlpconv3=block((384, 384, 384), kernel=3, pool='max', dropout=0.5, init_std=first),
            mlpconv4=block((1024, 1024, 1000), kernel=3, init_std=(0.05, 0.05, 0.01)),
        )
    )
    config.optim.lr = 0.01
    config.optim.last_layer_lr = 1.0
    config.optim.weight_decay = 5e-4
    config.optim.drops = '200000steps 400000steps'
    config.train.duration = '450000steps'
    config.train.batch_size = 64
    if 'smoke' in chosen:
        smoke(config)
    return config
