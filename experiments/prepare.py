"""Prepares datasets: downloads them, or reads the official archives from a folder.

    python -m experiments.prepare mnist cifar10
    python -m experiments.prepare all --archives=FOLDER --data_dir=FOLDER

Names: mnist, svhn_cropped, cifar10, cifar100, or all. Preparing what is prepared does nothing.
"""

import sys

from absl import app, flags, logging

_ARCHIVES = flags.DEFINE_string(
    'archives', '', 'folder holding the official archives (searched recursively); else download'
)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'TFDS folder to write; default $TFDS_DATA_DIR, else ~/tensorflow_datasets'
)


def main(argv: list[str]) -> int:
    from nin_jax.datasets import DATASETS, lookup
    from nin_jax.errors import ConfigError, UserError
    from nin_jax.prepare import prepare

    logging.set_verbosity(logging.WARNING)  # TFDS reports every file it opens
    try:
        downloadable = [name for name in DATASETS if DATASETS[name].version]
        names = downloadable if 'all' in argv[1:] else argv[1:]
        if not names:
            raise ConfigError(f'name what to prepare: {", ".join(downloadable)} or all')
        for name in names:
            lookup(name)
        for name in names:
            prepare(name, _DATA_DIR.value, _ARCHIVES.value)
    except (UserError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    app.run(main)
