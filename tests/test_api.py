"""docs/api.md: its examples run in their order, and the names that it describes exist."""

import importlib
import inspect
import re

import pytest

from tests.helpers import ROOT, run_main

API = (ROOT / 'docs' / 'api.md').read_text()


@pytest.mark.heavy
def test_the_examples_run(tmp_path, monkeypatch):
    """With a tiny network in the quickstart's place."""
    assert run_main(f'--workdir={tmp_path}/runs/quickstart').returncode == 0
    monkeypatch.chdir(tmp_path)
    namespace, blocks = {}, re.findall(r'```python\n(.*?)```', API, re.S)
    for code in blocks:
        exec(compile(code, f'api.md: {code.splitlines()[-1]}', 'exec'), namespace)
    assert len(blocks) == 1 + API.count('\n### ')  # an example each, after the imports


def test_names_and_arguments_are_those_of_the_code():
    found = re.findall(r'^### `(nin_jax[\w.]*)\.(\w+)(?:\.(__call__))?\((.*)\)`$', API, re.M)
    assert len(found) >= 15
    for module, name, method, words in found:
        if module.endswith('.NIN'):
            continue
        target = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(getattr(target, method) if method else target).parameters
        for word in re.findall(r'(\w+)(?:=[^,]+)?(?:, |$)', words):
            assert word in parameters, f'{module}.{name} has no {word}'
