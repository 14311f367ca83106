"""Estimates the cost of a run by compiling its training program, without running it.

For a TPU slice, libtpu compiles the program that the slice would execute, on any Linux machine and
without the data; for GPUs, JAX's CUDA plugin does. For the local devices, JAX compiles it as usual.
The compiler reports memory use and its program; the chip's published specifications convert memory
traffic and FLOPs to a lower bound on time.
"""

import dataclasses
import math
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from launch.cost import flops_of_stages, flops_per_image
from launch.preflight.chips import TPUS, Chip, measured_chip, tpu_slice
from launch.preflight.gpus import GPUS, Launches, gpu_hosts, step_launches
from launch.preflight.hlo import step_costs, step_cycles, step_products
from nin_jax.data import catalog
from nin_jax.data.batches import Batch, Examples
from nin_jax.data.catalog import lookup
from nin_jax.data.preprocess import PRECOMPUTED, Preprocess
from nin_jax.devices import is_cpu, make_mesh, replicated, shapes
from nin_jax.errors import UserError
from nin_jax.models.factory import fc_classes, layer_blocks
from nin_jax.models.summary import layer_table
from nin_jax.plan import Plan, Stage, make_plan
from nin_jax.train.step import Setup, TrainState, train_steps
from nin_jax.train.trainer import make_setup


@dataclasses.dataclass(frozen=True)
class Report:
    """The cost of the compiled program; bytes and FLOPs are per chip unless stated otherwise.

    Attributes:
      topology, kind, chips, batch_size: the target of the compilation.
      plan: the run's steps.
      whole_steps: steps on whole images, with nothing frozen, of as many FLOPs as the run.
      arguments, outputs, temporaries, code: bytes of the training program. Outputs that alias
        arguments are not counted.
      test_images: bytes of the test images, which stay in memory.
      memory: memory of a chip in bytes.
      model_flops: 6 x MACs of the images of a step, on all chips together.
      flops: FLOPs of a step, as compiled; on a GPU, those of convolutions and matrix products.
      traffic: bytes per step to and from memory, see `step_costs`.
      launches: kernels and copies per step; None unless the target is a GPU.
      collectives: (count, bytes) per step, by kind.
      compute_s, memory_s, links_s: seconds per step for each alone, at the chip's peak rates.
      cycles_s: seconds per step by the compiler's cycle count, which includes the vector unit and
        the time to fill the matrix units; 0 if there is none.
      compile_s: seconds of compilation on this machine.
      hlo: the compiled program as HLO text.
    """

    topology: str
    kind: str
    chips: int
    batch_size: int
    plan: Plan
    whole_steps: float
    arguments: int
    outputs: int
    temporaries: int
    code: int
    test_images: int
    memory: float
    model_flops: float
    flops: float
    traffic: float
    launches: Launches | None
    collectives: dict[str, tuple[int, int]]
    compute_s: float
    memory_s: float
    links_s: float
    cycles_s: float
    compile_s: float
    hlo: str = dataclasses.field(repr=False)

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
    """Compiles a config's training program for a topology, see `target`.

    Raises:
      UserError: the topology does not exist, its compiler is missing, the config cannot be split
        over the devices, or the program does not fit in memory.
    """
    mesh, chip = target(topology, config.devices)
    dataset = lookup(config.data.name)
    data = config.data
    images, test = (catalog.count(data.name, s, data.limit) for s in (data.train, data.eval))
    streamed = dataset.storage == 'photos' or config.data.residency == 'stream'
    plan = make_plan(config, images, streamed or is_cpu(mesh))
    setup, init_state = make_setup(config, plan, mesh, dataset.image_shape, dataset.num_classes)

    everywhere = replicated(mesh)
    on_gpu = topology.partition(':')[0] in GPUS
    pieces = setup.batch_size // setup.microbatch  # the loop's body is counted once
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_steps(
            jax.eval_shape(init_state, 0),
            abstract_batches(config, setup, plan)
            if streamed
            else shapes(abstract_examples(config, images), everywhere),
            abstract_preprocess(config),
            setup,
            plan.steps_per_call,
            everywhere,
            {'xla_dump_to': folder} if on_gpu else {},
        )
        launches = step_launches(folder, plan.steps_per_call, pieces)
    compile_s = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    hlo = compiled.as_text() or ''
    if on_gpu:
        flops = step_products(hlo, plan.steps_per_call, pieces)
    else:
        cost: Any = compiled.cost_analysis()
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
        whole_steps=flops_of_stages(config, plan) / flops_per_image(config, Stage()),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        test_images=0 if streamed else resident_bytes(abstract_examples(config, test), everywhere),
        memory=chip.memory,
        model_flops=6.0 * sum(row.macs for row in rows) * config.train.batch_size,
        flops=flops,
        traffic=traffic,
        launches=launches,
        collectives=collectives,
        compute_s=flops / chip.rate(config.dtype),
        memory_s=traffic / chip.memory_rate,
        links_s=chip.reduction_s(moved, mesh.size),
        cycles_s=step_cycles(hlo, plan.steps_per_call) / chip.clock if chip.clock else 0.0,
        compile_s=compile_s,
        hlo=hlo,
    )


def target(topology: str, devices: int) -> tuple[Mesh, Chip]:
    """Returns the devices to compile for, and their chip.

    Args:
      topology: 'local', GPUs such as 'h100:8' or 'h100:2x8', or a TPU slice such as 'v5e:4x4'.
      devices: number of local devices to use; 0 for all.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    if topology == 'local':
        mesh = make_mesh(devices)
        return mesh, measured_chip(mesh.devices.flat[0])
    name = topology.partition(':')[0]
    if name in GPUS:
        return gpu_hosts(topology)
    if name in TPUS:
        return tpu_slice(topology)
    raise UserError(
        f"--topology={topology}: write 'local', a GPU and its number, such as h100:8, or a TPU and "
        f'the shape of its slice, such as v5e:4x4; known GPUs: {", ".join(GPUS)}; known TPUs: '
        + ', '.join(TPUS)
    )


def compile_steps(
    state: TrainState,
    inputs: Examples | Batch,
    preprocess: Preprocess,
    setup: Setup,
    num_steps: int,
    sharding: NamedSharding,
    options: dict[str, Any],
):
    """Compiles the training program for these shapes on the mesh of `sharding`."""
    state, preprocess = shapes((state, preprocess), sharding)
    lowered = train_steps.lower(state, inputs, preprocess, setup=setup, num_steps=num_steps)
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
        if 'RESOURCE_EXHAUSTED' not in str(e):
            raise
        what = ' '.join(str(e).split())[:300]
        raise DoesNotFit(f'does not fit: {what}; use more chips or a smaller batch') from None


class DoesNotFit(UserError):
    """The program needs more memory than a chip has."""

    exit_status = 1


def abstract_examples(config: ConfigDict, images: int) -> Examples:
    """Returns the shapes of a split on the device."""
    return jax.eval_shape(Examples.of, *abstract_images(config, images))


def abstract_batches(config: ConfigDict, setup: Setup, plan: Plan) -> Batch:
    """Returns the shapes of the batches that a stream transfers for one call."""
    images, labels = abstract_images(config, plan.steps_per_call, config.train.batch_size)
    sharding = NamedSharding(setup.mesh, PartitionSpec(None, 'data'))
    return shapes(Batch(images, labels, labels), sharding)


def abstract_images(config: ConfigDict, *leading: int) -> tuple[Any, Any]:
    """Returns the shapes of images and labels; whitened images are float32."""
    dtype = jnp.float32 if config.preprocess.recipe in PRECOMPUTED else jnp.uint8
    shape = (*leading, *lookup(config.data.name).image_shape)
    return jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(leading, jnp.int32)


def abstract_preprocess(config: ConfigDict) -> Preprocess:
    """Returns the preprocessing of a run, with shapes instead of arrays."""
    shape, recipe = lookup(config.data.name).image_shape, config.preprocess.recipe
    pixels, channels = math.prod(shape), shape[-1]
    sizes = {
        'mean': {'mean_HWC': (1, 1, channels)},
        'gcn_zca': {'mean_HWC': shape, 'whiten_DD': (pixels, pixels)},
        'patch_zca': {'kernel_HWIO': (5, 5, channels, channels)},
    }.get(recipe, {})
    arrays: Any = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in sizes.items()}
    gcn_scale = float(config.preprocess.gcn_scale) if recipe == 'gcn_zca' else 55.0
    return Preprocess(recipe, gcn_scale, **arrays)


def resident_bytes(tree: Any, sharding: NamedSharding) -> int:
    """Returns the bytes per chip of arrays in the compiler's padded layout."""
    nothing = jax.jit(lambda _: 0, keep_unused=True).lower(shapes(tree, sharding)).compile()
    memory: Any = nothing.memory_analysis()
    return memory.argument_size_in_bytes
