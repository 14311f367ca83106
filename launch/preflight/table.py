"""Formats preflight reports: one as text, or a table of the paper's four datasets as Markdown."""

import importlib
import importlib.metadata
import pathlib
import shlex
import sys

from launch.preflight.analysis import DoesNotFit, Report, report, target
from launch.preflight.chips import TPUS
from launch.preflight.gpus import GPUS
from nin_jax.errors import UserError, did_you_mean
from nin_jax.runs.display import duration
from nin_jax.runs.environment import commit

CONFIGS = ('mnist', 'svhn', 'cifar10', 'cifar100')
TOPOLOGIES = ('h100:1', 'h100:8', 'a100:1', 'v5e:2x2', 'v5e:4x4', 'v5e:16x16')
PACKAGES = ('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu')

HEAD = """# Preflight: the paper's runs on GPUs and on TPU v5e slices

Compiled on a CPU, by JAX's CUDA plugin and by libtpu; no GPU and no TPU was used and nothing was
trained. {how}

The batch size is the configs' 128, or one image per chip if there are more chips; the dtype is
float32. Memory is the requirement of one chip for the training program and the test images, beside
what JAX can use of it (on a GPU, the 75 % that it reserves). Traffic is what one chip reads and
writes in a step. Launches are kernels and copies per step, and how many of them are inside how many
CUDA graphs. FLOPs are those of a step on all chips: 6 x the network's multiply-accumulates, and
those of the compiled program (on GPUs, its convolutions and matrix products). The minimum time of a
step is the longer of compute and memory traffic, plus the links, at the chip's published rates (on
GPUs, TF32 products); "expected" is the compiler's cycle count, which GPUs do not have. Epoch, run
and chip-hours use the longer of the two, without evaluation, compilation or waiting. These numbers
were not checked against a device; docs/running.md lists what preflight cannot know.

"""
COLUMNS = (
    *('config', 'chips', 'batch', 'MiB per chip', 'of', 'temporaries', 'traffic, MB'),
    *('launches per step', 'GFLOP, 6 x MACs', 'GFLOP, compiled', 'collectives per step'),
    *('step, ms at least', 'compute', 'memory', 'links', 'expected'),
    *('epoch, s', 'run', 'chip-hours', 'cost'),
)


def write_table(path: pathlib.Path, prices: dict[str, float]) -> int:
    """Compiles every config for every topology and writes the table; returns the exit status."""
    check_kinds(prices)
    if path.is_dir():
        raise UserError(f'--table={path}: is a folder, name a file such as preflight.md')
    path.parent.mkdir(parents=True, exist_ok=True)
    for topology in TOPOLOGIES:  # both compilers, before the first of many compilations
        target(topology, 0)
    rows, fits = [], True
    for name in CONFIGS:
        for topology in TOPOLOGIES:
            config = importlib.import_module(f'experiments.configs.{name}').get_config('')
            mesh, _ = target(topology, 0)
            # The config's batch size, or one image per chip if there are more chips.
            config.train.batch_size = max(config.train.batch_size, mesh.size)
            try:
                result = report(config, topology)
            except DoesNotFit:
                cells = [name, topology, str(config.train.batch_size), 'too much']
                rows.append(f'| {" | ".join(cells)} |' + ' |' * (len(COLUMNS) - len(cells)))
                fits = False
            else:
                fits &= result.fits
                rows.append(row(name, result, price_of(result, prices)))
            print(rows[-1], flush=True)
    head = [f'| {" | ".join(COLUMNS)} |', '|' + '---|' * len(COLUMNS)]
    path.write_text(HEAD.format(how=provenance()) + '\n'.join(head + rows) + '\n')
    return 0 if fits else 1


def check_kinds(prices: dict[str, float]) -> None:
    """Raises UserError if a price is of an unknown kind of chip."""
    known = ('local', *GPUS, *TPUS)
    for kind in prices:
        if kind and kind not in known:
            raise UserError(f"--price: unknown kind '{kind}'{did_you_mean(kind, known)}")


def price_of(r: Report, prices: dict[str, float]) -> float | None:
    """Returns the price of a chip-hour, from prices by kind; '' is the price of any kind."""
    return prices.get(r.topology.partition(':')[0], prices.get(''))


def row(name: str, r: Report, price: float | None) -> str:
    """Formats a row of the table."""
    collectives, moved = collectives_of(r)
    run_s, chip_hours = run_of(r)
    cells = [
        name,
        r.topology,
        r.batch_size,
        mib(r.needed) + ('' if r.fits else ', too much'),
        mib(r.memory, 0),
        mib(r.temporaries),
        f'{r.traffic / 1e6:,.1f}',
        launches_of(r),
        f'{r.model_flops / 1e9:,.1f}',
        f'{r.flops * r.chips / 1e9:,.1f}',
        f'{collectives}: {moved / 1e6:.2f} MB' if collectives else 'none',
        *(f'{1e3 * s:.3f}' for s in (r.least_s, r.compute_s, r.memory_s, r.links_s)),
        f'{1e3 * r.cycles_s:.3f}' if r.cycles_s else '',
        f'{r.plan.steps_per_epoch * r.step_s:.2f}',
        duration(run_s),
        f'{chip_hours:.2f}',
        f'{chip_hours * price:.2f}' if price else '',
    ]
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def text(r: Report, price: float | None) -> str:
    """Formats a report as text."""
    collectives, moved = collectives_of(r)
    run_s, chip_hours = run_of(r)
    launches = [f'launches     {launches_of(r)}, per step'] if r.launches else []
    lines = [
        f'{r.chips} x {r.kind} ({r.topology}), batch {r.batch_size}, {r.plan.steps_per_call} steps '
        f'per call, compiled in {r.compile_s:.0f} s',
        f'memory       {"fits" if r.fits else "DOES NOT FIT"}: {mib(r.needed)} of '
        f'{mib(r.memory)} MiB per chip: arguments {mib(r.arguments)}, outputs {mib(r.outputs)}, '
        f'temporaries {mib(r.temporaries)}, code {mib(r.code)}, test images {mib(r.test_images)}',
        f'compute      {r.model_flops / 1e9:,.4g} GFLOP per step by 6 x MACs; as compiled '
        f'{r.flops / 1e9:,.4g} per chip, {r.flops * r.chips / 1e9:,.4g} in total',
        f'traffic      {r.traffic / 1e6:,.1f} MB per chip and step',
        *launches,
        f'collectives  {collectives or "none"}, {moved / 1e6:,.2f} MB per chip and step',
        f'step         {1e3 * r.least_s:,.3f} ms at least: compute {1e3 * r.compute_s:,.3f}, '
        f'memory {1e3 * r.memory_s:,.3f}, links {1e3 * r.links_s:,.3f}'
        + (f'; {1e3 * r.cycles_s:,.3f} ms estimated by the compiler' if r.cycles_s else ''),
        f'speed        {r.batch_size / r.step_s:,.0f} images/s'
        + (', by the longer of the two' if r.cycles_s else ' at most'),
        f'epoch        {r.plan.steps_per_epoch:,.1f} steps, '
        f'{r.plan.steps_per_epoch * r.step_s:,.2f} s',
        f'run          {r.plan.total_steps:,} steps, {duration(run_s)}, '
        f'{chip_hours:,.3f} chip-hours'
        + (f', {chip_hours * price:,.2f} at {price:g} per chip-hour' if price else ''),
    ]
    return '\n'.join(lines)


def collectives_of(r: Report) -> tuple[str, int]:
    """Returns the number of collectives of each kind as text, and their bytes."""
    kinds = ', '.join(f'{n} {kind}' for kind, (n, _) in r.collectives.items())
    return kinds, sum(size for _, size in r.collectives.values())


def launches_of(r: Report) -> str:
    """Returns the launches of a step as text; '' if they are not known."""
    if r.launches is None:
        return ''
    graphs = f'{r.launches.graphs} CUDA graphs' if r.launches.graphs else 'the graph of the call'
    inside = f'{r.launches.in_graphs} in {graphs}' if r.launches.in_graphs else 'none in a graph'
    return f'{r.launches.total}, {inside}'


def run_of(r: Report) -> tuple[float, float]:
    """Returns the seconds and the chip-hours of the run."""
    seconds = r.whole_steps * r.step_s
    return seconds, r.chips * seconds / 3600


def mib(size: float, digits: int = 1) -> str:
    return f'{size / 2**20:,.{digits}f}'


def provenance() -> str:
    """Returns a sentence with the command, the commit and the versions."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            continue
    command = shlex.join(['python', '-m', 'launch.preflight', *sys.argv[1:]])
    return f'Made by `{command}` at commit {commit()[:12] or "unknown"} with {", ".join(versions)}.'
