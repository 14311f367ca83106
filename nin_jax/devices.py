"""The mesh of a run's devices, JAX's compilation cache, and memory of CPUs."""

import ctypes
import os
import statistics
import time
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nin_jax import distributed
from nin_jax.errors import ConfigError, UserError
from nin_jax.files import user_cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """Makes a mesh with one axis, 'data', over the first `devices` devices (0: all).

    Raises:
      ConfigError: there are fewer, or several processes do not use all of theirs.
      UserError: JAX_PLATFORMS names devices that this machine does not have.
    """
    available = visible_devices()
    if devices not in (0, len(available)) and distributed.several():
        raise ConfigError(
            f'devices={devices}: several processes use all of their {len(available)} devices: '
            'leave it 0'
        )
    if devices > len(available):
        raise ConfigError(
            f'devices={devices}: JAX sees {len(available)} '
            f'({available[0].device_kind}), choose that or less, or 0 for all'
        )
    return mesh_of(available[: devices or len(available)])


def local_mesh() -> jax.sharding.Mesh:
    """Makes a mesh of this process's first device, also among several processes."""
    visible_devices()
    return mesh_of(jax.local_devices()[:1])


def visible_devices() -> list[Any]:
    """Returns the devices of all processes.

    Raises:
      UserError: JAX_PLATFORMS names devices that this machine does not have.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter for a platform that is not there
        reason = str(e).split('. ')[0] or 'this machine has no such device'
        raise UserError(
            f'JAX cannot use JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r} ({reason}): '
            'set it to cpu, or unset it'
        ) from e


def mesh_of(devices: list[Any]) -> jax.sharding.Mesh:
    """Makes a mesh of `devices` along one axis, 'data'."""
    return jax.make_mesh((len(devices),), ('data',), devices=devices, axis_types=(AxisType.Auto,))


def is_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the devices of the mesh are CPUs."""
    return mesh.devices.flat[0].platform == 'cpu'


def is_one_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the mesh is a single CPU, on which batches that fit in cache are faster."""
    return mesh.size == 1 and is_cpu(mesh)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def memory_bytes(device: Any) -> int:
    """Returns the memory of a device that JAX can use; of a CPU, the machine's."""
    machine = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return (device.memory_stats() or {}).get('bytes_limit', machine)


def shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Returns the shapes and dtypes of a tree of arrays, with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def use_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache (JAX_COMPILATION_CACHE_DIR or the user's)."""
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(user_cache() / 'xla')
    if not folder.isprintable():  # JAX fails on a path that is not UTF-8
        return
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for this process, if it is glibc.

    By default, glibc returns large blocks to the system. The temporaries of every call then come as
    new pages, and the first write to each page is a page fault.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(ctypes.c_int(_M_MMAP_MAX), ctypes.c_int(0))
    mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(2**31 - 1))


def matmul_rate(size: int = 1024, repeats: int = 5) -> float:
    """Measures the FLOP/s of a float32 matrix product on one device, the median of `repeats`."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)
