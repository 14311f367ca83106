"""The wire-format reader on files made here, on damaged ones, and on the authors' own."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax.errors import CheckpointError
from nin_jax.pretrained import caffemodel
from nin_jax.pretrained.caffemodel import CIFAR10_KERNELS_HWIO, import_nin, read_caffemodel


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, wire, payload):
    size = varint(len(payload)) if wire == 2 else b''
    return varint(number << 3 | wire) + size + payload


def blob(array, packed=True, new_shape=False):
    if new_shape:
        dims = b''.join(map(varint, array.shape))
        out = field(
            7,
            2,
            field(1, 2, dims) if packed else b''.join(field(1, 0, varint(d)) for d in array.shape),
        )
    else:
        out = b''.join(field(i + 1, 0, varint(d)) for i, d in enumerate(array.shape))
    if packed:
        return out + field(5, 2, array.astype('<f4').tobytes())
    return out + b''.join(field(5, 5, struct.pack('<f', v)) for v in array.ravel())


def layer_v1(name, *blobs):
    return field(2, 2, field(4, 2, name.encode()) + b''.join(field(6, 2, b) for b in blobs))


def layer_v2(name, *blobs):
    return field(100, 2, field(1, 2, name.encode()) + b''.join(field(7, 2, b) for b in blobs))


WEIGHTS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
BIASES = np.array([0.5, -1.5], np.float32).reshape(1, 1, 1, 2)
NET_NAME = field(1, 2, b'a net')
SMALL = NET_NAME + layer_v1('relu') + layer_v1('conv', blob(WEIGHTS), blob(BIASES))


@pytest.fixture
def read(tmp_path):
    def read_bytes(data):
        path = tmp_path / 'net.caffemodel'
        path.write_bytes(data)
        return read_caffemodel(path)

    return read_bytes


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('layer', [layer_v1, layer_v2])
@pytest.mark.parametrize('new_shape', [True, False])
def test_reads_both_layer_kinds_shapes_and_packings(read, packed, layer, new_shape):
    data = (
        NET_NAME
        + layer('relu')
        + layer('conv', blob(WEIGHTS, packed, new_shape), blob(BIASES, packed, new_shape))
    )
    blobs = read(data)
    assert list(blobs) == ['conv']  # a layer without blobs is left out
    for got, expected in zip(blobs['conv'], (WEIGHTS, BIASES), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


def test_skips_fields_it_does_not_know(read):
    strange = field(77, 0, varint(2**64 - 1)) + field(78, 1, bytes(8)) + field(79, 5, bytes(4))
    assert list(read(strange + SMALL + strange)) == ['conv']


def refused(read, data):
    with pytest.raises(CheckpointError) as caught:
        read(data)
    message = str(caught.value)
    assert 'net.caffemodel' in message and '\n' not in message
    return message


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'no layer with weights'),
        (NET_NAME, 'no layer with weights'),
        (SMALL[:-1], 'ends too soon'),
        (SMALL + SMALL, "two layers are named 'conv'"),
        (layer_v1('conv', blob(WEIGHTS) + field(5, 5, bytes(4))), 'bytes of numbers'),
        (layer_v1('conv', field(1, 0, varint(2**63)) + field(2, 0, varint(2**63))), 'bytes of'),
        (layer_v1('conv', field(7, 2, field(1, 2, bytes(33)))), '32 dimensions'),
        (field(2, 2, field(4, 2, b'\xff')), 'utf-8'),
        (varint(1 << 3) + b'\xff' * 10, 'damaged'),
        (b'\x00', 'damaged'),
        (varint(1 << 3 | 3), 'damaged'),
        (field(2, 2, b'')[:1] + varint(2**62), 'ends too soon'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'not a Caffe model'),
        (b'PK\x03\x04' + bytes(100), 'not a Caffe model'),
        (b'<!DOCTYPE html><html></html>', 'not a Caffe model'),
    ],
)
def test_refuses_damaged_and_foreign_files(read, data, reason):
    assert reason in refused(read, data)


def test_refuses_a_missing_file_a_folder_and_a_giant(read, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match='No such file'):
        read_caffemodel(tmp_path / 'absent')
    with pytest.raises(CheckpointError, match='directory'):
        read_caffemodel(tmp_path)
    monkeypatch.setattr(caffemodel, 'MAX_BYTES', len(SMALL) - 1)
    assert 'larger than' in refused(read, SMALL)


def check_outcome(data, path):
    """Only ever a CheckpointError or a dict of float32 arrays.

    A flipped bit inside a float is not noticed: the format has no checksum.
    """
    path.write_bytes(data)
    try:
        blobs = read_caffemodel(path)
    except CheckpointError:
        return
    assert all(isinstance(name, str) and arrays for name, arrays in blobs.items())
    assert all(array.dtype == np.float32 for arrays in blobs.values() for array in arrays)


def test_every_truncation_and_every_bit_flip(tmp_path):
    path = tmp_path / 'net.caffemodel'
    for end in range(len(SMALL)):
        check_outcome(SMALL[:end], path)
    for bit in range(8 * len(SMALL)):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        check_outcome(data, path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, len(SMALL)))
def test_any_bytes(tmp_path_factory, data, cut):
    path = tmp_path_factory.getbasetemp() / 'any.caffemodel'
    check_outcome(data, path)
    check_outcome(SMALL[:cut] + data, path)


def random_nin():
    rng = np.random.default_rng(0)
    return {
        name: [rng.normal(size=(o, i, h, w)).astype(np.float32),
               rng.normal(size=(1, 1, 1, o)).astype(np.float32)]
        for name, (h, w, i, o) in CIFAR10_KERNELS_HWIO.items()
    }  # fmt: skip


def test_import_turns_kernels_round():
    blobs = random_nin()
    pairs = import_nin(blobs)
    assert len(pairs) == 9
    for (kernel_HWIO, bias_O), (name, shape) in zip(
        pairs, CIFAR10_KERNELS_HWIO.items(), strict=True
    ):
        assert kernel_HWIO.shape == shape and bias_O.shape == shape[-1:]
        assert kernel_HWIO[0, -1, 1, 2] == blobs[name][0][2, 1, 0, -1]
        np.testing.assert_array_equal(bias_O, blobs[name][1].ravel())


def test_import_names_the_layer_at_fault():
    blobs = random_nin()
    del blobs['cccp4']
    with pytest.raises(CheckpointError, match="no layer 'cccp4'"):
        import_nin(blobs)
    blobs = random_nin()
    blobs['conv2'][0] = blobs['conv2'][0].transpose(1, 0, 2, 3)
    with pytest.raises(CheckpointError, match=r"'conv2' .*\(96, 192, 5, 5\)"):
        import_nin(blobs)
    blobs = random_nin()
    blobs['cccp6'][1][0, 0, 0, 3] = np.nan
    with pytest.raises(CheckpointError, match=r"'cccp6' .*NaN"):
        import_nin(blobs)


@pytest.fixture(scope='module')
def authors_path():
    if 'NIN_CAFFEMODEL' not in os.environ:
        pytest.skip("NIN_CAFFEMODEL does not name the authors' cifar10_nin.caffemodel")
    return os.environ['NIN_CAFFEMODEL']


def test_the_authors_network(authors_path):
    blobs = read_caffemodel(authors_path)
    assert list(blobs) == list(CIFAR10_KERNELS_HWIO)
    assert sum(array.size for arrays in blobs.values() for array in arrays) == 966_986
    assert blobs['conv1'][0].shape == (192, 3, 5, 5) and blobs['conv1'][1].shape == (1, 1, 1, 192)
    pairs = import_nin(blobs)
    stds = [round(float(kernel_HWIO.std()), 4) for kernel_HWIO, _ in pairs]
    assert stds == [0.1607, 0.1108, 0.1325, 0.0530, 0.1102, 0.0921, 0.0483, 0.0862, 0.2255]
    last_bias = pairs[-1][1]
    assert (round(float(last_bias.min()), 3), round(float(last_bias.max()), 3)) == (0.107, 0.660)


def test_the_authors_network_damaged(authors_path, tmp_path):
    with open(authors_path, 'rb') as file:
        whole = file.read()
    path = tmp_path / 'net.caffemodel'
    rng = np.random.default_rng(0)
    for _ in range(50):
        check_outcome(whole[: rng.integers(len(whole))], path)
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        check_outcome(data, path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match='ends too soon'):
        read_caffemodel(path)
