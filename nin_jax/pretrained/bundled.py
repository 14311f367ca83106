"""The trained networks in this package; does not import JAX.

Each is a release in `weights/<name>/`, made by `experiments.export --bundle`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / 'weights'
DEFAULT = 'cifar10'  # what `experiments.predict` uses without --workdir


def names() -> list[str]:
    """Returns the names of the bundled networks, sorted."""
    return sorted(path.parent.name for path in WEIGHTS.glob('*/config.json'))


def resolve(path: Path) -> Path:
    """Returns the folder of a bundled network if `path` is its name; otherwise `path`.

    A folder of this name that contains a run or a release takes precedence.
    """
    if str(path) in names() and not (path / 'config.json').is_file():
        return WEIGHTS / path
    return path
