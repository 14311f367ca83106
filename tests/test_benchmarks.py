"""The benchmarks' arithmetic and tables; that they run at all is a slow test."""

import json
import math
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import (
    alternation,
    backends,
    peak_flops,
    recipe,
    scaling,
    startup,
    tables,
    throughput,
)
from nin_jax.config import flatten
from nin_jax.models.factory import join, layer_blocks, make_model, split_weights
from nin_jax.models.nin import apply
from nin_jax.models.summary import layer_table
from tests.helpers import ROOT, load_page


def rows(**seconds) -> list[dict]:
    """Rows as `throughput.measure` makes them before it divides; seconds by variant."""
    return [
        dict(
            network='cifar10',
            batch_size=100,
            variant=variant.replace('_', ' '),
            mode=mode,
            dtype='bfloat16' if 'bf16' in variant else 'float32',
            compile_and_first_s=1.0,
            rounds_s=[s, s, 100.0],
            peak_memory_bytes=2**20,
        )
        for variant, s in seconds.items()
        for mode in throughput.MODES
    ]


def test_ratios_are_to_the_best_pytorch_of_the_same_dtype():
    finished = throughput.finish(
        rows(ours=1.0, torch=4.0, torch_nhwc=2.0, ours_bf16=1.0, torch_nhwc_bf16=0.5),
        'cifar10',
        100,
        steps=3,
    )
    of = {row['variant']: row for row in finished if row['mode'] == 'train'}
    assert of['ours']['images_per_s'] == 300  # the median round
    assert of['ours']['ratio_to_best_torch'] == 2.0
    assert of['ours bf16']['ratio_to_best_torch'] == of['ours']['ratio_to_any_torch'] == 0.5
    assert of['ours']['flop_per_s'] == 300 * 6 * backends.macs_per_image('cifar10')


@pytest.mark.parametrize('network', backends.NETWORKS)
def test_multiply_adds_are_the_layer_tables(network):
    size, channels, classes = backends.NETWORKS[network]
    table = layer_table(
        layer_blocks(load_page(*network.split(':')), classes), (size, size, channels)
    )
    assert backends.macs_per_image(network) == sum(row.macs for row in table)


def test_products_made_are_those_of_the_program():
    """Of the dots and convolutions in the lowered forward pass of CIFAR-10's network."""
    model = make_model(load_page('cifar10'), (32, 32, 3), 10, jax.random.key(0))
    graph, weights = nnx.graphdef(model), join(*split_weights(model))
    jaxpr = jax.make_jaxpr(lambda x: apply(graph, weights, x)[0])(jnp.zeros((1, 32, 32, 3)))
    assert products_of(jaxpr.jaxpr) == backends.macs_made('cifar10', 'forward')
    assert backends.macs_made('cifar10', 'train') < 3 * backends.macs_made('cifar10', 'forward')


def products_of(jaxpr) -> int:
    """Multiply-adds of a program for a CPU, the first branch of each choice of a platform.

    Products with a matrix of at most 8x8 are transforms of kernels, once for all images.
    """
    total = 0
    for e in jaxpr.eqns:
        shapes = [v.aval.shape for v in e.invars]
        size = math.prod(e.outvars[0].aval.shape)
        if e.primitive.name == 'dot_general' and min(map(max, shapes)) > 8:
            ((contracted, _), _) = e.params['dimension_numbers']
            total += size * math.prod(shapes[0][axis] for axis in contracted)
        elif e.primitive.name == 'conv_general_dilated':
            total += size * math.prod(shapes[1][:3])
        elif e.primitive.name == 'cond':
            total += products_of(e.params['branches'][0].jaxpr)
        else:
            inner = [e.params.get(name) for name in ('jaxpr', 'call_jaxpr', 'fun_jaxpr')]
            total += sum(products_of(j.jaxpr if hasattr(j, 'jaxpr') else j) for j in inner if j)
    return total


def test_the_page_shows_what_failed_and_the_share_of_the_roof():
    finished = throughput.finish(rows(ours=1.0, torch=2.0), 'cifar10', 100, steps=3)
    finished[-1]['failed'] = 'RuntimeError: no compiler'
    rate = finished[0]['flop_per_s']
    text = tables.throughput(finished, {'float32': 4 * rate, 'bfloat16': 1.0})
    assert '| train | ours | float32 | 300.0 | 2.00 | 2.00 |' in text
    assert '| 25% |' in text
    assert 'no compiler' in text


def test_minutes_of_a_recipe_are_the_sum_of_its_stages():
    stages = backends.stages('cifar10:fast')
    assert [(str(stage), steps) for stage, steps in stages] == [
        ('20x20', 810),
        ('24x24', 810),
        ('', 135),
        ('mlpconv1 frozen', 945),
    ]
    measured = [
        dict(
            variant=variant,
            mode=backends.train_mode(stage),
            rounds_s=[s * (i + 1), s * (i + 1), 99.0],
        )
        for variant, s in {
            'ours': 2.0,
            'torch': 4.0,
            'torch nhwc': 3.0,
            'torch compile': 1.0,
        }.items()
        for i, (stage, _) in enumerate(stages)
    ]
    measured[-1]['failed'] = 'RuntimeError: no compiler'
    rows = {row['variant']: row for row in recipe.finish(measured, 'cifar10:fast', 100, steps=4)}
    seconds = (810 * 2 + 810 * 4 + 135 * 6 + 945 * 8) / 4
    assert rows['ours']['minutes'] == pytest.approx(seconds / 60)
    assert rows['ours']['ratio_to_any_torch'] == 1.5
    assert rows['ours']['stages']['train, 24x24'] == {'steps': 810, 'images_per_s': 100.0}
    assert rows['ours']['images'] == 270_000
    text = tables.recipe(list(rows.values()))
    assert '| ours | float32 | 55.1 | 1.50 | 200.0 | 100.0 | 66.7 | 50.0 |' in text
    assert 'no compiler' in text


def instant() -> backends.Backend:
    """A backend whose modes answer at once."""
    return backends.Backend({'train': lambda: 2.0, 'forward': lambda: 1.0}, lambda: 7)


def broken() -> backends.Backend:
    raise RuntimeError('no compiler')


def test_backends_alternate_and_a_broken_one_is_a_row():
    builders = {'good': instant, 'broken': broken}
    rows = alternation.measure(builders, ['train', 'forward'], rounds=2, limit=60)
    of = {(row['variant'], row['mode']): row for row in rows}
    assert of['good', 'train']['rounds_s'] == [2.0, 2.0]
    assert of['good', 'forward']['peak_memory_bytes'] == 7
    assert of['broken', 'forward']['failed'] == 'RuntimeError: no compiler'


def late() -> backends.Backend:
    """A backend whose second 'train' takes too long."""
    seconds = iter((0.0, 60.0))
    modes = {'train': lambda: time.sleep(next(seconds)) or 2.0, 'forward': lambda: 1.0}
    return backends.Backend(modes, lambda: 7)


@pytest.mark.heavy  # waits for the limit
def test_a_late_answer_is_not_taken_for_the_next_one():
    rows = alternation.measure({'late': late}, ['train', 'forward'], rounds=2, limit=20)
    assert [row['rounds_s'] for row in rows] == [[], []]
    assert all('no answer' in row['failed'] and not row['peak_memory_bytes'] for row in rows)


def test_a_program_that_fails_is_a_row(tmp_path):
    with pytest.raises(RuntimeError, match="unknown variant ':nonsense'"):
        startup.seconds_to_first_step('quickstart.py:nonsense', tmp_path / 'run', tmp_path, 60)
    row = scaling.child(60, 'step', 'cifar10', 7, 8, 1, devices=4096)
    assert 'devices=4096' in row['failed']


def test_rate_is_of_the_median_call_after_a_warm_up(monkeypatch):
    times = iter((0.0, 100.0, 100.0, 101.0, 101.0, 103.0, 103.0, 112.0))  # 100, 1, 2 and 9 s
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(peak_flops, 'time', clock)
    assert peak_flops.rate(lambda: None, size=10, repeats=3) == 2 * 10**3 / 2.0


def test_synthetic_runs_are_the_pages_runs():
    run = scaling.synthetic_run('mnist', 16, 64, 1, **{'train.duration': '8steps'})
    page = load_page('mnist')
    page.train.batch_size, page.train.duration = 16, '8steps'
    assert flatten(run.config) == flatten(page)
    assert run.plan.total_steps == 8


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / 'b.json'
    small = ['--networks=mnist', '--recipe=mnist:fast', '--batches=8', '--steps=1', '--rounds=1']
    small += ['--repeats=1', '--variants=ours']
    command = [sys.executable, '-m', 'benchmarks', *small, f'--out={out}']
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads(out.read_text())
    assert all(row['images_per_s'] > 0 for row in results['throughput'])
    assert {'startup', 'scaling', 'peak_flops', 'commit'} <= set(results)
    assert '## Overhead of the loop' in out.with_suffix('.md').read_text()
