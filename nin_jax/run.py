"""Puts a run together: config -> data, preprocessing, model, optimiser, plan."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nin_jax import datasets, distributed, finetune, optim, photos, preprocess
from nin_jax.augment import Augment
from nin_jax.config import Plan, make_plan
from nin_jax.errors import ConfigError, UserError
from nin_jax.model import NIN, Block
from nin_jax.step import Examples, Setup, TrainState, join
from nin_jax.stream import Arrays, Stream


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that training and evaluation need.

    Attributes:
      config: what the user asked for.
      plan: what that comes to, in steps.
      setup: the static argument of the compiled programs.
      preprocess: fitted on the training split, or restored with the run.
      train, eval: the two splits: on the device, or streamed to it.
      class_names: in label order.
      init_state: attempt number -> a fresh state, its weights a function of (seed, attempt).
    """

    config: ConfigDict
    plan: Plan
    setup: Setup
    preprocess: preprocess.Preprocess
    train: Examples | Stream
    eval: Examples | Stream
    class_names: tuple[str, ...]
    init_state: Callable[[int], TrainState]

    def start(self, attempt: int) -> TrainState:
        """What training starts from: `init_state`, with the weights of `init.weights` if any."""
        return finetune.start(self.config, self.setup, self.init_state(attempt))


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """A mesh of one axis, 'data', over the first `devices` there are (0: all of them)."""
    try:
        available = jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter for a platform of another machine
        reason = str(e).split('. ')[0] or 'no device of that kind is here'
        raise UserError(
            f'JAX cannot use JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r} ({reason}): '
            'set it to cpu, or unset it'
        ) from e
    if devices not in (0, len(available)) and distributed.several():
        raise ConfigError(
            f'devices={devices}: several processes use all of their {len(available)} devices, '
            'leave it 0'
        )
    if devices > len(available):
        raise ConfigError(
            f'devices={devices}: JAX sees {len(available)} '
            f'({available[0].device_kind}), choose that or less, or 0 for all'
        )
    return mesh_of(available[: devices or len(available)])


def mesh_of(devices: list[jax.Device]) -> jax.sharding.Mesh:
    """All of `devices` along one axis, 'data'."""
    return jax.make_mesh((len(devices),), ('data',), devices=devices, axis_types=(AxisType.Auto,))


def is_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the program is for CPUs, wherever it is compiled."""
    return mesh.devices.flat[0].platform == 'cpu'


def is_one_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Where the activations of few images stay in the cache, and few are faster than many."""
    return mesh.size == 1 and is_cpu(mesh)


def microbatch(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """How many images' gradients are computed at a time; ConfigError if they do not come out."""
    batch_size = config.train.batch_size
    # A piece is what batch normalisation sees, which must not hang on the number of devices.
    in_pieces = is_one_cpu(mesh) and config.model.norm == 'none'
    automatic = math.gcd(batch_size, 16) if in_pieces else batch_size
    size = config.train.microbatch or automatic
    if batch_size % size or size % mesh.size:
        raise ConfigError(
            f'train.microbatch={size}: must divide train.batch_size={batch_size} and be a multiple '
            f'of the {mesh.size} devices; 0 chooses it'
        )
    return size


def eval_batch_size(mesh: jax.sharding.Mesh) -> int:
    """How many images are scored at a time where the config does not say."""
    if is_one_cpu(mesh):
        return 16
    return mesh.size * (64 if is_cpu(mesh) else 512)


def model_blocks(config: ConfigDict, num_classes: int) -> tuple[Block, ...]:
    """The config's layer table; ConfigError if it has to end in one map per class and does not."""
    name, last = list(config.model.blocks.items())[-1]
    if config.model.head == 'gap' and last.features[-1] != num_classes:
        raise ConfigError(
            f'model.blocks.{name}.features={last.features!r} ends in '
            f'{last.features[-1]} maps, but {config.data.name} has {num_classes} '
            f"classes: end it in {num_classes}, or choose model.head='fc'"
        )
    return tuple(Block(**row) for row in config.model.blocks.values())


def fc_classes(config: ConfigDict, num_classes: int) -> int:
    """Classes of a fully connected head; 0 for global average pooling."""
    return num_classes if config.model.head == 'fc' else 0


def load_split(config: ConfigDict, splits: str) -> datasets.Split:
    """The named splits on the host, cut to `data.limit`."""
    if datasets.lookup(config.data.name).resize:
        return open_split(config, splits).load()
    split = datasets.load(config.data.name, splits, config.data.dir)
    keep = slice(config.data.limit or None)
    return datasets.Split(split.images[keep], split.labels[keep], split.class_names)


def open_split(config: ConfigDict, splits: str) -> datasets.Split | photos.Photos:
    """The named splits, cut to `data.limit`: photographs stay on the disk."""
    if not datasets.lookup(config.data.name).resize:
        return load_split(config, splits)
    if config.data.residency == 'device':
        raise ConfigError(
            f"data.residency='device': {config.data.name} is read from the disk as training goes, "
            "set 'stream' or 'auto'"
        )
    return photos.open_split(config.data.name, splits, config.data.dir, config.data.limit)


def fit_preprocess(
    config: ConfigDict, train: datasets.Split | photos.Photos
) -> preprocess.Preprocess:
    """The config's recipe, fitted to the training split or, for photographs, known already."""
    recipe = config.preprocess.recipe
    if isinstance(train, photos.Photos):
        if recipe == 'mean':
            return preprocess.mean_colour(255 * np.array(train.dataset.channel_means))
        if recipe == 'gcn_zca':
            raise ConfigError(
                "preprocess.recipe='gcn_zca': it is fitted to images in memory, and those of "
                f"{config.data.name} are on the disk: choose 'mean', 'scale' or 'gcn_lcn'"
            )
        return preprocess.Preprocess(recipe)
    return preprocess.fit(
        recipe,
        train.images,
        zca_bias=config.preprocess.zca_bias,
        gcn_scale=config.preprocess.gcn_scale,
    )


def assemble(
    config: ConfigDict,
    fit: Callable[
        [ConfigDict, datasets.Split | photos.Photos], preprocess.Preprocess
    ] = fit_preprocess,
) -> Run:
    """Loads the data and builds what a run needs.

    Args:
      config: a valid config.
      fit: (config, training split) -> preprocessing, fitted anew or the run's own.

    Raises:
      ConfigError, DataError: see the functions called.
    """
    mesh = make_mesh(config.devices)
    check_batches(config, mesh)
    train, test = open_split(config, config.data.train), open_split(config, config.data.eval)
    distributed.check_same('images', lambda: digest(train, test))
    streaming = is_streamed(config, mesh, train, test)
    plan = make_plan(config, len(train), streaming or is_cpu(mesh))
    fitted = fit(config, train)
    setup, init_state = build(config, plan, mesh, train.like[0], len(train.class_names))
    replicated = NamedSharding(mesh, PartitionSpec())
    return Run(
        config,
        plan,
        setup,
        distributed.place(fitted, replicated),
        _place(train, fitted, setup, streaming),
        _place(test, fitted, setup, streaming),
        train.class_names,
        init_state,
    )


def check_batches(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError for batches that the devices cannot share evenly."""
    for key in ('train', 'eval'):
        if config[key].batch_size % mesh.size:
            raise ConfigError(
                f'{key}.batch_size={config[key].batch_size}: must be a multiple of '
                f'the {mesh.size} devices; set devices=1 to use one'
            )


def digest(*splits: datasets.Split | photos.Photos) -> str:
    """SHA-256 over images and labels; of photographs, over their number and classes alone."""
    sha = hashlib.sha256()
    for split in splits:
        if isinstance(split, photos.Photos):
            sha.update(repr((len(split), split.class_names)).encode())
            continue
        sha.update(np.ascontiguousarray(split.images))
        sha.update(np.ascontiguousarray(split.labels))
    return sha.hexdigest()


def build(
    config: ConfigDict,
    plan: Plan,
    mesh: jax.sharding.Mesh,
    image_shape_HWC: tuple[int, int, int],
    num_classes: int,
) -> tuple[Setup, Callable[[int], TrainState]]:
    """The model and its optimiser: what the programs are compiled for, and `Run.init_state`."""
    blocks = model_blocks(config, num_classes)
    height, width = image_shape_HWC[:2]
    if config.augment.cutout > min(height, width):
        raise ConfigError(
            f'augment.cutout={config.augment.cutout}: the images are only {height}x{width}'
        )

    def make_model(key: jax.Array) -> NIN:
        return NIN(
            blocks,
            image_shape_HWC[-1],
            fc_classes=fc_classes(config, num_classes),
            fc_dropout=config.model.head_dropout,
            image_size=(height, width),
            dropout_mode=config.model.dropout_mode,
            norm=config.model.norm,
            class_maps=config.model.class_maps,
            class_bias=config.model.class_bias,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(key),
        )

    def init_weights(attempt: jax.Array) -> tuple[dict, dict]:
        model = make_model(jax.random.fold_in(jax.random.key(config.seed), attempt))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    params, _ = jax.eval_shape(init_weights, 0)
    model = nnx.eval_shape(make_model, jax.random.key(0))
    optimiser = optim.make_optimiser(
        config.optim,
        params,
        model.last_layer,
        plan.drops,
        round(plan.steps_per_epoch),
        plan.warmup,
        plan.total_steps,
    )

    def init_state(attempt: jax.Array) -> TrainState:
        params, stats = init_weights(attempt)
        zero, ema = jnp.int32(0), join(params, stats) if config.train.ema else {}
        return TrainState(
            zero, jnp.int32(attempt), zero, params, optimiser.init(params), stats, ema
        )

    setup = Setup(
        model=nnx.graphdef(model),
        optimiser=optimiser,
        mesh=mesh,
        seed=config.seed,
        batch_size=config.train.batch_size,
        microbatch=microbatch(config, mesh),
        eval_batch_size=config.eval.batch_size or eval_batch_size(mesh),
        augment=Augment(num_classes, **config.augment),
        ema=config.train.ema,
        tta=config.eval.tta,
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    return setup, jax.jit(init_state, out_shardings=replicated)


def is_streamed(config: ConfigDict, mesh: jax.sharding.Mesh, *splits) -> bool:
    """Whether the splits stay on the host: `data.residency`, or whether they need half of a
    device's memory (on a CPU, of the machine's)."""
    if isinstance(splits[0], photos.Photos):
        return True
    residency, pixel = config.data.residency, 4 if config.preprocess.recipe == 'gcn_zca' else 1
    needed = sum(pixel * split.images.size for split in splits)
    stats = mesh.local_devices[0].memory_stats() or {}
    host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    too_large = needed > stats.get('bytes_limit', host) / 2
    return residency == 'stream' or (residency == 'auto' and too_large)


def _place(
    split: datasets.Split | photos.Photos,
    fitted: preprocess.Preprocess,
    setup: Setup,
    streaming: bool,
) -> Examples | Stream:
    """A split as uint8, or whitened once where every step would repeat it."""
    if isinstance(split, photos.Photos):
        return Stream(split, setup)
    images_NHWC = split.images
    if fitted.recipe == 'gcn_zca':
        images_NHWC = whiten(fitted, images_NHWC)
    if streaming:
        return Stream(Arrays(images_NHWC, split.labels), setup)
    replicated = NamedSharding(setup.mesh, PartitionSpec())
    return distributed.place(Examples(images_NHWC, split.labels), replicated)


def whiten(fitted: preprocess.Preprocess, images_NHWC: np.ndarray, chunk: int = 1000) -> np.ndarray:
    """Preprocesses uint8 images chunk by chunk: float32 of the same shape."""
    apply, fitted = jax.jit(lambda fitted, images: fitted(images)), jax.device_put(fitted)
    out_NHWC = np.empty(images_NHWC.shape, np.float32)
    for start in range(0, len(images_NHWC), chunk):
        part = slice(start, start + chunk)
        out_NHWC[part] = apply(fitted, images_NHWC[part])
    return out_NHWC
