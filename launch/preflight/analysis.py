"""Estimates the cost of a run by compiling its training program, without running it.

For a TPU slice, libtpu compiles the program that the slice would execute, on any Linux machine and
without the data. For the local devices, JAX compiles it as usual. The compiler reports memory use
and memory traffic; the chip's published specifications convert them to a lower bound on time.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nin_jax.data import catalog
from nin_jax.data.batches import Batches, Examples
from nin_jax.data.catalog import lookup
from nin_jax.data.preprocess import Preprocess
from nin_jax.devices import is_cpu, make_mesh, mesh_of
from nin_jax.errors import UserError
from nin_jax.models.factory import fc_classes, layer_blocks
from nin_jax.models.summary import layer_table
from nin_jax.plan import Plan, make_plan
from nin_jax.train.step import Setup, TrainState, train_steps
from nin_jax.train.trainer import make_setup


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak rates of one chip.

    Attributes:
      flops: FLOP/s of matrix products. By default a TPU multiplies float32 in one bfloat16 pass,
        so this is the bfloat16 rate for both dtypes.
      memory: size of the memory, in bytes.
      memory_rate: memory bandwidth, in bytes per second.
      link_rate: outgoing bandwidth of all links together, in bytes per second.
      clock: cycles per second; 0 if the compiler reports no cycles.
      axes: number of dimensions of a slice's shape.
      most: number of chips in the largest slice.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    clock: float = 0
    axes: int = 0
    most: int = 0


# docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: peak bf16, HBM, half of the bidirectional ICI
# bandwidth. For v4: six links of 50 GB/s, Jouppi et al. 2023 (arXiv 2304.01433), section 2.
# Clock: the peak divided by the FLOPs per cycle of the matrix units, 2 x 128 x 128 for each of 8,
# 4 and 8 units; on v6e, the equivalent of 16.
TPUS = {
    'v4': Chip(275e12, 32 * 2**30, 1200e9, 300e9, 1.05e9, axes=3, most=4096),
    'v5e': Chip(197e12, 16 * 2**30, 819e9, 200e9, 1.5e9, axes=2, most=256),
    'v5p': Chip(459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9, axes=3, most=6144),
    'v6e': Chip(918e12, 32 * 2**30, 1638e9, 400e9, 1.75e9, axes=2, most=256),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The cost of the compiled program; bytes and FLOPs are per chip unless stated otherwise.

    Attributes:
      topology, kind, chips, batch_size: the target of the compilation.
      plan: the run's steps.
      arguments, outputs, temporaries, code: bytes of the training program. Outputs that alias
        arguments are not counted.
      test_images: bytes of the test images, which stay in memory.
      memory: memory of a chip in bytes.
      model_flops: 6 x MACs of the images of a step, on all chips together.
      flops: FLOPs of a step, as compiled.
      traffic: bytes per step to and from memory, see `step_costs`.
      collectives: (count, bytes) per step, by kind.
      compute_s, memory_s, links_s: seconds per step for each alone, at the chip's peak rates.
      cycles_s: seconds per step by the compiler's cycle count, which includes the vector unit and
        the time to fill the matrix units; 0 if there is none.
      compile_s: seconds of compilation on this machine.
    """

    topology: str
    kind: str
    chips: int
    batch_size: int
    plan: Plan
    arguments: int
    outputs: int
    temporaries: int
    code: int
    test_images: int
    memory: float
    model_flops: float
    flops: float
    traffic: float
    collectives: dict[str, tuple[int, int]]
    compute_s: float
    memory_s: float
    links_s: float
    cycles_s: float
    compile_s: float

    @property
    def needed(self) -> int:
        """Required bytes per chip."""
        return self.arguments + self.outputs + self.temporaries + self.code + self.test_images

    @property
    def fits(self) -> bool:
        return self.needed <= self.memory

    @property
    def least_s(self) -> float:
        """Minimum seconds per step: compute overlaps with memory traffic, but not with links."""
        return max(self.compute_s, self.memory_s) + self.links_s

    @property
    def step_s(self) -> float:
        """Estimated seconds per step: the compiler's estimate, or the minimum if it is longer."""
        return max(self.least_s, self.cycles_s)


def report(config: ConfigDict, topology: str) -> Report:
    """Compiles a config's training program for 'local' or a TPU slice such as 'v5e:4x4'.

    Raises:
      UserError: the topology does not exist, libtpu is missing, the config cannot be split over
        the devices, or the program does not fit in memory.
    """
    if topology == 'local':
        mesh = make_mesh(config.devices)
        chip = measured_chip(mesh.devices.flat[0])
    else:
        mesh, chip = tpu_slice(topology)
    dataset = lookup(config.data.name)
    images, test = (count(config, splits) for splits in (config.data.train, config.data.eval))
    streamed = dataset.storage == 'photos' or config.data.residency == 'stream'
    plan = make_plan(config, images, streamed or is_cpu(mesh))
    setup, init_state = make_setup(config, plan, mesh, dataset.image_shape, dataset.num_classes)

    replicated = NamedSharding(mesh, PartitionSpec())
    start = time.perf_counter()
    compiled = compile_steps(
        jax.eval_shape(init_state, 0),
        abstract_batches(config, setup, plan)
        if streamed
        else on(replicated, abstract_examples(config, images)),
        abstract_preprocess(config),
        setup,
        plan.steps_per_call,
        replicated,
    )
    compile_s = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    hlo = compiled.as_text() or ''
    pieces = setup.batch_size // setup.microbatch  # the loop's body is counted once
    flops = cost['flops'] * pieces
    traffic, collectives = step_costs(hlo, plan.steps_per_call, pieces)
    moved = sum(n for _, n in collectives.values())
    rows = layer_table(
        layer_blocks(config, dataset.num_classes),
        dataset.image_shape,
        fc_classes(config, dataset.num_classes),
    )
    return Report(
        topology=topology,
        kind=mesh.devices.flat[0].device_kind,
        chips=mesh.size,
        batch_size=config.train.batch_size,
        plan=plan,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        test_images=0 if streamed else resident_bytes(abstract_examples(config, test), replicated),
        memory=chip.memory,
        model_flops=6.0 * sum(row.macs for row in rows) * config.train.batch_size,
        flops=flops,
        traffic=traffic,
        collectives=collectives,
        compute_s=flops / chip.flops,
        memory_s=traffic / chip.memory_rate,
        # A ring all-reduce sends every byte twice, except the chip's own part.
        links_s=2 * moved * (mesh.size - 1) / mesh.size / chip.link_rate,
        cycles_s=step_cycles(hlo, plan.steps_per_call) / chip.clock if chip.clock else 0.0,
        compile_s=compile_s,
    )


def count(config: ConfigDict, splits: str) -> int:
    """Returns the number of images in the splits, from the catalog; reads no file."""
    return min(config.data.limit or 2**31, catalog.count(config.data.name, splits))


def compile_steps(
    state: TrainState,
    examples: Examples | Batches,
    preprocess: Preprocess,
    setup: Setup,
    num_steps: int,
    sharding: NamedSharding,
):
    """Compiles the training program for these shapes on the mesh of `sharding`."""
    state, preprocess = on(sharding, (state, preprocess))
    lowered = train_steps.lower(state, examples, preprocess, setup=setup, num_steps=num_steps)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if 'RESOURCE_EXHAUSTED' not in str(e):
            raise
        what = ' '.join(str(e).split())[:300]
        raise UserError(f'does not fit: {what}; use more chips or a smaller batch') from None


def on(sharding: NamedSharding, tree):
    """Returns the shapes of a tree, with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def abstract_examples(config: ConfigDict, images: int) -> Examples:
    """Returns the shapes of a split on the device; whitened images are float32."""
    shape = lookup(config.data.name).image_shape
    dtype = jnp.float32 if config.preprocess.recipe == 'gcn_zca' else jnp.uint8
    return Examples(
        jax.ShapeDtypeStruct((images, *shape), dtype), jax.ShapeDtypeStruct((images,), jnp.int32)
    )


def abstract_batches(config: ConfigDict, setup: Setup, plan: Plan) -> Batches:
    """Returns the shapes of the batches that a stream transfers for one call."""
    one = abstract_examples(config, config.train.batch_size)
    sharding = NamedSharding(setup.mesh, PartitionSpec(None, 'data'))
    return on(
        sharding,
        Batches(
            *(
                jax.ShapeDtypeStruct((plan.steps_per_call, *part.shape), part.dtype)
                for part in (one.images, one.labels)
            )
        ),
    )


def abstract_preprocess(config: ConfigDict) -> Preprocess:
    """Returns the preprocessing of a run, with shapes instead of arrays."""
    shape, recipe = lookup(config.data.name).image_shape, config.preprocess.recipe
    size, channels = math.prod(shape), shape[-1]
    shapes = {
        'mean': {'mean_HWC': (1, 1, channels)},
        'gcn_zca': {'mean_HWC': shape, 'whiten_DD': (size, size)},
        'patch_zca': {'kernel_HWIO': (5, 5, channels, channels)},
    }.get(recipe, {})
    arrays: Any = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    gcn_scale = float(config.preprocess.gcn_scale) if recipe == 'gcn_zca' else 55.0
    return Preprocess(recipe, gcn_scale, **arrays)


def resident_bytes(tree: Any, sharding: NamedSharding) -> int:
    """Returns the bytes per chip of arrays in the compiler's padded layout."""
    nothing = jax.jit(lambda _: 0, keep_unused=True).lower(on(sharding, tree)).compile()
    memory: Any = nothing.memory_analysis()
    return memory.argument_size_in_bytes


# ---- the chips ------------------------------------------------------------------------------


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
            f"--topology={topology}: write 'local', or a TPU and the shape of its slice, such as "
            f'v5e:4x4 or v4:2x2x1; known TPUs: {known}, up to 256 chips of v5e and v6e'
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
    stats = device.memory_stats() or {}
    ram = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Chip(flops, stats.get('bytes_limit', ram), rate, link_rate=rate)


def best_seconds(program, *arguments, tries: int = 5) -> float:
    """Returns the shortest time of `tries` calls, after a call that compiles."""
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# ---- the compiled program -------------------------------------------------------------------

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8}
INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z\-]*)\((.*?)\)')
# Instructions without traffic: aliases, and the second halves of asynchronous pairs.
FREE = (
    *('parameter', 'get-tuple-element', 'tuple', 'constant', 'bitcast', 'while', 'copy-done'),
    *(f'{kind}-done' for kind in COLLECTIVES),
)


def step_costs(hlo: str, num_steps: int, pieces: int = 1) -> tuple[int, dict[str, tuple[int, int]]]:
    """Computes (memory traffic, collectives) of a step in bytes, from the program's HLO text.

    In a program of several steps, the body of the loop is a step; the entry computation runs once
    per call and is not counted. A program of one step is only the entry computation. Traffic is the
    sum of what each instruction reads and writes, without buffers that the compiler keeps on the
    chip (a layout with S(1)). A lookup of rows in a table counts the bytes of the rows. The body of
    a loop within a step counts `pieces` times.
    """
    computations, bodies = parse_hlo(hlo)
    steps = bodies['ENTRY'] if num_steps > 1 else ['ENTRY']
    often = [(s, 1) for s in steps] + [(inner, pieces) for s in steps for inner in bodies[s]]
    traffic, collectives = 0, {}
    for computation, times in ((computations[c], times) for c, times in often):
        for name, (shape, operation, operands, called) in computation.items():
            if operation in FREE:
                continue
            kind = operation.removesuffix('-start')
            written = in_memory(shape)
            if kind in COLLECTIVES:
                n, total = collectives.get(kind, (0, 0))
                collectives[kind] = (n + 1, total + shape_bytes(result_shape(shape, operation)))
            if operation == 'copy-start':  # its result names the source as well
                traffic += times * written
                continue
            for i, operand in enumerate(operands):
                read = in_memory(computation[operand][0]) if operand in computation else 0
                if re.search('gather|slice', name) or is_looked_up(computations.get(called), i):
                    read = min(read, shape_bytes(shape))
                traffic += times * read
            traffic += times * written
    return traffic, collectives


def is_looked_up(fused: dict | None, i: int) -> bool:
    """Whether a fused computation reads only slices or rows of its parameter `i`."""
    if fused is None:
        return False
    names = {n for n, (_, kind, of, _) in fused.items() if (kind, of) == ('parameter', [str(i)])}
    users = {kind for _, kind, of, _ in fused.values() if names & set(of)}
    return bool(users) and users <= {'dynamic-slice', 'gather'}


def step_cycles(hlo: str, num_steps: int) -> float:
    """Returns libtpu's estimate of the cycles per step, with a share of the work per call."""
    lines: dict[str, int] = {}
    here = ''
    for line in hlo.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            here = line.split()[0].lstrip('%')
        if match := re.search(r'"estimated_cycles":"(\d+)"', line):
            lines[here] = lines.get(here, 0) + int(match[1])
    body = sum(lines.get(b, 0) for b in parse_hlo(hlo)[1]['ENTRY']) if num_steps > 1 else 0
    return body + lines.get('ENTRY', 0) / num_steps


def parse_hlo(hlo: str) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """Parses HLO text into its computations and, by computation, the bodies of its loops.

    A computation maps an instruction's name to (shape, operation, operand names, called
    computation or '').
    """
    computations: dict[str, dict[str, tuple[str, str, list[str], str]]] = {}
    bodies: dict[str, list[str]] = {'ENTRY': []}
    here = ''
    for line in hlo.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            here = line.split()[0].lstrip('%')
            computations[here], bodies[here] = {}, []
        elif here and (match := INSTRUCTION.match(line)):
            name, shape, operation, operands = match.groups()
            called = re.search(r' calls=%?([\w.\-]+)', line)
            words = re.findall(r'[\w.\-]+', re.sub(r'/\*.*?\*/', '', operands))  # '/*index=5*/'
            computations[here][name] = (shape, operation, words, called[1] if called else '')
            if operation == 'while':
                bodies[here] += re.findall(r'body=%?([\w.\-]+)', line)[:1]
    return computations, bodies


def result_shape(shape: str, operation: str) -> str:
    """Returns an instruction's output shape; two kinds of start list their operands first."""
    if operation in ('all-gather-start', 'collective-permute-start'):
        parts = re.findall(r'[a-z]+\d*\[[\d,]*\]', shape)
        return ' '.join(parts[len(parts) // 2 :])
    return shape


def in_memory(shape: str) -> int:
    """Returns the bytes of the parts of a shape that are in HBM (layouts without S(n))."""
    return shape_bytes(re.sub(r'[a-z]+\d*\[[\d,]*\]\{[^}]*S\(\d+\)\}', '', shape))


def shape_bytes(shape: str) -> int:
    """Returns the unpadded bytes of a shape such as 'f32[3,3]{1,0}', or of a tuple of shapes."""
    return sum(
        BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(','))))
        for dtype, dims in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape)
    )
