"""NVIDIA GPUs to compile for, without a GPU or a driver, and the launches of a compiled program.

The compiler is the one in JAX's CUDA plugin. It is given a description of the card instead of
opening one, so it tunes nothing: the tiles of its own kernels and cuDNN's algorithms are defaults.
"""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import re

from jax.experimental import topologies
from jax.sharding import Mesh

from launch.preflight.chips import Chip
from nin_jax.devices import mesh_of
from nin_jax.errors import UserError, one_line

PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
# JAX reserves this share of a GPU's memory at the start (XLA_PYTHON_CLIENT_MEM_FRACTION).
RESERVED = 0.75


@dataclasses.dataclass(frozen=True)
class Card:
    """Published facts of a GPU.

    Attributes:
      name: as the driver reports it.
      capability: CUDA compute capability.
      cores: number of streaming multiprocessors.
      fpus: float32 units per multiprocessor.
      clock_ghz: boost clock.
      l2: size of the L2 cache in bytes.
      memory: size of the memory in bytes.
      memory_rate: memory bandwidth, in bytes per second.
      flops: FLOP/s of bfloat16 products with float32 sums, without sparsity.
      tf32_flops: FLOP/s of TF32 products, without sparsity.
      link_rate: bandwidth to the other GPUs of a host in one direction, in bytes per second.
      network_rate: a GPU's share of the network between hosts in one direction, in bytes per
        second; 0 if none is published.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    clock_ghz: float
    l2: int
    memory: float
    memory_rate: float
    flops: float
    tf32_flops: float
    link_rate: float
    network_rate: float = 0


# Multiprocessors, units, clocks, caches, memory: openxla/xla, xla/backends/gpu/target_config/specs.
# Peaks: NVIDIA's data sheets of A100, H100, H200, HGX B200 and L4 (half of the value with
# sparsity), and the Ada architecture's white paper, appendix A (GeForce RTX 4090). L4's 58
# multiprocessors follow from its 30.3 TFLOPS in float32. Links: half of NVLink's bidirectional
# bandwidth, PCIe 4.0 x16 for L4 and RTX 4090. Network: the data sheets of DGX A100 (8 ports of 200
# Gbit/s), H100, H200, B200 (8 of 400).
GPUS = {
    'a100': Card(
        *('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 1.41, 41_943_040, 85_100_068_864, 2039e9),
        *(312e12, 156e12, 300e9, 25e9),
    ),
    'h100': Card(
        *('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 1.98, 52_428_800, 84_942_979_072, 3352e9),
        *(989.5e12, 494.5e12, 450e9, 50e9),
    ),
    'h200': Card(
        *('NVIDIA H200', (9, 0), 132, 128, 1.98, 52_428_800, 151_397_597_184, 4800e9),
        *(989.5e12, 494.5e12, 450e9, 50e9),
    ),
    'b200': Card(
        *('NVIDIA B200', (10, 0), 148, 128, 1.965, 132_644_864, 191_514_411_008, 7672e9),
        *(2250e12, 1125e12, 900e9, 50e9),
    ),
    'l4': Card(
        *('NVIDIA L4', (8, 9), 58, 128, 2.04, 48 * 2**20, 24 * 2**30, 300e9),
        *(121e12, 60e12, 32e9),
    ),
    'rtx4090': Card(
        *('NVIDIA GeForce RTX 4090', (8, 9), 128, 128, 2.52, 72 * 2**20, 24 * 2**30, 1008e9),
        *(165.2e12, 82.6e12, 32e9),
    ),
}
# By compute capability, from the CUDA C++ programming guide's table of technical specifications:
# shared memory per multiprocessor in KiB (a block can use all but 1), threads per multiprocessor.
LIMITS = {(8, 0): (164, 2048), (8, 9): (100, 1536), (9, 0): (228, 2048), (10, 0): (228, 2048)}
# Versions to compile for. XLA records library calls in CUDA graphs only for drivers from 12.3.
CUDA, CUDNN, DRIVER = (12, 8, 0), (9, 10, 0), (13, 0, 0)


def gpu_hosts(topology: str) -> tuple[Mesh, Chip]:
    """Returns a mesh of abstract GPUs to compile for, and their chip.

    Args:
      topology: 'h100:8', a card and its number in one host, or 'h100:2x8', two hosts of eight.

    Raises:
      UserError: the topology is not known, or JAX's CUDA plugin is not installed.
    """
    match = re.fullmatch(r'(\w+):(?:(\d+)x)?([1-8])', topology)
    card = GPUS.get(match[1]) if match else None
    hosts = int(match[2] or 1) if match else 0
    if match is None or card is None or not 1 <= hosts <= (32 if card.network_rate else 1):
        single = ', '.join(name for name, card in GPUS.items() if not card.network_rate)
        raise UserError(
            f'--topology={topology}: write a GPU and its number in a host, from 1 to 8, such as '
            f'h100:8, or h100:2x8 for two hosts, up to 32 (not {single}); known GPUs: '
            + ', '.join(GPUS)
        )
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise UserError(
            f"--topology={topology} needs the compiler in JAX's CUDA plugin: "
            "pip install -e '.[preflight-gpu]'"
        )
    try:
        devices = topologies.get_topology_desc(
            platform='cuda', target_config=target_config(card), topology=f'1x{hosts}x{match[3]}'
        ).devices
    except (RuntimeError, NotImplementedError) as e:
        raise UserError(
            f"--topology={topology}: JAX's CUDA plugin cannot compile for it ({one_line(e)}): "
            'set JAX_PLATFORMS=cpu and install its version for jaxlib '
            + importlib.metadata.version('jaxlib')
        ) from None
    chip = Chip(
        card.flops,
        card.tf32_flops,
        RESERVED * card.memory,
        card.memory_rate,
        card.link_rate,
        hosts,
        card.network_rate or float('inf'),
    )
    return mesh_of(devices), chip


def target_config(card: Card) -> str:
    """Returns the card as the text of XLA's GpuTargetConfigProto."""
    shared, threads = LIMITS[card.capability]
    cudnn = 'major: {} minor: {} patch: {}'.format(*CUDNN)
    device = {
        'threads_per_block_limit': 1024,
        'threads_per_warp': 32,
        'shared_memory_per_block': 48 * 2**10,
        'shared_memory_per_core': shared * 2**10,
        'shared_memory_per_block_optin': (shared - 1) * 2**10,
        'threads_per_core_limit': threads,
        'core_count': card.cores,
        'fpus_per_core': card.fpus,
        'block_dim_limit_x': 2**31 - 1,
        'block_dim_limit_y': 2**16 - 1,
        'block_dim_limit_z': 2**16 - 1,
        'memory_bandwidth': int(card.memory_rate),
        'l2_cache_size': card.l2,
        'clock_rate_ghz': card.clock_ghz,
        'device_memory_size': int(card.memory),
        'registers_per_core_limit': 2**16,
        'registers_per_block_limit': 2**16,
        'driver_version': '"{}.{}.{}"'.format(*DRIVER),
        'runtime_version': '"{}.{}.{}"'.format(*CUDA),
        'compile_time_toolkit_version': '"{}.{}.{}"'.format(*CUDA),
        'dnn_version': '"{}.{}.{}"'.format(*CUDNN),
    }
    fields = '\n'.join(f'  {key}: {value}' for key, value in device.items())
    capability = 'major: {} minor: {}'.format(*card.capability)
    return (
        f'gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ {capability} }}\n}}\n'
        f'platform_name: "CUDA"\ndnn_version_info {{ {cudnn} }}\n'
        f'device_description_str: "{card.name}"\n'
    )


# ---- launches -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Launches:
    """The kernels and copies of a step.

    Attributes:
      total: their number, calls of libraries included.
      in_graphs: how many of them are inside CUDA graphs.
      graphs: number of CUDA graphs that a step launches; 0 if one graph holds the whole call.
    """

    total: int = 0
    in_graphs: int = 0
    graphs: int = 0


def step_launches(folder: str, num_steps: int, pieces: int = 1) -> Launches | None:
    """Counts the launches of a step in what the compiler dumped to `folder`; None if nothing."""
    paths = sorted(pathlib.Path(folder).glob('*train_steps*thunk_sequence_after_thunk_passes.txt'))
    return count_launches(paths[0].read_text(), num_steps, pieces) if paths else None


def count_launches(thunks: str, num_steps: int, pieces: int = 1) -> Launches:
    """Counts the launches of a step in XLA's list of thunks, a line each, nested by indentation.

    In a program of several steps, the body of the outer loop is a step. The body of a loop within
    a step runs `pieces` times. The number of iterations is known, so conditions are not evaluated.
    """
    total = inside = graphs = 0
    above: list[tuple[int, str]] = []
    lines = thunk_lines(thunks)
    for (indent, kind), (next_indent, _) in zip(lines, [*lines[1:], (0, '')], strict=True):
        while above and above[-1][0] >= indent:
            above.pop()
        kinds = [k for _, k in above]
        above.append((indent, kind))
        loops = kinds.count('kWhile') - (num_steps > 1)
        if loops < 0 or kind.endswith('Done'):
            continue
        times = pieces if loops else 1
        if kind == 'kCommandBuffer':
            graphs += times
        elif next_indent <= indent:  # the others contain launches
            total += times
            inside += times * ('kCommandBuffer' in kinds)
    return Launches(total, inside, graphs)


def thunk_lines(thunks: str) -> list[tuple[int, str]]:
    """Returns (indentation, kind) of each thunk, without the conditions of loops."""
    found, condition = [], False
    for line in thunks.splitlines():
        if line.strip() in ('condition:', 'body:'):
            condition = line.strip() == 'condition:'
        elif not condition and (match := re.match(r'( *)\d+: (k\w+)', line)):
            found.append((len(match[1]), match[2]))
    return found
