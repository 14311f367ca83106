"""Estimates memory, speed and cost of a run on a TPU slice, without a TPU.

    python -m launch.preflight --config=experiments/configs/cifar10.py
    python -m launch.preflight --config=experiments/configs/cifar10.py --topology=v5e:4x4 \\
        --price=1.2
    python -m launch.preflight --table=results/preflight.md

The first command compiles the training program for the local devices. The second compiles it for a
TPU slice, with the package libtpu (pip install -e '.[preflight]'), in half a minute of CPU time.
The third does so for the paper's four datasets on three v5e slices. No command trains or reads
data.

The time of a step is given twice: a lower bound from the chip's published specifications, and the
compiler's estimate from its cycle count, if there is one. Epochs, runs and costs use the larger of
the two. Neither has been checked against a TPU, so allow a margin. Exit status: 0 the run fits,
1 it does not fit, 2 an error in the command.
"""

import importlib
import os
import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from experiments import cli
from nin_jax.config import validate
from nin_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'A config of experiments/configs/.')
TOPOLOGY = flags.DEFINE_string('topology', 'local', "'local', or a TPU slice such as 'v5e:4x4'.")
PRICE = flags.DEFINE_float('price', None, 'Price of a chip-hour, in any currency.')
TABLE = flags.DEFINE_string('table', None, 'Write the table of the four datasets to this file.')

TABLE_CONFIGS = ('mnist', 'svhn', 'cifar10', 'cifar100')
TABLE_SLICES = ('v5e:2x2', 'v5e:4x4', 'v5e:16x16')


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise UserError(f"unexpected argument '{argv[1]}': flags begin with --")
    if PRICE.value is not None and not PRICE.value > 0:
        raise UserError(f'--price={PRICE.value}: must be above 0')
    if TABLE.value:
        return write_table(pathlib.Path(TABLE.value))
    if CONFIG.value is None:
        raise UserError(
            '--config is missing: give a config, such as --config=experiments/configs/cifar10.py'
        )
    validate(CONFIG.value)
    if TOPOLOGY.value != 'local':
        leave_tpus_alone()
    from launch.preflight import analysis

    result = analysis.report(CONFIG.value, TOPOLOGY.value)
    print(text(result, PRICE.value))
    return 0 if result.fits else 1


def leave_tpus_alone() -> None:
    """Configures libtpu, before JAX loads it, to compile only and to use no chip and no lock."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    for name, value in {
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # avoids a metadata server query
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_MIN_LOG_LEVEL': '3',
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_LOG_DIR': 'disabled',
    }.items():
        os.environ.setdefault(name, value)


def text(r, price: float | None) -> str:
    """Formats a report as text."""
    from nin_jax.runs.display import duration

    plan, collectives = r.plan, ', '.join(f'{n} {kind}' for kind, (n, _) in r.collectives.items())
    moved = sum(size for _, size in r.collectives.values())
    run_s = plan.total_steps * r.step_s
    chip_hours = r.chips * run_s / 3600
    lines = [
        f'{r.chips} x {r.kind} ({r.topology}), batch {r.batch_size}, {plan.steps_per_call} steps '
        f'per call, compiled in {r.compile_s:.0f} s',
        f'memory       {"fits" if r.fits else "DOES NOT FIT"}: {mib(r.needed)} of '
        f'{mib(r.memory)} MiB per chip: arguments {mib(r.arguments)}, outputs {mib(r.outputs)}, '
        f'temporaries {mib(r.temporaries)}, code {mib(r.code)}, test images {mib(r.test_images)}',
        f'compute      {r.model_flops / 1e9:,.4g} GFLOP per step by 6 x MACs; as compiled '
        f'{r.flops / 1e9:,.4g} per chip, {r.flops * r.chips / 1e9:,.4g} in total',
        f'traffic      {r.traffic / 1e6:,.1f} MB per chip and step',
        f'collectives  {collectives or "none"}, {moved / 1e6:,.2f} MB per chip and step',
        f'step         {1e3 * r.least_s:,.3f} ms at least: compute {1e3 * r.compute_s:,.3f}, '
        f'memory {1e3 * r.memory_s:,.3f}, links {1e3 * r.links_s:,.3f}'
        + (f'; {1e3 * r.cycles_s:,.3f} ms estimated by the compiler' if r.cycles_s else ''),
        f'speed        {r.batch_size / r.step_s:,.0f} images/s, by the longer of the two',
        f'epoch        {plan.steps_per_epoch:,.1f} steps, {plan.steps_per_epoch * r.step_s:,.2f} s',
        f'run          {plan.total_steps:,} steps, {duration(run_s)}, {chip_hours:,.3f} chip-hours'
        + (f', {chip_hours * price:,.2f} at {price:g} per chip-hour' if price else ''),
    ]
    return '\n'.join(lines)


def mib(size: float) -> str:
    return f'{size / 2**20:,.1f}'


def write_table(path: pathlib.Path) -> int:
    """Compiles every config for every slice and writes the table; returns the exit status."""
    leave_tpus_alone()
    from launch.preflight import analysis

    how, rows, fits = provenance(), [], True
    for name in TABLE_CONFIGS:
        for topology in TABLE_SLICES:
            config = importlib.import_module(f'experiments.configs.{name}').get_config('')
            mesh, _ = analysis.tpu_slice(topology)
            # The config's batch size, or one image per chip if there are more chips.
            config.train.batch_size = max(config.train.batch_size, mesh.size)
            result = analysis.report(config, topology)
            fits &= result.fits
            rows.append(row(name, result, PRICE.value))
            print(rows[-1], flush=True)
    head = [f'| {" | ".join(COLUMNS)} |', '|' + '---|' * len(COLUMNS)]
    path.write_text(HEAD.format(how=how) + '\n'.join(head + rows) + '\n')
    return 0 if fits else 1


HEAD = """# Preflight: the paper's runs on TPU v5e slices

Compiled by libtpu on a CPU; no TPU was used and nothing was trained. {how}

The batch size is the configs' 128, or one image per chip if there are more chips. Memory is the
requirement of one chip for the training program and the test images. FLOPs are those of a step on
all chips: 6 x the network's multiply-accumulates, and the compiler's count for its program. The
minimum time of a step is the longer of compute and memory traffic, plus the links, at the chip's
published rates; "expected" is the compiler's cycle count. Epoch, run and chip-hours use the longer
of the two, without evaluation, compilation or waiting. These numbers were not checked against a
TPU.

"""
COLUMNS = (
    *('config', 'slice', 'batch', 'MiB of 16,384 per chip', 'temporaries'),
    *('GFLOP, 6 x MACs', 'GFLOP, compiled', 'collectives per step'),
    *('step, ms at least', 'compute', 'memory', 'links', 'expected'),
    *('epoch, s', 'run', 'chip-hours', 'cost'),
)


def row(name: str, r, price: float | None) -> str:
    """Formats a row of the table."""
    from nin_jax.runs.display import duration

    moved = sum(size for _, size in r.collectives.values())
    kinds = ', '.join(f'{n} {kind}' for kind, (n, _) in r.collectives.items())
    run_s = r.plan.total_steps * r.step_s
    chip_hours = r.chips * run_s / 3600
    cells = [
        name,
        r.topology,
        r.batch_size,
        mib(r.needed) + ('' if r.fits else ', too much'),
        mib(r.temporaries),
        f'{r.model_flops / 1e9:,.1f}',
        f'{r.flops * r.chips / 1e9:,.1f}',
        f'{kinds}: {moved / 1e6:.2f} MB' if kinds else 'none',
        *(f'{1e3 * s:.3f}' for s in (r.least_s, r.compute_s, r.memory_s, r.links_s, r.cycles_s)),
        f'{r.plan.steps_per_epoch * r.step_s:.2f}',
        duration(run_s),
        f'{chip_hours:.2f}',
        f'{chip_hours * price:.2f}' if price else '',
    ]
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def provenance() -> str:
    """Returns a sentence with the command, the commit and the versions."""
    from importlib import metadata

    from nin_jax.runs.environment import commit

    versions = ', '.join(f'{p} {metadata.version(p)}' for p in ('jax', 'jaxlib', 'libtpu'))
    command = shlex.join(['python', '-m', 'launch.preflight', *sys.argv[1:]])
    return f'Made by `{command}` at commit {commit()[:12] or "unknown"} with {versions}.'


if __name__ == '__main__':
    cli.run(main)
