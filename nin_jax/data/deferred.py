"""A split on the device whose images are preprocessed when they are first needed.

ZCA of all of CIFAR-10 takes seconds, but the first call of a run needs only a few hundred images.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nin_jax.data.batches import Examples, HostOrder
from nin_jax.data.preprocess import Preprocess
from nin_jax.data.sources import Arrays
from nin_jax.devices import replicated, shapes
from nin_jax.distributed import place

ROWS = 256  # images per call of the preprocessing


class Deferred:
    """A split on the device, in which an image is zero until it is first needed.

    Args:
      arrays: the split on the host, with uint8 images.
      preprocess: the fitted recipe, replicated over the mesh.
      mesh: the devices, over which the preprocessing is split.
      seed: seed of the run.
      batch_size: images per training step.
    """

    def __init__(
        self,
        arrays: Arrays,
        preprocess: Preprocess,
        mesh: jax.sharding.Mesh,
        seed: int,
        batch_size: int,
    ):
        self._preprocess, self._mesh = preprocess, mesh
        self._seed, self._batch_size = seed, batch_size
        self._images = arrays.images
        shape = (len(arrays), math.prod(arrays.image_shape))
        zeros_ND = jax.jit(partial(jnp.zeros, shape), out_shardings=replicated(mesh))()
        labels_N = place(arrays.labels, replicated(mesh))
        self._done = Examples(zeros_ND, labels_N, arrays.image_shape)
        self._missing_N = np.ones(len(arrays), bool)

    def __len__(self) -> int:
        return len(self._missing_N)

    def feed(self, attempt: int, first_step: int) -> Callable[[int], Examples]:
        """Returns a function that preprocesses the missing images of the next steps."""
        order, step = HostOrder(self._seed, attempt, len(self)), first_step
        # All images appear by the end of the next epoch. To compute an order between calls, a CPU
        # would first have to finish the call that it is running.
        order(first_step * self._batch_size + np.arange(3) * len(self))

        def examples(num_steps: int) -> Examples:
            nonlocal step
            start, step = step, step + num_steps
            if self._missing_N.any():
                positions = np.arange(start * self._batch_size, step * self._batch_size)
                self._complete(order(positions))
            return self._done

        return examples

    def feed_shapes(self, num_steps: int) -> Examples:
        return shapes(self._done, replicated(self._mesh))

    def parts(self) -> list[Examples]:
        self._complete(np.arange(len(self)))
        return [self._done]

    def part_shapes(self) -> list[Examples]:
        return [self.feed_shapes(1)]

    def _complete(self, rows: np.ndarray) -> None:
        """Preprocesses the images of these rows that are still missing."""
        rows = np.unique(rows[self._missing_N[rows]]).astype(np.int32)
        size = -(-ROWS // self._mesh.size) * self._mesh.size
        split = NamedSharding(self._mesh, PartitionSpec('data'))
        for start in range(0, len(rows), size):
            part_R = rows[start : start + size]
            part_R = np.pad(part_R, (0, size - len(part_R)), mode='edge')  # one program for all
            images_RHWC = place(self._images[part_R], split)
            part_R = place(part_R, replicated(self._mesh))
            pixels_ND = preprocess_rows(
                self._done.pixels, images_RHWC, part_R, self._preprocess, mesh=self._mesh
            )
            self._done = dataclasses.replace(self._done, pixels=pixels_ND)
        self._missing_N[rows] = False


@partial(jax.jit, donate_argnames='done_ND', static_argnames='mesh')
def preprocess_rows(
    done_ND: jax.Array,
    images_RHWC: jax.Array,
    rows_R: jax.Array,
    preprocess: Preprocess,
    *,
    mesh: jax.sharding.Mesh,
) -> jax.Array:
    """Writes preprocessed images_RHWC to the rows_R of done_ND, which is donated."""
    x_RHWC = jax.lax.with_sharding_constraint(preprocess(images_RHWC), replicated(mesh))
    return done_ND.at[rows_R].set(x_RHWC.reshape(len(rows_R), -1))
