"""The import graph of nin_jax, experiments and launch, read from the source without running it.

    python -m tests.imports              of this checkout
    python -m tests.imports PATH         of another one, such as a git worktree

Prints a line a package: its files, their lines, the import depth (files in the longest chain of
imports that ends there), imports up (from a layer into a later one) and circles (groups of files
that import each other). Imports inside functions count too.
"""

import ast
import functools
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Lowest first; a module belongs to its longest prefix, and may import its own layer and lower ones.
LAYERS = (
    ('nin_jax.errors', 'nin_jax.config', 'nin_jax.plan', 'nin_jax.files', 'nin_jax.version'),
    ('nin_jax.distributed', 'nin_jax.devices', 'nin_jax.console'),
    ('nin_jax.data', 'nin_jax.models'),
    ('nin_jax.runs',),
    ('nin_jax.train',),
    ('nin_jax.pretrained', 'nin_jax'),
    ('nin_jax.visualize', 'nin_jax.commands'),
    ('experiments',),
    ('launch',),
)
TOP = ('nin_jax', 'experiments', 'launch')
Graph = dict[str, set[str]]


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Module name -> file, of all packages in TOP."""
    found = {}
    for top in TOP:
        for path in sorted((root / top).rglob('*.py')):
            parts = path.relative_to(root).with_suffix('').parts
            found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def imported(path: pathlib.Path, names: set[str]) -> set[str]:
    """The modules among `names` that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: a relative import'
            inner = {f'{node.module}.{alias.name}' for alias in node.names} & names
            others = [a for a in node.names if f'{node.module}.{a.name}' not in names]
            wanted = [*inner, *([node.module] if others else [])]
        else:
            continue
        found |= set(wanted) & names
    return found


def graph(root: pathlib.Path) -> Graph:
    """Module -> the modules of the project that it imports."""
    files = modules(root)
    return {name: imported(path, set(files)) - {name} for name, path in files.items()}


def circles(imports: Graph) -> list[list[str]]:
    """Groups of modules of which each imports every other, directly or not."""
    reached: Graph = {}
    for name in imports:
        todo, seen = [name], set()
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        reached[name] = seen
    groups = {
        tuple(sorted({name, *(o for o in reached[name] if name in reached[o])}))
        for name in imports
        if name in reached[name]
    }
    return sorted(map(list, groups))


def depths(imports: Graph) -> dict[str, int]:
    """Module -> files in the longest chain of imports that begins there; a circle counts as one."""
    of = {name: tuple(group) for group in circles(imports) for name in group}

    @functools.cache
    def depth(group: tuple[str, ...]) -> int:
        below = {of.get(i, (i,)) for name in group for i in imports[name]} - {group}
        return 1 + max(map(depth, below), default=0)

    return {name: depth(of.get(name, (name,))) for name in imports}


def layer(name: str) -> int:
    """Index in LAYERS; a module that no layer names belongs to the package that holds it."""
    prefixes = {p: i for i, group in enumerate(LAYERS) for p in group}
    while name not in prefixes:
        name = name.rpartition('.')[0]
    return prefixes[name]


def upward(imports: Graph) -> list[tuple[str, str]]:
    """Imports from a layer into a later one."""
    return sorted((a, b) for a in imports for b in imports[a] if layer(b) > layer(a))


def across(imports: Graph) -> list[tuple[str, str]]:
    """Imports between packages that do not know each other, though they are of one layer."""
    apart = ('nin_jax.data', 'nin_jax.models')
    return sorted(
        (a, b)
        for a in imports
        for b in imports[a]
        if package(a) != package(b) and {package(a), package(b)} == set(apart)
    )


def package(name: str) -> str:
    """'nin_jax.data' for its modules; 'nin_jax' for those that lie directly in it."""
    parts = name.split('.')
    inner = parts[0] == 'nin_jax' and len(parts) > 2
    return '.'.join(parts[: 2 if inner else 1])


def table(root: pathlib.Path) -> str:
    """The graph in a line a package, with a sum, and the circles below."""
    files, imports = modules(root), graph(root)
    lines = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    deep, up, loops = depths(imports), upward(imports), circles(imports)
    folders = {
        name: package(name) if files[name].name != '__init__.py' else name.partition('.')[0]
        for name in files
    }
    folders |= {n: package(f'{n}.x') for n in files if files[n].name == '__init__.py'}
    text = f'{"package":20}{"files":>7}{"lines":>8}{"depth":>7}{"imports up":>12}{"circles":>9}\n'
    for folder in [*dict.fromkeys(sorted(folders.values())), '']:
        own = [n for n in files if folder in ('', folders[n])]
        text += (
            f'{folder or "all":20}{len(own):7}{sum(lines[n] for n in own):8}'
            f'{max(deep[n] for n in own):7}{sum(a in own for a, _ in up):12}'
            f'{sum(any(n in own for n in loop) for loop in loops):9}\n'
        )
    text += ''.join(f'up: {a} -> {b}\n' for a, b in up)
    return text + ''.join(f'circle: {", ".join(loop)}\n' for loop in loops)


if __name__ == '__main__':
    print(table(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT), end='')
