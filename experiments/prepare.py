"""Prepares datasets from the official archives, which it downloads or reads from a folder.

    python -m experiments.prepare mnist cifar10
    python -m experiments.prepare all --archives=FOLDER --data_dir=FOLDER

Names: mnist, svhn_cropped, cifar10, cifar100, or all. Prepared datasets are skipped.
"""

from absl import flags

from experiments import cli
from nin_jax.errors import ConfigError

ARCHIVES = flags.DEFINE_string(
    'archives', '', 'A folder with the official archives, searched recursively; else download.'
)
DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'The TFDS folder to write; $TFDS_DATA_DIR, else ~/tensorflow_datasets.'
)


def main(argv: list[str]) -> int:
    from nin_jax.data.catalog import DATASETS, lookup
    from nin_jax.data.prepare import prepare

    downloadable = [name for name, d in DATASETS.items() if d.storage == 'tfds']
    names = downloadable if 'all' in argv else argv[1:]
    if not names:
        raise ConfigError(f'name what to prepare: {", ".join(downloadable)} or all')
    for name in names:
        lookup(name)  # a misspelled name shows before the first is prepared
    for name in names:
        prepare(name, DATA_DIR.value, ARCHIVES.value)
    return 0


if __name__ == '__main__':
    cli.run(main)
