"""SVHN, table 3 of the paper: NIN with dropout, no augmentation.

    python -m experiments.main --config=experiments/configs/svhn.py --workdir=runs/svhn

variant      changes                                          paper's test error
             18 epochs, learning rate drops at 12 and 15      2.35 %
:modern      the recipe of _modern.py for digits, 18 epochs   not reported
:smoke       smoke test: four steps on 512 images

Trains on 598,388 images. The 6,000 held-out images (per class, 400 from train and 200 from extra)
are for hyperparameter selection only: `--config.data.eval=valid`. Layers and learning rates are the
authors' (cuda-convnet NIN/svhn_def, NIN/svhn_params). They did not publish a schedule, so the
schedule is ours. Local contrast normalization treats each of the three channels separately.
Cost: 84,000 steps, 18 PFLOP; :modern 108,000 steps, 12 PFLOP.
Needs `python -m experiments.prepare svhn_cropped`.
"""

from ml_collections import ConfigDict

from experiments.configs._modern import modern_digits
from nin_jax.config import block, default_config, smoke, variants


def get_config(arg: str = '') -> ConfigDict:
    chosen = variants(arg, 'modern')
    config = default_config()
    config.data.name = 'svhn_cropped'
    config.data.train = 'train'
    config.preprocess.recipe = 'gcn_lcn'
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((128, 96, 64), kernel=5, pool='max', dropout=0.5),
            mlpconv2=block((320, 256, 128), kernel=5, pool='max', dropout=0.5),
            mlpconv3=block((384, 256, 10), kernel=5),
        )
    )
    config.optim.drops = '12ep 15ep'
    config.train.duration = '18ep'
    config.checkpoint.every = '1ep'
    if 'modern' in chosen:
        modern_digits(config, duration='18ep')
    if 'smoke' in chosen:
        smoke(config)
    return config
