"""Every mistake of tests/bad_inputs.py gets its sentence; nothing read from disk is executed."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.bad_inputs import CASES, MAIN, SEEDS
from tests.conftest import write_svhn_archives
from tests.helpers import ROOT, TINY_PAGE, run_main

REAL = 13  # every so many'th case also runs as a process that was not forked


@pytest.fixture(scope='module')
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('whole')
    result = run_main(f'--workdir={folder / "run"}')
    assert result.returncode == 0, result.stderr
    archives = write_svhn_archives(folder / 'archives')
    return {'tiny': str(TINY_PAGE), 'run': str(folder / 'run'), 'archives': str(archives)}


@pytest.fixture(scope='module')
def servers():
    """Module -> a server of tests/forkserver.py, started when first asked for."""
    running = {}

    def get(module: str) -> subprocess.Popen:
        if module not in running:
            running[module] = subprocess.Popen(
                [sys.executable, '-m', 'tests.forkserver', module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return running[module]

    yield get
    for process in running.values():
        process.stdin.close()
        process.wait(timeout=60)


def lay_out(case, places, folder) -> tuple[list[str], str]:
    """Writes the case's files; returns its words and its sentence, with the places filled in."""
    places = places | {'tmp': str(folder)}
    if any('{run}' in word for word in case.words):
        shutil.copytree(places['run'], folder / 'run')
        places['run'] = str(folder / 'run')
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if (
        'run/summary.json' not in case.files
        and case.module == MAIN
        and '--mode=eval' not in case.words
    ):
        (folder / 'run' / 'summary.json').unlink(missing_ok=True)  # else it is done already

    def fill(text: str) -> str:
        for name, place in places.items():
            text = text.replace('{' + name + '}', place)
        return text

    return [fill(word) for word in case.words], fill(case.sentence)


def as_process(case, words) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, '-m', case.module, *map(os.fsencode, words)],
        cwd=ROOT,
        env=os.environ | case.env,
        capture_output=True,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(errors='replace'), done.stderr.decode()


def check(result: tuple[int, str, str], sentence: str) -> None:
    status, out, err = result
    assert (status, err.count('\n')) == (2, 1), (status, err[-2000:])
    assert err.startswith('error: ')
    assert sentence in err
    assert 'Traceback' not in out


def name_of(case) -> str:
    words = ' '.join(case.words).encode('ascii', 'replace').decode()
    return f'{case.module.split(".")[-1]} {words} {case.sentence}'[:150]


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_a_mistake_gets_its_sentence(case, places, servers, tmp_path):
    words, sentence = lay_out(case, places, tmp_path)
    if case.env or case.module == SEEDS:
        check(as_process(case, words), sentence)
        return
    server = servers(case.module)
    server.stdin.write(json.dumps(words) + '\n')
    server.stdin.flush()
    check(json.loads(server.stdout.readline()), sentence)
    assert not (ROOT / 'UNPICKLED').exists()


@pytest.mark.parametrize('case', CASES[::REAL], ids=name_of)
def test_a_sample_as_real_processes(case, places, tmp_path):
    words, sentence = lay_out(case, places, tmp_path)
    check(as_process(case, words), sentence)


def test_there_are_enough_of_them():
    assert len(CASES) >= 100 and len(CASES[::REAL]) >= 15
    assert len({(c.module, c.words, c.sentence, *c.files.items()) for c in CASES}) == len(CASES)


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
