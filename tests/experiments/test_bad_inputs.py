"""Every mistake of tests/bad_inputs.py is refused by name; nothing read from disk is executed."""

import ast
import pathlib
import shutil

import pytest

from tests.bad_inputs import CASES, MAIN
from tests.conftest import write_svhn_archives
from tests.helpers import ROOT, TINY_PAGE, assert_refused, run_module, run_process

REAL = 13  # every so many'th case also runs as a process that was not forked


@pytest.fixture(scope='module')
def places(tmp_path_factory, tiny_run) -> dict[str, str]:
    archives = write_svhn_archives(tmp_path_factory.mktemp('archives'))
    return {'tiny': str(TINY_PAGE), 'run': str(tiny_run), 'archives': str(archives)}


def prepare_files(case, places, folder) -> tuple[list[str], list[str]]:
    """Writes the case's files; returns its words and its names, with the places filled in."""
    places = places | {'tmp': str(folder)}
    if any('{run}' in word for word in case.words):
        shutil.copytree(places['run'], folder / 'run')
        places['run'] = str(folder / 'run')
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    trains = case.module == MAIN and '--mode=eval' not in case.words
    if trains and 'run/summary.json' not in case.files:
        (folder / 'run' / 'summary.json').unlink(missing_ok=True)  # else it is done already

    def fill(text: str) -> str:
        for name, place in places.items():
            text = text.replace('{' + name + '}', place)
        return text

    names = [case.names] if isinstance(case.names, str) else case.names
    return [fill(word) for word in case.words], [fill(name) for name in names]


def name_of(case) -> str:
    words = ' '.join(case.words).encode('ascii', 'replace').decode()
    return f'{case.module.split(".")[1]} {words} {" ".join(case.files)}'[:150]


FORKED = [c for c in CASES if c.module.startswith('experiments.') and not c.env]
PROCESSES = [c for c in CASES if c not in FORKED] + CASES[::REAL]


@pytest.mark.parametrize('case', FORKED, ids=name_of)
def test_a_mistake_is_one_line_that_names_it(case, places, tmp_path):
    words, names = prepare_files(case, places, tmp_path)
    result = run_module(case.module, *words)
    assert_refused(result, *names, kind=case.kind)
    assert not (ROOT / 'UNPICKLED').exists()


@pytest.mark.processes
@pytest.mark.parametrize('case', PROCESSES, ids=name_of)
def test_a_mistake_in_a_process_of_its_own(case, places, tmp_path):
    words, names = prepare_files(case, places, tmp_path)
    assert_refused(run_process(case.module, *words, env=case.env), *names)


def test_there_are_enough_of_them():
    assert len(FORKED) >= 180 and len(PROCESSES) >= 15
    assert len({(c.module, c.words, c.names, *c.files.items()) for c in CASES}) == len(CASES)


# ---- nothing read from disk is executed -----------------------------------------------------

SOURCES = [p for d in ('nin_jax', 'experiments', 'launch') for p in (ROOT / d).rglob('*.py')]
EXECUTES = {'eval', 'exec', 'compile', '__import__'}
UNPICKLES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'}


def dangers(tree: ast.AST) -> list[str]:
    """Imports of picklers, calls of eval and its like, np.load without allow_pickle=False."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name.split('.')[0] for a in node.names}
            if isinstance(node, ast.ImportFrom):
                names = {(node.module or '').split('.')[0]}
            found += sorted(names & UNPICKLES)
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in EXECUTES:
            found.append(node.func.id)
        allow = {k.arg: k.value for k in node.keywords}.get('allow_pickle')
        refused = isinstance(allow, ast.Constant) and allow.value is False
        if ast.unparse(node.func) in ('np.load', 'numpy.load') and not refused:
            found.append(ast.unparse(node))
        if allow is not None and not refused:
            found.append(ast.unparse(node))
        if ast.unparse(node.func).endswith(('.extractall', '.extract', 'unpack_archive')):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_read_is_unpickled_or_executed(path: pathlib.Path):
    """Config pages are the exception: code that the user names."""
    assert dangers(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    'code',
    [
        'import pickle',
        'from pickle import load',
        'eval(text)',
        'exec(compile(text, "", "exec"))',
        'np.load(path)',
        'np.load(path, allow_pickle=True)',
        'np.load(path, allow_pickle=trust)',
        'tar.extractall(folder)',
    ],
)
def test_the_search_finds_what_it_looks_for(code):
    assert dangers(ast.parse(code))
