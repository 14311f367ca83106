"""Reads weights out of a .caffemodel, Caffe's binary protobuf, without Caffe or protobuf."""

import math
import os
from collections.abc import Iterator

import numpy as np

from nin_jax.errors import CheckpointError

MAX_BYTES = 256 << 20  # the largest NIN of the authors, ImageNet's, is 29 MB

# The authors' CIFAR-10 network: layer -> kernel (height, width, channels in, channels out).
CIFAR10_KERNELS_HWIO = {
    'conv1': (5, 5, 3, 192),
    'cccp1': (1, 1, 192, 160),
    'cccp2': (1, 1, 160, 96),
    'conv2': (5, 5, 96, 192),
    'cccp3': (1, 1, 192, 192),
    'cccp4': (1, 1, 192, 192),
    'conv3': (3, 3, 192, 192),
    'cccp5': (1, 1, 192, 192),
    'cccp6': (1, 1, 192, 10),
}

# Field numbers of caffe.proto.
_NET_LAYERS_V1, _NET_LAYERS = 2, 100
_NAME_AND_BLOBS = {_NET_LAYERS_V1: (4, 6), _NET_LAYERS: (1, 7)}
_BLOB_OLD_SHAPE, _BLOB_DATA, _BLOB_SHAPE = (1, 2, 3, 4), 5, 7  # num, channels, height, width
_SHAPE_DIM = 1

# Wire types of protobuf.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_caffemodel(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Layer name -> its blobs (weights, then biases) as float32 in their stored shape.

    A Caffe V1 blob has four dimensions: a convolution's weights are (out, in, height, width) and
    its biases (1, 1, 1, out). Layers without blobs are left out. Raises CheckpointError for a
    file that is missing, damaged or no Caffe model. The format carries no checksum, so a bit
    flipped inside a weight goes unnoticed.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f'cannot read {path}: {error.strerror}') from error
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f'it is larger than {MAX_BYTES >> 20} MiB')
        blobs = _read_net(memoryview(data))
    except ValueError as error:
        raise CheckpointError(f'{path} is not a Caffe model: {error}') from error
    return blobs


def import_nin(blobs: dict[str, list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The authors' CIFAR-10 network, conv1 to cccp6, as (kernel_HWIO, bias_O) pairs of float32.

    Caffe correlates, as JAX does, so no kernel is flipped; its input channels are R, G, B. Raises
    CheckpointError for a layer that is missing, of another shape or not finite.
    """
    pairs = []
    for name, (height, width, into, out) in CIFAR10_KERNELS_HWIO.items():
        if len(blobs.get(name, ())) != 2:
            raise CheckpointError(
                f'the Caffe model has no layer {name!r} with weights and biases: it is not the '
                "authors' CIFAR-10 network"
            )
        kernel_OIHW, bias = blobs[name]
        if kernel_OIHW.shape != (out, into, height, width) or bias.size != out:
            raise CheckpointError(
                f'layer {name!r} of the Caffe model has weights of shape {kernel_OIHW.shape} and '
                f'{bias.size} biases: expected {(out, into, height, width)} and {out}'
            )
        if not (np.isfinite(kernel_OIHW).all() and np.isfinite(bias).all()):
            raise CheckpointError(f'layer {name!r} of the Caffe model holds a NaN or an infinity')
        kernel_HWIO = np.ascontiguousarray(kernel_OIHW.transpose(2, 3, 1, 0))
        pairs.append((kernel_HWIO, bias.reshape(out)))
    return pairs


def _read_net(net: memoryview) -> dict[str, list[np.ndarray]]:
    layers = {}
    for field, wire, value in _fields(net):
        if field not in _NAME_AND_BLOBS or wire != _BYTES:
            continue
        name, blobs = _read_layer(value, *_NAME_AND_BLOBS[field])
        if blobs and name in layers:
            raise ValueError(f'two layers are named {name!r}')
        if blobs:
            layers[name] = blobs
    if not layers:
        raise ValueError('it holds no layer with weights')
    return layers


def _read_layer(layer: memoryview, name_field: int, blob_field: int):
    name, blobs = '', []
    for field, wire, value in _fields(layer):
        if field == name_field and wire == _BYTES:
            name = bytes(value).decode('utf-8')  # UnicodeDecodeError is a ValueError
        elif field == blob_field and wire == _BYTES:
            blobs.append(_read_blob(value))
    return name, blobs


def _read_blob(blob: memoryview) -> np.ndarray:
    old_shape, shape, floats = {}, None, bytearray()
    for field, wire, value in _fields(blob):
        if field == _BLOB_DATA and wire in (_BYTES, _FIXED32):  # packed, or one float at a time
            floats += value
        elif field in _BLOB_OLD_SHAPE and wire == _VARINT:
            old_shape[field] = value
        elif field == _BLOB_SHAPE and wire == _BYTES:
            shape = _read_shape(value)
    if shape is None:
        shape = tuple(old_shape.get(field, 1) for field in _BLOB_OLD_SHAPE)
    if len(floats) != 4 * math.prod(shape):
        raise ValueError(f'a blob of shape {shape} has {len(floats)} bytes of numbers')
    return np.frombuffer(floats, '<f4').astype(np.float32).reshape(shape)


def _read_shape(message: memoryview) -> tuple[int, ...]:
    dims = []
    for field, wire, value in _fields(message):
        if field == _SHAPE_DIM and wire == _VARINT:
            dims.append(value)
        elif field == _SHAPE_DIM and wire == _BYTES:  # packed
            at = 0
            while at < len(value):
                dim, at = _varint(value, at)
                dims.append(dim)
        if len(dims) > 32:  # numpy 1's limit, and Caffe's
            raise ValueError('a blob has more than 32 dimensions')
    return tuple(dims)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of each field; an int for a varint, else its bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise ValueError('it has a field numbered 0')
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield field, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f'it has a field of wire type {wire}')
        if size > len(message) - at:
            raise ValueError('it ends too soon')
        yield field, wire, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer at `at`, 7 bits a byte, lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError('it ends too soon')
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError('it has an integer longer than 10 bytes')
