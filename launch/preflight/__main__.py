"""Estimates memory, speed and cost of a run on GPUs or a TPU slice, without having them.

    python -m launch.preflight --config=experiments/configs/cifar10.py
    python -m launch.preflight --config=experiments/configs/cifar10.py --topology=h100:1
    python -m launch.preflight --config=experiments/configs/cifar10.py --topology=v5e:4x4 \\
        --price=1.2
    python -m launch.preflight --table=results/preflight.md --price=v5e=1.2

The first command compiles the training program for the local devices. The second compiles it for a
GPU, with JAX's CUDA plugin (pip install -e '.[preflight-gpu]'), and the third for a TPU slice, with
the package libtpu (pip install -e '.[preflight]'); each takes half a minute of CPU time. h100:8 are
eight GPUs of one host, h100:2x8 two hosts of eight. The fourth does so for the paper's four
datasets on GPUs and TPU slices. No command trains or reads data.

The time of a step is given twice: a lower bound from the chip's published specifications, and the
compiler's estimate from its cycle count, if there is one (there is none for GPUs). Epochs, runs and
costs use the larger of the two. Neither has been checked against a device, so allow a margin.
docs/running.md lists what preflight cannot know. Exit status: 0 the run fits, 1 it does not fit, 2
an error in the command.
"""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from experiments import cli
from nin_jax.config import validate
from nin_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'A config of experiments/configs/.')
TOPOLOGY = flags.DEFINE_string(
    'topology', 'local', "'local', GPUs such as 'h100:8', or a TPU slice such as 'v5e:4x4'."
)
PRICE = flags.DEFINE_list(
    'price', [], 'Price of a chip-hour, in any currency: 1.2, or by kind: v5e=1.2,h100=3.'
)
TABLE = flags.DEFINE_string('table', None, 'Write the table of the four datasets to this file.')


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    prices = parse_prices(PRICE.value)
    if TABLE.value:
        leave_accelerators_alone()
        from launch.preflight.table import write_table

        return write_table(pathlib.Path(TABLE.value), prices)
    if CONFIG.value is None:
        raise UserError(
            '--config is missing: give a config, such as --config=experiments/configs/cifar10.py'
        )
    validate(CONFIG.value)
    if TOPOLOGY.value != 'local':
        leave_accelerators_alone()
    from launch.preflight.analysis import report
    from launch.preflight.table import check_kinds, price_of, text

    check_kinds(prices)
    result = report(CONFIG.value, TOPOLOGY.value)
    print(text(result, price_of(result, prices)))
    return 0 if result.fits else 1


def parse_prices(words: list[str]) -> dict[str, float]:
    """Returns prices by kind of chip; '' is every kind without a price of its own.

    Raises:
      UserError: a price is not a positive number.
    """
    prices = {}
    for word in words:
        kind, _, number = word.rpartition('=')
        try:
            prices[kind.strip()] = float(number)
        except ValueError:
            prices[kind.strip()] = 0.0
        if not prices[kind.strip()] > 0:
            raise UserError(f'--price={word}: must be a number above 0, or KIND=NUMBER')
    return prices


def leave_accelerators_alone() -> None:
    """Configures the compilers, before JAX loads them, to use no device, lock or network."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    for name, value in {
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # avoids a metadata server query
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_MIN_LOG_LEVEL': '3',
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_LOG_DIR': 'disabled',
        'TF_CPP_MIN_LOG_LEVEL': '2',  # errors only: the CUDA plugin warns that there is no driver
    }.items():
        os.environ.setdefault(name, value)


if __name__ == '__main__':
    cli.run(main)
