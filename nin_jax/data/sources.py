"""The interface of a split on the host, and a split in memory."""

import dataclasses
import functools
import hashlib
from typing import Protocol

import numpy as np


class Source(Protocol):
    """A split of a dataset; `len` is its number of images.

    Attributes:
      class_names: names of the classes, in label order.
      image_shape: (height, width, channels).
      dtype: dtype of the images: uint8, or float32 if they are preprocessed.
      in_memory: whether all images are in the host's memory.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def in_memory(self) -> bool: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def take(
        self, indices_B: np.ndarray, keys_B2: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads images_BHWC and int32 labels_B.

        Args:
          indices_B: indices of the images in the split.
          keys_B2: two integers per image that determine its random crop; None for center crops.
        """
        ...

    def load(self) -> 'Arrays':
        """Reads all images into memory, cropped as in evaluation."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest that is equal in all processes that read the same files."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A split in memory.

    Attributes:
      images: images_NHWC, uint8 or preprocessed float32.
      labels: labels_N, int32.
      class_names: names of the classes, in label order.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        return self.images.dtype

    def take(
        self, indices_B: np.ndarray, keys_B2: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns images_BHWC and labels_B; does not crop, so the keys are not used."""
        del keys_B2
        return self.images[indices_B], self.labels[indices_B]

    def first(self, limit: int) -> 'Arrays':
        """Returns the first `limit` images; all of them if it is 0."""
        keep = slice(limit or None)
        return dataclasses.replace(self, images=self.images[keep], labels=self.labels[keep])

    def load(self) -> 'Arrays':
        return self

    def fingerprint(self) -> str:
        """Returns the SHA-256 of images and labels."""
        return self._sha256

    @functools.cached_property
    def _sha256(self) -> str:
        sha = hashlib.sha256(np.ascontiguousarray(self.images).data)
        sha.update(np.ascontiguousarray(self.labels).data)
        return sha.hexdigest()
