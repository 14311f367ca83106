"""Reads the weights of a .caffemodel, Caffe's binary protobuf, without Caffe."""

import functools
import math
import os
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

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

# The fields of caffe.proto that hold weights: message -> {field: (number, type, whether
# repeated)}. Sizes are unsigned here: the bytes are the same, and a negative one is too large.
MESSAGES = {
    'Net': {'layers_v1': (2, 'LayerV1', True), 'layers': (100, 'Layer', True)},
    'LayerV1': {'name': (4, 'bytes', False), 'blobs': (6, 'Blob', True)},
    'Layer': {'name': (1, 'bytes', False), 'blobs': (7, 'Blob', True)},
    'Blob': {
        'num': (1, 'uint64', False),
        'channels': (2, 'uint64', False),
        'height': (3, 'uint64', False),
        'width': (4, 'uint64', False),
        'data': (5, 'float', True),
        'shape': (7, 'Shape', False),
    },
    'Shape': {'dim': (1, 'uint64', True)},
}


@functools.cache
def net_parameter() -> type[message.Message]:
    """Returns the protobuf class of caffe.proto's NetParameter, with the fields of MESSAGES."""
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {'bytes': field.TYPE_BYTES, 'uint64': field.TYPE_UINT64, 'float': field.TYPE_FLOAT}
    file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe')
    for name, fields in MESSAGES.items():
        added = file.message_type.add(name=name)
        for field_name, (number, kind, repeated) in fields.items():
            added.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=scalars.get(kind, field.TYPE_MESSAGE),
                type_name=f'.caffe.{kind}' if kind in MESSAGES else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.Net'))


def read_caffemodel(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Returns {layer name: its blobs}: weights, then biases, as float32 in their stored shape.

    A Caffe V1 blob has four dimensions. The weights of a convolution are (out, in, height, width),
    and its biases (1, 1, 1, out). Layers without blobs are omitted. The format has no checksum, so
    a changed bit in a weight is not detected.

    Raises:
      CheckpointError: the file is missing, damaged, too large or not a Caffe model.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f'cannot read {path}: {error.strerror}') from error
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f'it is larger than {MAX_BYTES >> 20} MiB')
        return _read_net(data)
    except message.DecodeError as error:
        raise CheckpointError(
            f'{path} is not a Caffe model: it is damaged or ends too soon'
        ) from error
    except ValueError as error:
        raise CheckpointError(f'{path} is not a Caffe model: {error}') from error


def import_nin(blobs: dict[str, list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the authors' CIFAR-10 network, conv1 to cccp6, as (kernel_HWIO, bias_O) pairs.

    Caffe computes a cross-correlation, like JAX, so kernels are not flipped. The input channels are
    red, green, blue.

    Raises:
      CheckpointError: a layer is missing, has another shape, or is not finite.
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


def _read_net(data: bytes) -> dict[str, list[np.ndarray]]:
    net: Any = net_parameter().FromString(data)
    layers = {}
    for layer in (*net.layers_v1, *net.layers):
        name = layer.name.decode('utf-8')  # UnicodeDecodeError is a ValueError
        if layer.blobs and name in layers:
            raise ValueError(f'two layers are named {name!r}')
        if layer.blobs:
            layers[name] = [_read_blob(blob) for blob in layer.blobs]
    if not layers:
        raise ValueError('it holds no layer with weights')
    return layers


def _read_blob(blob: Any) -> np.ndarray:
    """Returns float32 of the blob's shape; older blobs, without `shape`, have four dimensions."""
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:
        fields = ('num', 'channels', 'height', 'width')
        shape = tuple(getattr(blob, f) if blob.HasField(f) else 1 for f in fields)
    if len(shape) > 32:  # numpy 1's limit, and Caffe's
        raise ValueError('a blob has more than 32 dimensions')
    if len(blob.data) != math.prod(shape):
        raise ValueError(f'a blob of shape {shape} has {4 * len(blob.data)} bytes of numbers')
    return np.array(blob.data, np.float32).reshape(shape)
