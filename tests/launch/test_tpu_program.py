"""Parts of the training step compiled for a TPU: no packed bits of ReLUs, no padded images.

No TPU is needed, but libtpu is. `benchmarks/NOTES.md` has the expected cycles with and without.
"""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import ROOT

HEAD = """
from launch.preflight.__main__ import leave_accelerators_alone
leave_accelerators_alone()
import jax, jax.numpy as jnp
from launch.preflight.chips import tpu_slice
from nin_jax.data.batches import Examples
from nin_jax.models import fused, ops

device = jax.sharding.SingleDeviceSharding(tpu_slice('v5e:2x2')[0].devices.flat[0])

def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype, sharding=device)
"""
RELUS = """
def loss(x, kernel, bias):
    for _ in range(2):
        x = ops.conv2d(x, kernel)
        x = fused.normalize_bias_relu(x, None, bias, training=True, relu=True)
    return jnp.sum(x)

shapes = shape(32, 16, 16, 192), shape(1, 1, 192, 192), shape(192)
print(jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().as_text())
"""
BATCHES = """
def total(examples, kernel, order):
    def add(total, indices):
        return total + jnp.sum(ops.conv2d(examples.take(indices).images, kernel) ** 2), None
    return jax.lax.scan(add, 0.0, order)[0]

examples = Examples(shape(50_000, 3072), shape(50_000, dtype=jnp.int32), (32, 32, 3))
for batch_size in 32, 1:
    order = shape(100, batch_size, dtype=jnp.int32)
    program = jax.jit(total).lower(examples, shape(5, 5, 3, 192), order).compile()
    print(program.memory_analysis().temp_size_in_bytes)
"""

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install -e '.[preflight]'",
)


def compiled(program: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', HEAD + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
@needs_libtpu
def test_relus_are_not_packed_into_bits():
    text = compiled(RELUS)
    assert 'estimated_cycles' in text and ' convolution(' in text
    assert ' shift-left(' not in text


@pytest.mark.heavy
@needs_libtpu
def test_selecting_a_batch_does_not_copy_all_images_into_a_padded_layout():
    split = 50_000 * 3072 * 4
    large, small = map(int, compiled(BATCHES).split())
    assert large < 0.51 * split  # all images in bfloat16, for the convolutions
    assert small < 2**20
