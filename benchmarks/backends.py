"""The backends of the benchmark: this code base, and the same network and step in PyTorch.

Each is built by a function `(network, dtype, batch_size, steps) -> Backend`. Both train on whitened
float32 images that are already on the device.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ml_collections import ConfigDict

NETWORKS = {  # config, with its variant -> (height = width, channels, classes)
    'cifar10': (32, 3, 10),
    'cifar100': (32, 3, 100),
    'svhn': (32, 3, 10),
    'mnist': (28, 1, 10),
    'cifar10:fast': (32, 3, 10),
    'cifar100:fast': (32, 3, 100),
    'mnist:fast': (28, 1, 10),
}


@dataclasses.dataclass(frozen=True)
class Backend:
    """Measurements of a network.

    Attributes:
      seconds: mode -> function that runs `steps` batches and returns the seconds. The modes are
        'forward', and `train_mode` of each stage of the config.
      peak_memory: returns the bytes so far.
    """

    seconds: dict[str, Callable[[], float]]
    peak_memory: Callable[[], int]


def config(network: str) -> ConfigDict:
    """Returns the config of the experiment."""
    name, _, variant = network.partition(':')
    return importlib.import_module(f'experiments.configs.{name}').get_config(variant)


def stages(network: str) -> list[tuple[Any, int]]:
    """Returns the stages of a whole run (`plan.Stage`), each with its number of steps."""
    from nin_jax.data import catalog
    from nin_jax.plan import make_plan

    settings = config(network)
    images = catalog.count(settings.data.name, settings.data.train)
    plan = make_plan(settings, images, short_calls=True)
    return [(stage, end - start) for stage, start, end in plan.stages()]


def train_mode(stage) -> str:
    return f'train, {stage}' if str(stage) else 'train'


def layers(network: str) -> Iterator[tuple[int, int, int, int]]:
    """Yields size, kernel, inputs and outputs of each convolution."""
    size, channels, _ = NETWORKS[network]
    for row in config(network).model.blocks.values():
        for i, features in enumerate(row.features):
            yield size, row.kernel if i == 0 else 1, channels, features
            channels = features
        if row.pool != 'none':
            size = -(-(size - 3) // 2) + 1


def macs_per_image(network: str) -> int:
    """Returns the multiply-adds of one image's forward pass, without biases."""
    return sum((size * kernel) ** 2 * i * o for size, kernel, i, o in layers(network))


def macs_made(network: str, mode: str) -> int:
    """Returns the multiply-adds per image that this code base makes on a CPU.

    Winograd's algorithm makes fewer than `macs_per_image` counts, and the first layer has no
    gradient of its input.
    """
    import jax

    from nin_jax.models import winograd

    total = 0
    for number, (size, kernel, i, o) in enumerate(layers(network)):
        x_BHWC, kernel_HWIO = (
            jax.ShapeDtypeStruct(shape, 'float32')
            for shape in ((1, size, size, i), (kernel, kernel, i, o))
        )
        fast = winograd.suits(x_BHWC, kernel_HWIO, stride=1, padding=kernel // 2)
        products = (size * kernel) ** 2
        if fast:
            outputs = winograd.tile_outputs(size, size, kernel)
            products = winograd.products(size, size, outputs, kernel)
        macs = products * i * o
        total += macs * (1 if mode == 'forward' else 3 if number else 2)
    return total


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def host_peak_memory() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == 'darwin' else most * 1024  # macOS counts bytes, Linux KiB


def ours(network: str, dtype: str, batch_size: int, steps: int) -> Backend:
    """Builds this code base's model, training step and evaluation, as a run does."""
    import jax

    from nin_jax.data.batches import Examples
    from nin_jax.data.preprocess import Preprocess
    from nin_jax.devices import is_cpu, is_one_cpu, keep_freed_memory, make_mesh
    from nin_jax.plan import make_plan
    from nin_jax.train.step import evaluate, train_steps
    from nin_jax.train.trainer import make_setup

    size, channels, classes = NETWORKS[network]
    count = batch_size * steps
    settings = config(network)
    settings.dtype, settings.train.batch_size = dtype, batch_size
    mesh = make_mesh(1)
    if is_cpu(mesh):
        keep_freed_memory()
    plan = make_plan(settings, count, is_one_cpu(mesh))
    setup, init_state = make_setup(settings, plan, mesh, (size, size, channels), classes)
    state = init_state(0)
    preprocess = Preprocess('scale')  # not applied: the images are floats

    def random_examples(side: int) -> Examples:
        image_key, label_key = jax.random.split(jax.random.key(0))
        return Examples.of(
            jax.random.normal(image_key, (count, side, side, channels)),
            jax.random.randint(label_key, (count,), 0, classes),
        )

    run_stages = [stage for stage, _ in stages(network)]
    examples = {side: random_examples(side or size) for side in {0, *(s.side for s in run_stages)}}

    def train(stage) -> None:
        nonlocal state
        state, metrics = train_steps(
            state,
            examples[stage.side],
            preprocess,
            setup=dataclasses.replace(setup, frozen=stage.frozen),
            num_steps=steps,
        )
        jax.block_until_ready((state, metrics))

    def forward() -> None:
        jax.block_until_ready(evaluate(state.weights, examples[0], preprocess, setup=setup))

    def peak_memory() -> int:
        stats = jax.devices()[0].memory_stats()
        return stats['peak_bytes_in_use'] if stats else host_peak_memory()

    return Backend(measurements(run_stages, train, forward), peak_memory)


def pytorch(
    network: str, dtype: str, batch_size: int, steps: int, *, channels_last: bool, compiled: bool
) -> Backend:
    """Builds the same layers, loss and update in PyTorch; bfloat16 uses autocast."""
    import torch
    from torch import nn

    from benchmarks.pytorch import Update, make_blocks, train_step

    settings, run_stages = config(network), [stage for stage, _ in stages(network)]
    size, channels, classes = NETWORKS[network]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    blocks = make_blocks(settings, channels)
    for block in blocks:
        block.to(device, memory_format=layout)
    update = Update(settings, blocks)
    labels = torch.randint(classes, (batch_size,), device=device)
    images = {
        side: torch.randn(batch_size, channels, side or size, side or size, device=device)
        for side in {0, *(stage.side for stage in run_stages)}
    }

    def optimized(part: nn.Module):
        return torch.compile(part) if compiled else part

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts = {  # number of frozen mlpconv layers -> (frozen, trained)
        frozen: (
            optimized(nn.Sequential(*blocks[:frozen])),
            optimized(nn.Sequential(*blocks[frozen:], head)),
        )
        for frozen in {0, *(stage.frozen for stage in run_stages)}
    }

    def logits(x, frozen: int = 0):
        fixed, trained = parts[frozen]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            x = x.contiguous(memory_format=layout)
            if frozen:
                with torch.no_grad():
                    x = fixed(x)
            return trained(x).float()

    def wait() -> None:
        if device == 'cuda':
            torch.cuda.synchronize()

    def train(stage) -> None:
        for number, block in enumerate(blocks):
            block.train(number >= stage.frozen)
        for _ in range(steps):
            x = images[stage.side]
            train_step(lambda x: logits(x, stage.frozen), update, x, labels, settings)
        wait()

    def forward() -> None:
        for block in blocks:
            block.eval()
        with torch.inference_mode():
            for _ in range(steps):
                logits(images[0])
        wait()

    def peak_memory() -> int:
        return torch.cuda.max_memory_allocated() if device == 'cuda' else host_peak_memory()

    return Backend(measurements(run_stages, train, forward), peak_memory)


def measurements(
    run_stages: list, train: Callable[[Any], None], forward: Callable[[], None]
) -> dict[str, Callable[[], float]]:
    """Returns `Backend.seconds` from a function that trains in a stage, and the forward pass."""
    trains = {train_mode(stage): partial(timed, partial(train, stage)) for stage in run_stages}
    return {**trains, 'forward': partial(timed, forward)}
