"""Lets TFDS builders prepare a dataset without TensorFlow.

TFDS 4 can read without TensorFlow, but not write: builders and the extractor open files with
tf.io.gfile, and images are encoded with tf.image.encode_png. This replaces these calls within a
`with` block; the builders run unchanged. The names are internal to TFDS, so they are checked first.
"""

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

from nin_jax.console import quiet_absl
from nin_jax.errors import DataError

_STAND_IN_TF = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    compat=types.SimpleNamespace(as_text=str),
)


@contextlib.contextmanager
def tfds_without_tensorflow(builder_class: type) -> Iterator[None]:
    """Makes preparing with `builder_class` need no TensorFlow, and retry downloads once.

    Raises:
      DataError: this version of TFDS lacks one of the replaced names.
    """
    core = 'tensorflow_datasets.core'
    changes = [
        (f'{core}.download.extractor', 'tf', _STAND_IN_TF),
        (f'{core}.download.downloader', 'MAX_RETRIES', 1),
        (f'{core}.features.image_feature', '_ImageEncoder._encode_image', _encode_png),
    ]
    if hasattr(sys.modules[builder_class.__module__], 'tf'):
        changes.append((builder_class.__module__, 'tf', _STAND_IN_TF))
    undo = []
    try:
        _find(f'{core}.download.resource', 'get_dl_fname')  # used by prepare.py
        for module, dotted, value in changes:
            owner, attribute = _find(module, dotted)
            undo.append((owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, value)
        with quiet_absl():  # 'has no dataset_info.json' and the like
            yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


def _find(module: str, dotted: str) -> tuple[Any, str]:
    """Returns the object with the attribute, and the attribute's name."""
    try:
        owner = importlib.import_module(module)
        *path, attribute = dotted.split('.')
        for name in path:
            owner = getattr(owner, name)
        if attribute not in vars(owner):
            raise AttributeError
    except (ImportError, AttributeError):
        version = sys.modules['tensorflow_datasets'].__version__
        raise DataError(
            f'tensorflow-datasets {version} has no {module}.{dotted}, which preparing without '
            'TensorFlow needs: install tensorflow-datasets 4.9.10'
        ) from None
    return owner, attribute


def _encode_png(encoder: Any, image: np.ndarray) -> bytes:
    """Replaces _ImageEncoder._encode_image: encodes uint8 (H, W, C) as PNG."""
    if image.dtype != np.uint8 or image.shape != tuple(encoder.shape):
        raise ValueError(f'expected uint8 {encoder.shape}, got {image.dtype} {image.shape}')
    png = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, 'PNG')
    return png.getvalue()
