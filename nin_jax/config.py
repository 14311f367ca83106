"""Every config key with its default, and the checks on their values.

A config (experiments/configs/) starts from `default_config()` and changes what its dataset needs.
Nothing is computed inside a config: `plan.make_plan` derives steps from durations after all
overrides, so `--config.train.batch_size=256` changes everything that is derived from it.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any

from ml_collections import ConfigDict

from nin_jax.errors import ConfigError, did_you_mean

CHOICES = {
    'dtype': ('float32', 'bfloat16', 'mixed'),
    'data.residency': ('auto', 'device', 'stream'),
    'optim.rule': ('sgd', 'nesterov', 'muon'),
    'optim.schedule': ('drops', 'plateau', 'cosine', 'one_cycle'),
    'model.dropout_mode': ('inverted', 'convnet'),
    'model.head': ('gap', 'fc'),
    'model.norm': ('none', 'batch'),
    'model.class_maps': ('relu', 'linear'),
    'eval.tta': ('none', 'flip', 'shift', 'flip_shift'),
    'preprocess.recipe': ('scale', 'gcn_zca', 'gcn_lcn', 'patch_zca', 'mean'),
}
POOLS = ('max', 'avg', 'none', 'max_rnorm', 'avg_rnorm')


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of a layer table: an mlpconv, then 3x3/2 pooling, then dropout.

    Attributes:
      features: output channels of the k x k convolution and of each following 1x1 convolution.
      kernel: size of the first convolution's kernel, with same padding.
      pool: 'max', 'avg' or 'none'; with '_rnorm', followed by local response normalization (only
        in a baseline).
      dropout: dropout rate after the pooling; 0 for no dropout.
      init_std: standard deviation of each layer's Gaussian initial weights; empty for He
        initialization (sqrt(2 / fan-in)). Biases are initialized to zero.
      pieces: 1 for ReLU; above 1, the number of linear pieces of a maxout unit.
      local: whether the first layer is locally connected instead of convolutional.
      stride: stride of the first convolution; above 1, there is no padding.
    """

    features: tuple[int, ...]
    kernel: int
    pool: str = 'none'
    dropout: float = 0.0
    init_std: tuple[float, ...] = (0.05, 0.05, 0.05)
    pieces: int = 1
    local: bool = False
    stride: int = 1


def block(features: tuple[int, ...], kernel: int, **fields: Any) -> ConfigDict:
    """One row of a layer table as config keys; `fields` are those of `Block`."""
    return ConfigDict(dataclasses.asdict(Block(features, kernel, **fields)))


def default_config() -> ConfigDict:
    """Returns the config of the paper's CIFAR-10 run without augmentation."""
    config = ConfigDict()
    config.seed = 0  # seed of initialization, batch order, augmentation and dropout
    config.devices = 0  # number of devices to use; 0 for all
    # Or 'bfloat16', or 'mixed': 1x1 convolutions multiply in bfloat16 and accumulate in float32;
    # everything else is float32. Parameters are always float32.
    config.dtype = 'float32'

    config.data = ConfigDict()
    config.data.name = 'cifar10'  # an entry of nin_jax/data/catalog.py
    config.data.train = 'train+valid'  # splits to train on
    config.data.eval = 'test'  # splits to report top-1 error on
    config.data.dir = ''  # folder of the prepared data; '' for the default of TFDS
    config.data.limit = 0  # keep only the first examples of each split; 0 for all
    config.data.residency = 'auto'  # images on the 'device', or a 'stream' to it

    config.preprocess = ConfigDict()
    config.preprocess.recipe = 'gcn_zca'  # see data/preprocess.py
    config.preprocess.gcn_scale = 55.0  # L2 norm of an image after contrast normalization
    config.preprocess.zca_bias = 0.1  # added to the covariance's eigenvalues

    config.augment = ConfigDict()
    config.augment.crop_pad = 0  # pixels of zero padding before a random crop
    config.augment.flip = False  # random horizontal flips
    config.augment.alternate_flips = False  # instead, each image is flipped in every other epoch
    config.augment.cutout = 0  # side of a zeroed square in pixels; 0 for none
    config.augment.mixup = 0.0  # alpha of mixup; 0 for none
    config.augment.cutmix = 0.0  # alpha of CutMix; 0 for none
    config.augment.label_smoothing = 0.0  # probability mass spread over all classes

    config.model = ConfigDict()
    config.model.dropout_mode = 'inverted'  # or 'convnet', see nin_jax.models.nin.NIN
    config.model.norm = 'none'  # or 'batch': batch normalization before each ReLU
    config.model.class_maps = 'relu'  # or 'linear': no ReLU on the class maps
    config.model.class_bias = 0.0  # initial bias of the last maps; above 0, fewer of them are dead
    config.model.head = 'gap'  # or 'fc': a fully connected layer instead of average pooling
    config.model.head_dropout = 0.0  # dropout rate of the inputs of head 'fc'
    config.model.blocks = ConfigDict(
        dict(
            mlpconv1=block((192, 160, 96), kernel=5, pool='max', dropout=0.5),
            mlpconv2=block((192, 192, 192), kernel=5, pool='max', dropout=0.5),
            mlpconv3=block((192, 192, 10), kernel=3),
        )
    )

    config.init = ConfigDict()
    config.init.weights = ''  # folder of a run or release with initial weights; '' for none
    config.init.new_head = True  # do not copy the last layer, for different classes

    config.optim = ConfigDict()
    config.optim.rule = 'sgd'  # or 'nesterov', or 'muon', with Adam for the biases
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4  # of weights, not biases: L2; with 'muon', decoupled
    config.optim.bias_lr = 2.0  # times lr
    config.optim.last_layer_lr = 0.1  # times lr, for the last layer
    config.optim.backbone_lr = 1.0  # times lr, for all other layers; 0 freezes them
    # At `drops`, or on a 'plateau' of training error, or 'cosine', 'one_cycle'; see schedules.py.
    config.optim.schedule = 'drops'
    config.optim.warmup = '0%'  # duration of the linear increase to lr, in every schedule
    config.optim.drops = '200ep 230ep'  # times of the drops; 'plateau' uses only their number
    config.optim.drop_factor = 0.1
    config.optim.plateau_patience = 10  # epochs without improvement of the training error

    config.train = ConfigDict()
    config.train.duration = '260ep'  # durations: '3ep' (epochs), '500steps' or '10%'
    config.train.batch_size = 128
    # Progressive resizing: '20@40% 24@70%' trains on 20x20 pixels up to 40 % of the run, on 24x24
    # up to 70 %, and then on the original size. Global average pooling accepts any size.
    config.train.image_sizes = ''
    # '60%' stops training mlpconv1 at 60 % of the run; a second duration stops mlpconv2, and so on.
    config.train.freeze = ''
    # Images per gradient; 0: the whole batch, but gcd(batch size, 16) on one CPU without batch
    # normalization.
    config.train.microbatch = 0
    config.train.steps_per_call = 0  # steps per dispatch; 0: 10 on CPUs or streamed, else an epoch
    config.train.ema = 0.0  # decay of the moving average of the weights; 0: none
    config.train.dead_steps = 100  # stop after this many consecutive steps with a dead network
    config.train.stall_timeout = 1800.0  # seconds without progress until exit status 75; 0: never
    config.train.restarts = 0  # maximum number of restarts of a dead or diverged run

    config.eval = ConfigDict()
    config.eval.every = '1ep'
    config.eval.batch_size = 0  # 0: 16 on one CPU, else 64 per CPU or 512 per other device
    config.eval.pictures = 0  # test images shown in TensorBoard with their class maps
    config.eval.tta = 'none'  # average the logits of 'flip', 'shift' or 'flip_shift' views

    config.checkpoint = ConfigDict()
    config.checkpoint.every = '5ep'
    config.checkpoint.keep = 2  # number of newest checkpoints to keep besides the best
    return config


def variants(arg: str | None, *known: str) -> set[str]:
    """Splits a config's variants, as in `cifar10.py:aug,smoke`; every config has 'smoke'.

    Raises:
      ConfigError: a variant does not exist.
    """
    chosen = {v for v in (arg or '').split(',') if v}
    for name in sorted(chosen - {*known, 'smoke'}):
        raise ConfigError(f"unknown variant ':{name}'{did_you_mean(name, (*known, 'smoke'), ':')}")
    return chosen


def only_one(chosen: set[str]) -> str:
    """Returns the only element of a set of mutually exclusive variants; '' if it is empty.

    Raises:
      ConfigError: there is more than one.
    """
    if len(chosen) > 1:
        two = "' and ':".join(sorted(chosen)[:2])
        raise ConfigError(f"variants ':{two}' exclude each other: choose one")
    return next(iter(chosen), '')


def smoke(config: ConfigDict) -> None:
    """Turns a config into a smoke test: four steps on 512 images."""
    config.data.limit = 512
    config.train.duration = '4steps'
    config.train.steps_per_call = 2
    config.train.batch_size = 32
    config.train.microbatch = 0
    config.eval.every = '2steps'
    config.checkpoint.every = '2steps'


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Returns {'optim.lr': 0.1, ...}."""
    flat = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict) -> ConfigDict:
    """Inverts `flatten`; keys that are missing in `flat` have their default.

    Raises:
      LookupError, AttributeError, TypeError: `flat` is not a config.
    """
    config = default_config()
    blocks: dict[str, dict] = {}
    for key, value in flat.items():
        if value is None:  # 0.2.0 accepted it for some defaults
            continue
        value = tuple(value) if isinstance(value, list) else value
        *parents, name = key.split('.')
        if parents[:2] == ['model', 'blocks']:
            blocks.setdefault(parents[2], {})[name] = value
        else:
            config.update_from_flattened_dict({key: value})
    if not blocks:
        raise KeyError('model.blocks')
    config.model.blocks = ConfigDict({name: block(**row) for name, row in blocks.items()})
    return config


# Keys that do not change the result of a run.
FREE_TO_CHANGE = (
    'devices',
    'data.dir',
    'data.residency',
    'checkpoint.',
    'eval.batch_size',
    'eval.pictures',
    'train.restarts',
    'train.stall_timeout',
)


# ---- checks ---------------------------------------------------------------------------------

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    'seed': (lambda v: 0 <= v < 2**31, 'from 0 to 2147483647'),
    'devices': (lambda v: v >= 0, '0 (all) or more'),
    'data.limit': (lambda v: v >= 0, '0 (all) or more'),
    'preprocess.gcn_scale': (lambda v: 0 < v < 1e6, 'above 0'),
    'preprocess.zca_bias': (lambda v: 0 < v < 1e6, 'above 0'),
    'augment.crop_pad': (lambda v: 0 <= v <= 64, 'from 0 to 64'),
    'augment.cutout': (lambda v: v >= 0, '0 (none) or more'),
    'augment.mixup': (lambda v: 0 <= v < 1e3, '0 (none) or more'),
    'augment.cutmix': (lambda v: 0 <= v < 1e3, '0 (none) or more'),
    'augment.label_smoothing': (lambda v: 0 <= v < 1, 'from 0 to below 1'),
    'model.class_bias': (lambda v: 0 <= v < 1e3, '0 or more'),
    'model.head_dropout': (lambda v: 0 <= v < 1, 'from 0 to below 1'),
    'optim.lr': (lambda v: 0 < v < 1e3, 'above 0'),
    'optim.momentum': (lambda v: 0 <= v < 1, 'from 0 to below 1'),
    'optim.weight_decay': (lambda v: 0 <= v < 1e3, '0 or more'),
    'optim.bias_lr': (lambda v: 0 <= v < 1e3, '0 or more'),
    'optim.last_layer_lr': (lambda v: 0 <= v < 1e3, '0 or more'),
    'optim.backbone_lr': (lambda v: 0 <= v < 1e3, '0 (frozen) or more'),
    'optim.drop_factor': (lambda v: 0 < v < 1, 'between 0 and 1'),
    'optim.plateau_patience': (lambda v: v >= 1, '1 or more'),
    'train.batch_size': (lambda v: 1 <= v <= 2**20, '1 or more'),
    'train.microbatch': (lambda v: v >= 0, '0 (automatic) or more'),
    'train.steps_per_call': (lambda v: v >= 0, '0 (automatic) or more'),
    'train.ema': (lambda v: 0 <= v < 1, 'from 0 to below 1'),
    'train.dead_steps': (lambda v: v >= 1, '1 or more'),
    'train.stall_timeout': (lambda v: v == 0 or 1 <= v < 1e7, '0 (never), or 1 s or more'),
    'train.restarts': (lambda v: 0 <= v <= 100, 'from 0 to 100'),
    'eval.batch_size': (lambda v: 0 <= v <= 2**20, '0 (automatic) or more'),
    'eval.pictures': (lambda v: 0 <= v <= 64, 'from 0 to 64'),
    'checkpoint.keep': (lambda v: v >= 1, '1 or more'),
}


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for the first unknown key or bad value, with the key and the fix."""
    _check_keys(config)
    flat = flatten(config)
    for key, (allowed, words) in RANGES.items():
        if not allowed(flat[key]):  # NaN fails every comparison
            raise ConfigError(f'{key}={flat[key]!r}: must be {words}')
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise ConfigError(f'{key}={flat[key]!r}{did_you_mean(str(flat[key]), choices)}')
    if config.augment.alternate_flips and not config.augment.flip:
        raise ConfigError('augment.alternate_flips=True: also set augment.flip=True')
    if config.model.head == 'gap' and config.model.head_dropout:
        raise ConfigError(
            f"model.head_dropout={config.model.head_dropout!r}: must be 0 with model.head='gap', "
            "or choose model.head='fc'"
        )
    if config.model.head == 'fc' and config.model.class_maps == 'linear':
        raise ConfigError(
            "model.class_maps='linear': with model.head='fc' there are no class maps, "
            "choose model.class_maps='relu' or model.head='gap'"
        )
    sizes = f'train.image_sizes={config.train.image_sizes!r}'
    if config.train.image_sizes and config.preprocess.recipe == 'gcn_zca':
        raise ConfigError(
            f"{sizes}: preprocess.recipe='gcn_zca' whitens images of one size, "
            "choose preprocess.recipe='patch_zca' or train.image_sizes=''"
        )
    if config.train.image_sizes and config.model.head == 'fc':
        raise ConfigError(
            f"{sizes}: model.head='fc' takes images of one size, "
            "choose model.head='gap' or train.image_sizes=''"
        )
    if config.model.head == 'fc' and config.eval.pictures:
        raise ConfigError(
            f"eval.pictures={config.eval.pictures}: with model.head='fc' there are no class maps, "
            "choose eval.pictures=0 or model.head='gap'"
        )
    names = list(config.model.blocks)  # a ConfigDict sorts its keys
    if names != [f'mlpconv{i}' for i in range(1, len(names) + 1)]:
        raise ConfigError(
            f'model.blocks={", ".join(names)}: name them mlpconv1, mlpconv2, ... up to mlpconv9'
        )
    for name, row in config.model.blocks.items():
        _validate_block(f'model.blocks.{name}', row)
        if row.local and config.model.norm == 'batch':
            raise ConfigError(
                f'model.blocks.{name}.local=True: local filters have no batch normalization, '
                "choose model.norm='none'"
            )
        if row.local and config.train.image_sizes:
            raise ConfigError(
                f'{sizes}: model.blocks.{name}.local=True takes images of one size, '
                "choose train.image_sizes=''"
            )


def check_key(key: str, known: Collection[str]) -> None:
    """Raises ConfigError, with the closest known key, for an unknown one."""
    if key not in known:
        raise ConfigError(f"unknown key '{key}'{did_you_mean(key, known)}")


def _check_keys(config: ConfigDict) -> None:
    """Raises ConfigError unless the config has the keys of `default_config`, with their types."""
    known = {k: v for k, v in flatten(default_config()).items() if not k.startswith('model.blocks')}
    flat, row = flatten(config), dataclasses.asdict(Block((), 1))
    names = {key.split('.')[2] for key in flat if re.match(r'model\.blocks\..', key)}
    for name in names or {'mlpconv1'}:
        known |= {f'model.blocks.{name}.{field}': value for field, value in row.items()}
    for key in flat:
        check_key(key, known)
    for key, default in known.items():
        if key not in flat:
            start = 'block(...)' if key.startswith('model.blocks') else 'default_config()'
            raise ConfigError(f"missing key '{key}': start from nin_jax.config.{start}")
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(flat[key], kinds) or isinstance(flat[key], bool) != (kinds is bool):
            raise ConfigError(f'{key}={flat[key]!r}: must be {type(default).__name__}')


def _validate_block(key: str, row: ConfigDict) -> None:
    if not row.features or not all(isinstance(f, int) and f >= 1 for f in row.features):
        raise ConfigError(f'{key}.features={row.features!r}: must be whole numbers, 1 or more')
    if row.kernel < 1 or row.kernel % 2 == 0:
        raise ConfigError(f'{key}.kernel={row.kernel!r}: must be odd, 1 or more')
    if row.stride < 1 or (row.local and row.stride > 1):
        raise ConfigError(f'{key}.stride={row.stride!r}: must be 1 or more, and 1 if local')
    if row.pool not in POOLS:
        raise ConfigError(f'{key}.pool={row.pool!r}{did_you_mean(row.pool, POOLS)}')
    if not 0 <= row.dropout < 1:
        raise ConfigError(f'{key}.dropout={row.dropout!r}: must be from 0 to below 1')
    if row.pieces < 1:
        raise ConfigError(f'{key}.pieces={row.pieces!r}: must be 1 (ReLU) or more')
    if row.init_std and (
        len(row.init_std) != len(row.features)
        or not all(isinstance(s, (int, float)) and 0 < s < 1e3 for s in row.init_std)
    ):
        raise ConfigError(
            f'{key}.init_std={row.init_std!r}: must be one positive number for each '
            f'of features={row.features!r}, or () for He initialization'
        )
