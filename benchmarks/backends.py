"""The backends of the throughput benchmark: this code base, and the same network in PyTorch.

Each is built by a function `(network, dtype, batch_size, steps) -> Backend`. Both train on whitened
float32 images that are already on the device.
"""

import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

NETWORKS = {  # name -> (height = width, channels, classes)
    'cifar10': (32, 3, 10),
    'cifar100': (32, 3, 100),
    'svhn': (32, 3, 10),
    'mnist': (28, 1, 10),
}


@dataclasses.dataclass(frozen=True)
class Backend:
    """Functions to measure; `train` and `forward` run `steps` batches and return the seconds."""

    train: Callable[[], float]
    forward: Callable[[], float]
    peak_memory: Callable[[], int]  # bytes


def config(network: str) -> ConfigDict:
    """Returns the config of the experiment."""
    return importlib.import_module(f'experiments.configs.{network}').get_config()


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
        macs = (winograd.products(size, size, kernel) if fast else (size * kernel) ** 2) * i * o
        total += macs * (1 if mode == 'forward' else 3 if number else 2)
    return total


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def host_peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


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
    keys = jax.random.split(jax.random.key(0))
    examples = Examples(
        jax.random.normal(keys[0], (count, size, size, channels)),
        jax.random.randint(keys[1], (count,), 0, classes),
    )
    preprocess = Preprocess('scale')  # not applied: the images are floats

    def train():
        nonlocal state
        state, metrics = train_steps(state, examples, preprocess, setup=setup, num_steps=steps)
        jax.block_until_ready((state, metrics))

    def forward():
        jax.block_until_ready(evaluate(state.params, examples, preprocess, setup=setup))

    def peak_memory() -> int:
        stats = jax.devices()[0].memory_stats()
        return stats['peak_bytes_in_use'] if stats else host_peak_memory()

    return Backend(lambda: timed(train), lambda: timed(forward), peak_memory)


def pytorch(
    network: str, dtype: str, batch_size: int, steps: int, *, channels_last: bool, compiled: bool
) -> Backend:
    """Builds the same layers, loss and update in PyTorch; bfloat16 uses autocast."""
    import torch
    from torch import nn

    settings = config(network)
    size, channels, classes = NETWORKS[network]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)

    layers, inputs = [], channels
    for row in settings.model.blocks.values():
        for i, features in enumerate(row.features):
            kernel = row.kernel if i == 0 else 1
            layers += [
                nn.Conv2d(inputs, features, kernel, padding=kernel // 2),
                nn.ReLU(inplace=True),
            ]
            nn.init.normal_(layers[-2].weight, std=row.init_std[i])
            nn.init.zeros_(layers[-2].bias)
            inputs = features
        if row.pool == 'max':
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        if row.dropout:
            layers.append(nn.Dropout(row.dropout))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    images = torch.randn(batch_size, channels, size, size, device=device)
    labels = torch.randint(classes, (batch_size,), device=device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    optim, last = settings.optim, settings.optim.last_layer_lr
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    optimizer = torch.optim.SGD(
        [
            group
            for conv in convs
            for scale in [last if conv is convs[-1] else 1.0]
            for group in (
                {
                    'params': [conv.weight],
                    'lr': scale * optim.lr,
                    'weight_decay': optim.weight_decay,
                },
                {'params': [conv.bias], 'lr': scale * optim.lr * optim.bias_lr},
            )
        ],
        momentum=optim.momentum,
    )
    network_fn = torch.compile(model) if compiled else model

    def logits():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            return network_fn(images).float()

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    def train():
        model.train()
        for _ in range(steps):
            loss = nn.functional.cross_entropy(logits(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait()

    def forward():
        model.eval()
        with torch.inference_mode():
            for _ in range(steps):
                logits()
        wait()

    def peak_memory() -> int:
        return torch.cuda.max_memory_allocated() if device == 'cuda' else host_peak_memory()

    return Backend(lambda: timed(train), lambda: timed(forward), peak_memory)
