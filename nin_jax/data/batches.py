"""The order of the training examples, and how batches reach the training step.

Batch order is a pure function of (seed, attempt, step). A split that fits on the device is resident
(`Resident`, or `Deferred` with expensive preprocessing), and the step selects its batches. A larger
split is streamed (`Stream`): Grain reads the same batches in advance on the host. Both have the
same interface and no state to save, so a run can resume at any step.
"""

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nin_jax.data.sources import Source
from nin_jax.devices import shapes
from nin_jax.distributed import place
from nin_jax.errors import UserError

READ_AHEAD_BYTES = 256 * 2**20  # of batches read before the device asks for them
EVAL_BATCHES = 16  # most batches of a stream that are evaluated in one dispatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """A split on the device, or its shapes (to compile a program).

    An image is a row of a matrix. In an array of images, a TPU pads the channels to 128, or takes
    the batch as the last axis and copies all images to select some of them.

    Attributes:
      pixels: pixels_ND, uint8 or preprocessed float32, with D = H * W * C.
      labels: labels_N, int32.
      image_shape: (H, W, C).
    """

    pixels: Any
    labels: Any
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={'static': True})

    @classmethod
    def of(cls, images_NHWC: Any, labels_N: Any) -> 'Examples':
        """Returns the examples with these images, flattened."""
        return cls(images_NHWC.reshape(len(images_NHWC), -1), labels_N, images_NHWC.shape[1:])

    @property
    def images(self) -> Any:
        """images_NHWC."""
        return self.pixels.reshape(-1, *self.image_shape)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices_B: jax.Array) -> 'Batch':
        """Selects the batch with the examples at `indices_B`."""
        images_BHWC = self.pixels[indices_B].reshape(-1, *self.image_shape)
        return Batch(images_BHWC, self.labels[indices_B], indices_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of a split, or the S batches of one call along a leading axis, or their shapes.

    Attributes:
      images: images_BHWC, uint8 or preprocessed float32.
      labels: labels_B, int32.
      indices: indices_B of the examples in the split, int32.
    """

    images: Any
    labels: Any
    indices: Any


# ---- order ------------------------------------------------------------------------------------


def random_streams(seed: int, attempt: jax.Array | int) -> jax.Array:
    """Returns three PRNG keys of an attempt: for example order, augmentation and dropout."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), attempt), 3)


def epoch_order(key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
    """Returns a permutation of all examples, int32 (num_examples,)."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def example_order(
    key: jax.Array, first_step: jax.Array, num_steps: int, batch_size: int, num_examples: int
) -> jax.Array:
    """Returns the indices of the examples of the next batches, int32 (num_steps, batch_size).

    Batches are consecutive pieces of an infinite sequence of epochs, each a new permutation of all
    examples. A batch can contain the end of one epoch and the start of the next.
    `num_steps * batch_size` must not exceed `num_examples`.
    """
    position = first_step * batch_size + jnp.arange(num_steps * batch_size)
    first_epoch = position[0] // num_examples
    orders = jnp.stack([epoch_order(key, first_epoch + e, num_examples) for e in range(2)])
    order = orders[position // num_examples - first_epoch, position % num_examples]
    return order.reshape(num_steps, batch_size)


class HostOrder:
    """`example_order` on the host: maps positions in the sequence of epochs to examples.

    Attributes:
      key: an integer that is different for each seed and attempt.
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
            with self._lock:  # so that only one thread computes it
                order = self._epoch(int(epoch))
            indices_B[epochs_B == epoch] = order[rows_B[epochs_B == epoch]]
        return indices_B

    @functools.lru_cache(maxsize=3)  # noqa: B019 - lives as long as the stream
    def _epoch(self, epoch: int) -> np.ndarray:
        with on_host():  # the device is busy with earlier steps
            return np.asarray(epoch_order(self._order_key, jnp.int32(epoch), self._num_examples))


def on_host() -> contextlib.AbstractContextManager:
    """Makes the CPU the default device, unless JAX_PLATFORMS excludes it."""
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:
        return contextlib.nullcontext()


# ---- from the host to the device --------------------------------------------------------------


class DeviceSplit(Protocol):
    """The interface of a split in training and evaluation; `len` is its number of images."""

    def __len__(self) -> int: ...

    def feed(self, attempt: int, first_step: int) -> Callable[[int], Examples | Batch]:
        """Returns a function from a number of steps to the input of `train_steps` for them."""
        ...

    def feed_shapes(self, num_steps: int) -> Examples | Batch:
        """Returns shapes, dtypes and shardings of the input of one call."""
        ...

    def parts(self) -> Iterable[Examples]:
        """Returns all examples in order, in parts that are evaluated in one dispatch each."""
        ...

    def part_shapes(self) -> list[Examples]:
        """Returns the shapes of parts of each size, the largest first."""
        ...


@dataclasses.dataclass(frozen=True)
class Resident:
    """A split that is on the device."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def feed(self, attempt: int, first_step: int) -> Callable[[int], Examples]:
        return lambda num_steps: self.examples

    def feed_shapes(self, num_steps: int) -> Examples:
        return self.examples

    def parts(self) -> list[Examples]:
        return [self.examples]

    def part_shapes(self) -> list[Examples]:
        return [self.examples]


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split on the host, of which each batch is moved to the devices.

    Attributes:
      source: the images.
      mesh: the devices, over which each batch is split.
      seed: seed of the run.
      batch_size: images per training step.
      eval_batch_size: images per evaluation batch.
    """

    source: Source
    mesh: jax.sharding.Mesh
    seed: int
    batch_size: int
    eval_batch_size: int

    def __len__(self) -> int:
        return len(self.source)

    def feed(self, attempt: int, first_step: int) -> Callable[[int], Batch]:
        batches = self.batches(attempt, first_step)

        def next_batches(num_steps: int) -> Batch:
            parts = zip(*(next(batches) for _ in range(num_steps)), strict=True)
            return Batch(*(self._on_devices(np.stack(part)) for part in parts))

        return next_batches

    def _on_devices(self, own_Sb: np.ndarray) -> jax.Array:
        """Returns the global array of S batches from the rows that this process has."""
        sharding, rows_b = self._sharding(None, 'data'), self._own_rows()
        if sharding.is_fully_addressable:
            return jax.device_put(own_Sb, sharding)

        def shard(index: Any) -> np.ndarray:
            wanted = np.arange(self.batch_size)[index[1]]
            return own_Sb[:, np.searchsorted(rows_b, wanted)]

        shape = (len(own_Sb), self.batch_size, *own_Sb.shape[2:])
        return jax.make_array_from_callback(shape, sharding, shard)

    def _own_rows(self) -> np.ndarray:
        """Returns the rows of a batch that are on devices of this process, in order."""
        where = self._sharding('data').addressable_devices_indices_map((self.batch_size,))
        all_rows_B = np.arange(self.batch_size)
        return np.unique(np.concatenate([all_rows_B[index] for index in where.values()]))

    def feed_shapes(self, num_steps: int) -> Batch:
        images, labels = self._shapes(self._sharding(None, 'data'), num_steps, self.batch_size)
        return Batch(images, labels, labels)

    def batches(self, attempt: int, first_step: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields (images_BHWC, labels_B, indices_B) for `first_step` and all later steps.

        Each process reads only the rows of its own devices.
        """
        order, rows_b = HostOrder(self.seed, attempt, len(self)), self._own_rows()

        def read(step: int) -> tuple[np.ndarray, ...]:
            positions_b = rows_b + step * self.batch_size
            keys_b2 = np.stack([np.full_like(positions_b, order.key), positions_b], axis=-1)
            indices_b = order(positions_b)
            return *self.source.take(indices_b, keys_b2), indices_b

        return self._read_ahead(read, first_step, 2**62, self.batch_size)

    def parts(self) -> Iterator[Examples]:
        size, count = self._part_size, len(self)

        def read(part: int) -> tuple[np.ndarray, np.ndarray]:
            return self.source.take(np.arange(part * size, min((part + 1) * size, count)), None)

        for images, labels in self._read_ahead(read, 0, -(-count // size), size):
            yield place(Examples.of(images, labels), self._sharding())

    def part_shapes(self) -> list[Examples]:
        sizes = (self._part_size, len(self) % self._part_size)
        parts = [self._shapes(self._sharding(), size) for size in sizes if size]
        return [shapes(jax.eval_shape(Examples.of, *part), self._sharding()) for part in parts]

    @property
    def _part_size(self) -> int:
        fit = READ_AHEAD_BYTES // (self.eval_batch_size * self._image_bytes)
        return min(max(1, min(fit, EVAL_BATCHES)) * self.eval_batch_size, len(self))

    @property
    def _image_bytes(self) -> int:
        return int(np.prod(self.source.image_shape)) * self.source.dtype.itemsize

    def _read_ahead(self, read: Callable, first: int, end: int, size: int) -> Iterator:
        grain = import_grain()
        fit = READ_AHEAD_BYTES // (size * self._image_bytes)
        options = grain.ReadOptions(
            num_threads=min(os.cpu_count() or 1, 16), prefetch_buffer_size=max(2, min(fit, 64))
        )
        dataset = grain.MapDataset.range(first, end).map(read)
        return iter(dataset.to_iter_dataset(options))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _shapes(
        self, sharding: NamedSharding, *leading: int
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return (
            jax.ShapeDtypeStruct(
                (*leading, *self.source.image_shape), self.source.dtype, sharding=sharding
            ),
            jax.ShapeDtypeStruct(leading, np.int32, sharding=sharding),
        )


def import_grain() -> ModuleType:
    """Imports Grain, which takes seconds and which only streams need.

    Raises:
      UserError: Grain is not installed.
    """
    try:
        import grain
    except ImportError:
        raise UserError(
            "data.residency: streaming needs the package grain: pip install -e '.[stream]', or "
            "set data.residency='device'"
        ) from None
    return grain
