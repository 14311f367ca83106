"""Splits that do not fit on the device: read ahead on the host by Grain, the same batches.

Which examples a batch holds is `step.example_order`'s answer, a function of (seed, attempt, step),
so a stream has no state to save: a run resumes at any step, streamed or not, with the same weights.
"""

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nin_jax import distributed
from nin_jax.errors import UserError
from nin_jax.step import Batches, Examples, Setup, epoch_order, random_streams

AHEAD_BYTES = 256 * 2**20  # of batches read before the device asks for them
EVAL_BATCHES = 16  # scored in one dispatch


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A source in the host's memory: images_NHWC, uint8 or preprocessed float32; labels_N int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def like(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an image."""
        return self.images.shape[1:], self.images.dtype

    def take(self, indices_B: np.ndarray, keys_B: np.ndarray | None):
        """images_BHWC and labels_B; `keys_B` is for sources that crop at random."""
        return self.images[indices_B], self.labels[indices_B]


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split on the host; `len` is its number of examples.

    Attributes:
      source: anything with the methods of `Arrays`.
      setup: the run's.
    """

    source: Arrays
    setup: Setup

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, attempt: int, first_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of steps `first_step`, ..., without end: images_BHWC and labels_B."""
        order = Order(self.setup.seed, attempt, len(self))

        def read(step: int):
            positions_B = np.arange(self.setup.batch_size) + step * self.setup.batch_size
            keys_B2 = np.stack([np.full_like(positions_B, order.key), positions_B], axis=-1)
            return self.source.take(order(positions_B), keys_B2)

        return self._ahead(read, first_step, 2**62, self.setup.batch_size)

    def parts(self) -> Iterator[Examples]:
        """All examples in order, some at a time, on the device: for evaluation."""
        size, count = self.eval_size, len(self)

        def read(part: int):
            return self.source.take(np.arange(part * size, min((part + 1) * size, count)), None)

        for images, labels in self._ahead(read, 0, -(-count // size), size):
            yield distributed.place(Examples(images, labels), self._sharding())

    def _ahead(self, read: Callable, first: int, end: int, size: int) -> Iterator:
        grain = import_grain()
        shape, dtype = self.source.like
        fit = AHEAD_BYTES // (size * int(np.prod(shape)) * dtype.itemsize)
        options = grain.ReadOptions(
            num_threads=min(os.cpu_count() or 1, 16), prefetch_buffer_size=max(2, min(fit, 64))
        )
        dataset = grain.MapDataset.range(first, end).map(read)
        return iter(dataset.to_iter_dataset(options))

    @property
    def eval_size(self) -> int:
        return min(EVAL_BATCHES * self.setup.eval_batch_size, len(self))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.setup.mesh, PartitionSpec(*axes))

    def like(self, *leading: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of images and labels behind `leading` axes: (steps, batch), or (examples,)."""
        shape, dtype = self.source.like
        sharding = self._sharding(*(None, 'data')[: 2 * (len(leading) - 1)])
        return tuple(
            jax.ShapeDtypeStruct((*leading, *rest), kind, sharding=sharding)
            for rest, kind in ((shape, dtype), ((), np.int32))
        )

    def stack(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> Batches:
        """One call's batches on the device."""
        images, labels = (np.stack(arrays) for arrays in zip(*batches, strict=True))
        return distributed.place(Batches(images, labels), self._sharding(None, 'data'))


class Order:
    """`step.example_order` on the host: positions in the endless stream of epochs -> examples.

    Attributes:
      key: an integer that is another one for every seed and attempt.
    """

    def __init__(self, seed: int, attempt: int, num_examples: int):
        self.key, self._num_examples = (attempt << 32) + seed, num_examples
        self._lock = threading.Lock()
        with on_host():
            self._order_key, *_ = random_streams(seed, attempt)

    def __call__(self, positions_B: np.ndarray) -> np.ndarray:
        epochs_B, rows_B = np.divmod(positions_B, self._num_examples)
        indices_B = np.empty(positions_B.shape, np.int32)
        for epoch in np.unique(epochs_B):
            with self._lock:  # readers in other threads wait for it instead of making it too
                order = self._epoch(int(epoch))
            indices_B[epochs_B == epoch] = order[rows_B[epochs_B == epoch]]
        return indices_B

    @functools.lru_cache(maxsize=3)  # noqa: B019 - lives as long as the stream it orders
    def _epoch(self, epoch: int) -> np.ndarray:
        with on_host():  # the device is busy with the steps before
            return np.asarray(epoch_order(self._order_key, jnp.int32(epoch), self._num_examples))


def on_host() -> contextlib.AbstractContextManager:
    """Within the block JAX computes on the CPU, where JAX_PLATFORMS has not left that out."""
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:
        return contextlib.nullcontext()


def feed(train: Examples | Stream, attempt: int, first_step: int) -> Callable:
    """A function: number of steps -> what `train_steps` takes for so many next ones."""
    if isinstance(train, Examples):
        return lambda _: train
    batches = train.batches(attempt, first_step)
    return lambda num_steps: train.stack([next(batches) for _ in range(num_steps)])


def import_grain():
    """The package, which only streams need; it takes seconds to import."""
    try:
        import grain
    except ImportError:
        raise UserError(
            'data.residency: streaming needs the package grain: pip install grain, or '
            "set data.residency='device'"
        ) from None
    return grain
