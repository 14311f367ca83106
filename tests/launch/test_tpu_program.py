"""A layer's gradient compiled for a TPU: the ReLU keeps no packed bits.

No TPU is needed, but libtpu is. `benchmarks/NOTES.md` has the expected cycles with and without.
"""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import ROOT

COMPILE = """
from launch.preflight.__main__ import leave_accelerators_alone
leave_accelerators_alone()
import jax, jax.numpy as jnp
from launch.preflight.chips import tpu_slice
from nin_jax.models import fused, ops

def loss(x, kernel, bias):
    for _ in range(2):
        x = ops.conv2d(x, kernel)
        x = fused.normalize_bias_relu(x, None, bias, training=True, relu=True)
    return jnp.sum(x)

device = jax.sharding.SingleDeviceSharding(tpu_slice('v5e:2x2')[0].devices.flat[0])
shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)
    for shape in ((32, 16, 16, 192), (1, 1, 192, 192), (192,))
]
print(jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().as_text())
"""


@pytest.mark.heavy
@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install -e '.[preflight]'",
)
def test_relus_are_not_packed_into_bits():
    done = subprocess.run(
        [sys.executable, '-c', COMPILE], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert 'estimated_cycles' in done.stdout and ' convolution(' in done.stdout
    assert ' shift-left(' not in done.stdout
