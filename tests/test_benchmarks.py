"""The benchmarks' arithmetic and tables; that they run at all is a slow test."""

import json
import subprocess
import sys

import pytest

from benchmarks import backends, peak_flops, scaling, startup, tables, throughput
from nin_jax.config import flatten
from nin_jax.models.factory import layer_blocks
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
    assert of['ours bf16']['ratio_to_best_torch'] == 0.5
    assert of['ours']['flop_per_s'] == 300 * 6 * backends.macs_per_image('cifar10')


@pytest.mark.parametrize('network', backends.NETWORKS)
def test_multiply_adds_are_the_layer_tables(network):
    size, channels, classes = backends.NETWORKS[network]
    table = layer_table(layer_blocks(load_page(network), classes), (size, size, channels))
    assert backends.macs_per_image(network) == sum(row.macs for row in table)


def test_the_page_shows_what_failed_and_the_share_of_the_roof():
    finished = throughput.finish(rows(ours=1.0, torch=2.0), 'cifar10', 100, steps=3)
    finished[-1]['failed'] = 'RuntimeError: no compiler'
    rate = finished[0]['flop_per_s']
    text = tables.throughput(finished, {'float32': 4 * rate, 'bfloat16': 1.0})
    assert '| train | ours | 300.0 | 2.00 |' in text
    assert '| 25% |' in text
    assert 'no compiler' in text


def test_a_program_that_fails_is_a_row(tmp_path):
    with pytest.raises(RuntimeError, match="unknown variant ':nonsense'"):
        startup.seconds_to_first_step('quickstart.py:nonsense', tmp_path / 'run', tmp_path)
    row = scaling.child('step', 'cifar10', 7, 8, 1, devices=4096)
    assert 'devices=4096' in row['failed']


def test_rate_is_of_the_median_call():
    calls = []
    assert peak_flops.rate(lambda: calls.append(1), size=10, repeats=3) > 0
    assert len(calls) == 4


def test_synthetic_runs_are_the_pages_runs():
    run = scaling.synthetic_run('mnist', 16, 64, 1, **{'train.duration': '8steps'})
    page = load_page('mnist')
    page.train.batch_size, page.train.duration = 16, '8steps'
    assert flatten(run.config) == flatten(page)
    assert run.plan.total_steps == 8


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / 'b.json'
    small = ['--networks=mnist', '--batches=8', '--steps=1', '--rounds=1', '--repeats=1']
    command = [sys.executable, '-m', 'benchmarks', *small, '--variants=ours', f'--out={out}']
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads(out.read_text())
    assert all(row['images_per_s'] > 0 for row in results['throughput'])
    assert {'startup', 'scaling', 'peak_flops', 'commit'} <= set(results)
    assert '## Overhead of the loop' in out.with_suffix('.md').read_text()
