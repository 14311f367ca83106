"""The peak rates of chips, and TPU slices to compile for."""

import dataclasses
import importlib.util
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from nin_jax.devices import memory_bytes, mesh_of
from nin_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak rates of one chip.

    Attributes:
      flops: FLOP/s of bfloat16 matrix products.
      float32_flops: FLOP/s of float32 matrix products at JAX's default precision: one bfloat16 pass
        on a TPU, TF32 on a GPU.
      memory: size of the memory that JAX allocates from, in bytes.
      memory_rate: memory bandwidth, in bytes per second.
      link_rate: outgoing bandwidth of all links together, in bytes per second.
      hosts: number of hosts that the chips are divided over, if a network slower than the links
        connects them.
      network_rate: a chip's outgoing share of that network, in bytes per second.
      clock: cycles per second; 0 if the compiler reports no cycles.
      axes: number of dimensions of a TPU slice's shape.
      most: number of chips in the largest slice.
    """

    flops: float
    float32_flops: float
    memory: float
    memory_rate: float
    link_rate: float
    hosts: int = 1
    network_rate: float = math.inf
    clock: float = 0
    axes: int = 0
    most: int = 0

    def rate(self, dtype: str) -> float:
        """Returns the FLOP/s of matrix products in 'float32'; in bfloat16 for any other dtype."""
        return self.float32_flops if dtype == 'float32' else self.flops

    def reduction_s(self, size: float, chips: int) -> float:
        """Returns the minimum seconds of an all-reduce of `size` bytes over `chips` chips.

        A ring sends every byte twice, except a chip's own part: first within each host, then each
        chip's share of the sum between the hosts.
        """
        local = chips // self.hosts
        within = 2 * size * (local - 1) / local / self.link_rate
        return within + 2 * size / local * (self.hosts - 1) / self.hosts / self.network_rate


# docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: peak bf16, HBM, half of the bidirectional ICI
# bandwidth. For v4: six links of 50 GB/s, Jouppi et al. 2023 (arXiv 2304.01433), section 2.
# Clock: the peak divided by the FLOPs per cycle of the matrix units, 2 x 128 x 128 for each of 8,
# 4 and 8 units; on v6e, the equivalent of 16.
TPUS = {
    'v4': Chip(275e12, 275e12, 32 * 2**30, 1200e9, 300e9, clock=1.05e9, axes=3, most=4096),
    'v5e': Chip(197e12, 197e12, 16 * 2**30, 819e9, 200e9, clock=1.5e9, axes=2, most=256),
    'v5p': Chip(459e12, 459e12, 95 * 2**30, 2765e9, 600e9, clock=1.75e9, axes=3, most=6144),
    'v6e': Chip(918e12, 918e12, 32 * 2**30, 1638e9, 400e9, clock=1.75e9, axes=2, most=256),
}


def tpu_slice(topology: str) -> tuple[Mesh, Chip]:
    """Returns a mesh of abstract TPU devices to compile for, and their chip.

    Raises:
      UserError: the topology is not a known slice, or libtpu is not installed.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
    chip = TPUS.get(match[1]) if match else None
    shape = [int(n) for n in match[2].split('x')] if match else []
    if (
        match is None
        or chip is None
        or len(shape) != chip.axes
        or not 1 <= math.prod(shape) <= chip.most
    ):
        known = ', '.join(f'{name} ({c.axes} numbers)' for name, c in TPUS.items())
        raise UserError(
            f'--topology={topology}: write a TPU and the shape of its slice, such as v5e:4x4 or '
            f'v4:2x2x1; known TPUs: {known}, up to 256 chips of v5e and v6e'
        )
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'--topology={topology} needs the compiler in the package libtpu: '
            "pip install -e '.[preflight]'"
        )
    host = [min(n, 2) for n in shape[:2]] + [1]
    options: dict[str, Any] = {'chips_per_host_bounds': host}
    if match[1] == 'v4':
        options['chip_config_name'] = 'megacore'  # a chip's two cores as one device
    try:
        devices = topologies.get_topology_desc(topology, 'tpu', **options).devices
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).splitlines()[0][:200]
        raise UserError(
            f'--topology={topology}: not a slice that libtpu knows ({reason})'
        ) from None
    return mesh_of(devices), chip


def measured_chip(device: Any, size: int = 2048) -> Chip:
    """Measures a local device with large matrix products and copies; keeps the best of a few."""
    a_NN = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    flops = 2 * size**3 / best_seconds(jax.jit(jnp.matmul), a_NN, a_NN)
    x_N = jax.device_put(jnp.ones(2**25, jnp.float32), device)
    rate = 2 * x_N.nbytes / best_seconds(jax.jit(lambda x: x + 1), x_N)
    return Chip(flops, flops, memory_bytes(device), rate, link_rate=rate)


def best_seconds(program, *arguments, tries: int = 5) -> float:
    """Returns the shortest time of `tries` calls, after a call that compiles."""
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
