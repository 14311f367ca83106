"""Imports go one way: no circles, none from a layer into a later one."""

import pathlib

import pytest

from tests import imports


@pytest.fixture(scope='module')
def graph() -> imports.Graph:
    return imports.graph(imports.ROOT)


def test_there_is_no_circle(graph):
    assert imports.circles(graph) == []


def test_no_import_goes_up(graph):
    assert imports.upward(graph) == []


def test_data_and_models_do_not_know_each_other(graph):
    assert imports.across(graph) == []


def test_the_library_knows_neither_flags_nor_clusters(graph):
    for name in graph:
        if name.startswith('nin_jax'):
            assert not {i for i in graph[name] if not i.startswith('nin_jax')}, name


@pytest.fixture
def made_up(tmp_path) -> pathlib.Path:
    """Two files that import each other, of which the lower layer's does so inside a function."""
    (tmp_path / 'nin_jax' / 'train').mkdir(parents=True)
    (tmp_path / 'nin_jax' / 'plan.py').write_text(
        'def f():\n    from nin_jax.train.loop import fit\n'
    )
    (tmp_path / 'nin_jax' / 'train' / 'loop.py').write_text('import nin_jax.plan\n')
    (tmp_path / 'nin_jax' / 'files.py').write_text('from experiments import cli\n')
    (tmp_path / 'experiments').mkdir()
    (tmp_path / 'experiments' / 'cli.py').write_text('import nin_jax.plan\n')
    return tmp_path


def test_circles_depth_and_imports_up_are_found(made_up):
    graph = imports.graph(made_up)
    assert imports.circles(graph) == [['nin_jax.plan', 'nin_jax.train.loop']]
    assert imports.upward(graph) == [
        ('nin_jax.files', 'experiments.cli'),
        ('nin_jax.plan', 'nin_jax.train.loop'),
    ]
    assert imports.depths(graph) == {
        'nin_jax.plan': 1,
        'nin_jax.train.loop': 1,
        'experiments.cli': 2,
        'nin_jax.files': 3,
    }
    assert 'circle: nin_jax.plan, nin_jax.train.loop' in imports.table(made_up)
