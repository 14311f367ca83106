"""Preflight: the training program compiled for what is here, and for TPUs and GPUs that are not."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from launch.preflight import analysis, gpus, hlo, table
from launch.preflight.__main__ import parse_prices
from launch.preflight.chips import Chip, tpu_slice
from nin_jax.data import catalog, datasets
from nin_jax.errors import UserError
from nin_jax.plan import make_plan
from tests.helpers import ROOT, TINY_PAGE, assemble, load_page, run_process, tiny_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install -e '.[preflight]'",
)
needs_plugin = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, gpus.PLUGINS)),
    reason="JAX's CUDA plugin is not installed: pip install -e '.[preflight-gpu]'",
)


@pytest.fixture(scope='module')
def local():
    return analysis.report(tiny_config(), 'local')


def test_shapes_without_data_are_those_of_the_run():
    run = assemble(tiny_config())
    for split, images in ((run.train(0).examples, 256), (run.eval.examples, 256)):
        ours = analysis.abstract_examples(run.config, images)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), split) == jax.tree.map(
            lambda x: (x.shape, x.dtype), ours
        )
    assert make_plan(run.config, 256, short_calls=True) == run.plan


@pytest.mark.parametrize('recipe', ['gcn_zca', 'patch_zca'])
def test_whitened_images_and_their_zca_have_the_runs_shapes(recipe):
    config = tiny_config()
    config.preprocess.recipe = recipe
    run = assemble(config)
    for real, ours in (
        (run.train(0).feed_shapes(1), analysis.abstract_examples(config, 256)),
        (run.preprocess, analysis.abstract_preprocess(config)),
    ):
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), real, ours)
        assert all(jax.tree.leaves(same))


def test_counts_are_those_of_the_loaded_splits():
    for splits in ('train', 'valid', 'test', 'train+valid'):
        loaded = len(datasets.load_arrays('mnist_subset', splits).labels)
        assert catalog.count('mnist_subset', splits) == loaded
    # Section 4.4 of the paper: 400 and 200 images a class are held out of SVHN's training images.
    assert catalog.count('svhn_cropped', 'valid') == 6000
    assert catalog.count('svhn_cropped', 'train+valid') == 73_257 + 531_131


def test_local_report(local):
    assert local.chips == 1 and local.fits and local.collectives == {}
    images_and_labels = 256 * (28 * 28 + 4)
    assert images_and_labels < local.arguments < images_and_labels + 100_000
    assert local.test_images == images_and_labels
    # The first layer's images need no gradient, so that less than 3 x forward is compiled.
    assert 0.5 * local.model_flops < local.flops < 1.5 * local.model_flops
    assert local.step_s >= max(local.compute_s, local.memory_s) > 0


def test_program_too_large_for_the_memory_does_not_fit(local):
    assert not dataclasses.replace(local, memory=local.needed - 1).fits


def test_traffic_and_collectives_are_those_of_a_step():
    program = """
%body (p: (f32[4])) -> (f32[4]) {
  %x = f32[3,2]{1,0:T(8)} parameter(0)
  %table = f32[1000]{0} parameter(1)
  %a = (f32[3,2]{1,0:T(8)S(1)}, bf16[5]{0:S(1)}) all-reduce(%x, %x), replica_groups={}
  %g = (f32[2]{0:S(1)}, f32[8]{0:S(1)}) all-gather-start(%near), dimensions={0}
  %d = f32[8]{0} all-gather-done(%g)
  %gather_fusion.1 = f32[5]{0:S(1)} fusion(%table), kind=kLoop
  ROOT %near = f32[7]{0} add(%x, %x)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[100]{0} parameter(0)
  %r = f32[100]{0} all-reduce(%p), replica_groups={}
  %w = (f32[4]) while(%r), condition=%c, body=%body
}
"""
    traffic, collectives = hlo.step_costs(program, 10)
    assert collectives == {'all-reduce': (1, 34), 'all-gather': (1, 32)}
    assert traffic == (24 + 24) + 28 + 20 + (24 + 24 + 28)
    # A program of one step is all entry, and the loop in it is that step's own, over its pieces.
    both = {'all-reduce': (2, 434), 'all-gather': (1, 32)}
    assert hlo.step_costs(program, 1) == (800 + traffic, both)
    assert hlo.step_costs(program, 1, pieces=3)[0] == 800 + 3 * traffic


def test_operands_that_a_start_lists_do_not_count():
    program = """
ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %s = ((f32[4]{0}), f32[4]{0}) all-reduce-start(%p), to_apply=%add
  ROOT %d = f32[4]{0} all-reduce-done(%s)
}
"""
    assert hlo.step_costs(program, 1) == (32, {'all-reduce': (1, 16)})


def test_a_topology_that_is_too_small_is_a_row(monkeypatch, tmp_path):
    def refuse(*_):
        raise analysis.DoesNotFit('does not fit: 80 GiB')

    monkeypatch.setattr(table, 'report', refuse)
    monkeypatch.setattr(table, 'target', lambda *_: (SimpleNamespace(size=256), None))
    path = tmp_path / 'new' / 'preflight.md'
    assert table.write_table(path, {}) == 1
    rows = path.read_text().splitlines()[-24:]
    assert rows[0].startswith('| mnist | h100:1 | 256 | too much | |')
    assert {row.count('|') for row in rows} == {len(table.COLUMNS) + 1}


def test_rows_of_a_table_count_and_not_the_table():
    program = """
%fused.1 (p: u8[9000], q: s32[]) -> f32[5] {
  %table.1 = u8[9000]{0} parameter(0)
  %row.1 = s32[]{} parameter(1)
  %some = u8[5]{0} dynamic-slice(%table.1, %row.1), dynamic_slice_sizes={5}
  ROOT %converted = f32[5]{0} convert(%some)
}

%fused.2 (p: u8[9000]) -> f32[5] {
  %table.2 = u8[9000]{0} parameter(0)
  %some.2 = u8[5]{0} dynamic-slice(%table.2, %table.2), dynamic_slice_sizes={5}
  ROOT %all = f32[5]{0} reduce(%table.2, %some.2)
}

ENTRY %main (p: u8[9000], q: s32[]) -> f32[5] {
  %p = u8[9000]{0} parameter(0)
  %q = s32[]{} parameter(1)
  ROOT %r = f32[5]{0} fusion(/*index=0*/%p, /*index=1*/%q), kind=kLoop, calls=%fused.1
}
"""
    assert hlo.step_costs(program, 1)[0] == 20 + 4 + 20  # at most what is put out
    assert hlo.step_costs(program.replace('%fused.1\n', '%fused.2\n'), 1)[0] == 9000 + 4 + 20


@pytest.mark.heavy
def test_gradients_of_four_devices_are_summed_once():
    """In a process of its own, as the number of devices is fixed when JAX starts."""
    code = (
        'import json; from tests.helpers import tiny_config; from launch.preflight import analysis;'
        "r = analysis.report(tiny_config(), 'local');"
        'print(json.dumps([r.chips, r.flops, r.model_flops, r.collectives]))'
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
    )
    assert result.returncode == 0, result.stderr
    chips, flops, model_flops, collectives = json.loads(result.stdout)
    assert chips == 4 and flops < 0.4 * model_flops
    parameters = 1098
    moved = sum(size for _, size in collectives.values())
    assert 4 * parameters <= moved < 4 * parameters + 4 * 1024


def test_flops_are_those_of_convolutions_and_products():
    program = """
%fused (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[8,2]{1,0} parameter(1)
  ROOT %d = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (f32[4])) -> (f32[4]) {
  %x = f32[2,7,7,3]{3,2,1,0} parameter(0)
  %k = f32[5,3,3,3]{3,2,1,0} parameter(1)
  %g = f32[2,5,5,5]{3,2,1,0} parameter(2)
  %a = f32[4,8]{1,0} parameter(3)
  %b = f32[8,2]{1,0} parameter(4)
  %y = (f32[2,5,5,5]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %w = (f32[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %i = (f32[2,7,7,3]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %f = f32[4,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  ROOT %m = (f32[4,2]{1,0}, s8[9]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w0 = (f32[4]) while(%r), condition=%c, body=%body
}
"""  # noqa: E501
    convolution = 2 * (2 * 5 * 5) * (5 * 3 * 3 * 3)
    assert hlo.step_products(program, 10) == 3 * convolution + 2 * (2 * 4 * 2 * 8)


THUNKS = """
000: kCommandBuffer [source | next=002 (1)]
    001: kCustomKernel [source | sink] before the loop
002: kWhile         [prev=000 (1) | sink ]
condition:
    003: kCustomKernel [source | sink] compare
  body:
    004: kConvolution [source | next=000 (1)] kConvolution
    000: kCommandBuffer [prev=004 (1) | next=007 (1)]
        005: kCustomKernel [source | sink] a
        006: kCopy [source | sink] kCopy
    007: kWhile [prev=000 (1) | next=012 (1)]
condition:
        008: kCustomKernel [source | sink] compare
      body:
        009: kConvolution [source | sink] kConvolution
    010: kAsyncStart [prev=007 (1) | sink] async_id=010
        011: kAllReduce [source | sink] kAllReduce
    012: kAsyncDone [source | sink] async_id=010
"""


def test_launches_are_those_of_a_step():
    assert gpus.count_launches(THUNKS, 10) == gpus.Launches(total=5, in_graphs=2, graphs=1)
    assert gpus.count_launches(THUNKS, 10, pieces=4).total == 8
    # A program of one step is all of it; its outer loop is that over the pieces.
    assert gpus.count_launches(THUNKS, 1) == gpus.Launches(total=6, in_graphs=3, graphs=2)


def test_a_graph_can_hold_the_whole_call():
    inside = '000: kCommandBuffer [source | sink]\n' + '\n'.join(
        '    ' + line for line in THUNKS.splitlines()[3:]
    )
    assert gpus.count_launches(inside, 10) == gpus.Launches(total=5, in_graphs=5, graphs=1)


def test_links_and_the_network_between_hosts_add_up():
    one = Chip(1, 1, 1, 1, link_rate=100)
    assert one.reduction_s(800, 1) == 0
    assert one.reduction_s(800, 8) == pytest.approx(2 * 7 / 8 * 800 / 100)
    two = dataclasses.replace(one, hosts=2, network_rate=10)
    assert two.reduction_s(800, 16) == pytest.approx(2 * 7 / 8 * 800 / 100 + 2 * 1 / 2 * 100 / 10)


@pytest.mark.parametrize('topology', ['', 'v9:2x2', 'tpu', 'gpu:1', 'h1000:1'])
def test_unknown_topology_names_the_known_ones(topology):
    with pytest.raises(UserError, match=r'h100:8.*v5e:4x4'):
        analysis.target(topology, 0)


@pytest.mark.parametrize('topology', ['v5e', 'v5e:2x2x2', 'v5e:32x32', 'v4:2x2', 'v5e:0x2', 'v5e:'])
def test_unknown_slice_names_the_form(topology):
    with pytest.raises(UserError, match='v5e:4x4'):
        analysis.target(topology, 0)


@pytest.mark.parametrize(
    'topology', ['h100', 'h100:0', 'h100:9', 'h100:0x8', 'h100:33x8', 'h100:2x2x2', 'l4:2x8']
)
def test_unknown_number_of_gpus_names_the_form(topology):
    with pytest.raises(UserError, match='h100:2x8'):
        analysis.target(topology, 0)


@pytest.mark.parametrize(
    ('topology', 'extra'), [('v5e:2x2', '.[preflight]'), ('h100:1', '.[preflight-gpu]')]
)
def test_missing_compiler_names_its_extra(monkeypatch, topology, extra):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError) as error:
        analysis.target(topology, 0)
    assert f"'{extra}'" in str(error.value)


def test_prices_are_for_all_kinds_or_by_kind():
    assert parse_prices(['1.2']) == {'': 1.2}
    assert parse_prices(['v5e=1.2', 'h100=4']) == {'v5e': 1.2, 'h100': 4.0}
    for bad in ('-1', 'h100=', 'h100=cheap', 'nan'):
        with pytest.raises(UserError, match='--price'):
            parse_prices([bad])


@pytest.mark.processes
def test_command_tells_mistakes_in_one_sentence():
    for words, sentence in (
        ([], '--config is missing'),
        ([f'--config={TINY_PAGE}', '--topology=v5e:2'], 'write'),
        ([f'--config={TINY_PAGE}', '--topology=h100:9'], 'write'),
        ([f'--config={TINY_PAGE}', '--price=-1'], 'above 0'),
    ):
        result = run_process('launch.preflight', *words)
        assert result.returncode == 2 and sentence in result.stderr
        # JAX's CUDA plugin, where it is installed, logs that there is no driver.
        lines = result.stderr.splitlines()
        assert [x.startswith('error: ') for x in lines if 'cuda' not in x and 'absl' not in x] == [
            True
        ]


@needs_plugin
@pytest.mark.processes
@pytest.mark.parametrize('topology', ['h100:1', 'h100:2x8'])
def test_gpus(topology):
    result = run_process(
        'launch.preflight', f'--config={TINY_PAGE}', f'--topology={topology}', '--price=h100=4'
    )
    assert result.returncode == 0, result.stderr
    assert f'NVIDIA H100 80GB HBM3 ({topology}), batch 32' in result.stdout
    assert 'fits' in result.stdout and 'CUDA graph' in result.stdout
    assert ('all-reduce' in result.stdout) == (topology == 'h100:2x8')
    assert 'at 4 per chip-hour' in result.stdout


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('card', list(gpus.GPUS))
def test_cifar10_on_every_card(card):
    config = '--config=experiments/configs/cifar10.py'
    result = run_process('launch.preflight', config, f'--topology={card}:1')
    assert result.returncode == 0, result.stderr
    assert gpus.GPUS[card].name in result.stdout and 'fits' in result.stdout


@needs_libtpu
@pytest.mark.processes
def test_a_slice_of_four_tpus():
    result = run_process(
        'launch.preflight', f'--config={TINY_PAGE}', '--topology=v5e:2x2', '--price=1.2'
    )
    assert result.returncode == 0, result.stderr
    assert '4 x TPU v5 lite (v5e:2x2), batch 32' in result.stdout
    assert 'fits' in result.stdout and 'all-reduce' in result.stdout
    assert 'at 1.2 per chip-hour' in result.stdout
    result = run_process('launch.preflight', f'--config={TINY_PAGE}', '--topology=v5e:8x8')
    assert result.returncode == 2 and 'multiple of the 64 devices' in result.stderr


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:16x16', 'v5p:2x2x1', 'v6e:4x4'])
def test_cifar10_on_every_kind(topology):
    config = load_page('cifar10')
    mesh, _ = tpu_slice(topology)
    assert mesh.size == math.prod(map(int, topology.split(':')[1].split('x')))
    config.train.batch_size = max(128, mesh.size)
    report = analysis.report(config, topology)
    assert report.fits and np.isfinite(report.step_s)
