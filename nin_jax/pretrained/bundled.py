"""The trained networks inside this package; nothing here imports JAX.

Each is a release in `weights/<name>/`, made by `experiments.export --bundle`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / 'weights'
DEFAULT = 'cifar10'  # what `experiments.predict` uses without --workdir


def names() -> list[str]:
    """The names of the bundled networks, sorted."""
    return sorted(path.parent.name for path in WEIGHTS.glob('*/config.json'))


def resolve(path: Path) -> Path:
    """The folder of a bundled network if `path` is its name; else `path` itself.

    A folder of the user's with that name comes first if it holds a run or a release.
    """
    if str(path) in names() and not (path / 'config.json').is_file():
        return WEIGHTS / path
    return path
