"""The modern recipe, switch by switch: each does what it says, and trains; off, nothing changes."""

import ast
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from experiments import cli
from launch import ablate, seeds
from nin_jax.config import CHOICES, block, default_config, flatten, validate
from nin_jax.data import augment
from nin_jax.errors import CheckpointError, ConfigError
from nin_jax.files import read_json, write_json
from nin_jax.models.factory import layer_blocks
from nin_jax.models.summary import layer_table
from nin_jax.plan import make_plan
from nin_jax.runs import workdir
from nin_jax.runs.checkpoint import Checkpoints, digest
from nin_jax.train.optimizer import make_optimizer
from nin_jax.train.schedules import schedule
from nin_jax.train.step import apply, cross_entropy, evaluate, loss_and_gradient, train_steps
from tests.helpers import ROOT, assemble, load_page, plan_of, tiny_config


def small_config() -> ConfigDict:
    """One mlpconv on 96 digits, which compiles in a second."""
    config = tiny_config()
    config.model.blocks = ConfigDict({'mlpconv1': block((8, 10), kernel=3, init_std=())})
    config.data.limit, config.eval.batch_size = 96, 96
    config.optim.last_layer_lr, config.train.microbatch = 1.0, 32
    return config


def config_with(**changes) -> ConfigDict:
    """`optim__lr=0.1` stands for 'optim.lr'."""
    config = small_config()
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    validate(config)
    return config


def advance(run, steps: int):
    return train_steps(
        run.init_state(0), run.train(0).examples, run.preprocess, setup=run.setup, num_steps=steps
    )


def kernel(params: dict) -> np.ndarray:
    return np.asarray(params['mlpconvs']['mlpconv1']['layers']['conv']['kernel'])


def batch(run, size: int = 32):
    keys_B = jax.random.split(jax.random.key(0), size)
    return (
        run.preprocess(run.train(0).examples.images[:size]),
        run.train(0).examples.labels[:size],
        keys_B,
    )


# ---- every switch ---------------------------------------------------------------------------

SWITCHES = {
    'augment.cutout': 8,
    'augment.mixup': 0.5,
    'augment.cutmix': 1.0,
    'augment.label_smoothing': 0.2,
    'model.norm': 'batch',
    'model.class_maps': 'linear',
    'optim.rule': 'nesterov',
    'optim.schedule': 'cosine',
    'train.ema': 0.9,
}


@pytest.fixture(scope='module')
def plain():
    return advance(assemble(small_config()), 3)


@pytest.mark.heavy
@pytest.mark.parametrize('key', [*SWITCHES, 'muon', 'one_cycle'])
def test_each_switch_alone_changes_the_run_and_trains(key, plain):
    changes = {
        'muon': {'optim.rule': 'muon', 'optim.lr': 0.02},
        'one_cycle': {'optim.schedule': 'one_cycle', 'optim.warmup': '10%'},
    }
    config = small_config()
    config.update_from_flattened_dict(changes.get(key) or {key: SWITCHES[key]})
    run = assemble(config)
    state, first = advance(run, 3)
    assert jax.tree.leaves(state.weights)[0].dtype == jnp.float32
    if key == 'train.ema':
        assert (kernel(state.params) == kernel(plain[0].params)).all()  # it only looks on
    assert (kernel(state.weights) != kernel(plain[0].weights)).any()
    for _ in range(8):
        state, last = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=3
        )
    assert float(last['loss']) < float(first['loss'])


@pytest.mark.heavy
def test_the_whole_recipe_learns_and_is_evaluated():
    config = tiny_config()
    config.data.limit = 1024
    modern = load_page('cifar10', 'modern')
    flat = {k: v for k, v in flatten(modern).items() if k.startswith(('augment.', 'optim.'))}
    config.update_from_flattened_dict(flat | {'model.norm': 'batch', 'model.class_maps': 'linear'})
    config.augment.flip, config.eval.tta, config.train.ema = False, 'shift', 0.999
    config.train.duration = '120steps'
    run = assemble(config)
    state = run.init_state(0)
    before = int(
        evaluate(state.weights, run.eval.examples, run.preprocess, setup=run.setup)['errors']
    )
    for _ in range(15):
        state, _ = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=8
        )
    after = int(
        evaluate(state.weights, run.eval.examples, run.preprocess, setup=run.setup)['errors']
    )
    assert after < 0.75 * before  # 1,024 images, 120 steps, 8 channels


@pytest.mark.parametrize('page', ['svhn', 'mnist'])
def test_the_modern_pages_of_digits_keep_the_layer_table(page):
    paper, modern = load_page(page), load_page(page, 'modern,smoke')
    for name, row in paper.model.blocks.items():
        for field in ('features', 'kernel', 'pool', 'pieces', 'local'):
            assert modern.model.blocks[name][field] == row[field]
    assert modern.model.norm == 'batch' and modern.data.limit == 512
    assert not modern.augment.flip  # a mirrored digit is none


@pytest.mark.parametrize(('page', 'classes'), [('cifar10', 10), ('cifar100', 100)])
def test_the_modern_networks_cost_less_than_the_papers(page, classes):
    fast, modern = (
        layer_blocks(load_page(page, variant), classes) for variant in ('fast', 'modern')
    )
    macs = [sum(row.macs for row in layer_table(blocks, (32, 32, 3))) for blocks in (fast, modern)]
    assert 0.8 < macs[1] / macs[0] < 0.9
    assert len(modern) == 5 and {block.kernel for block in modern} == {3}
    assert modern[-1].features[-1] == classes
    config = load_page(page, 'modern,smoke')
    assert config.model.norm == 'batch' and config.data.limit == 512 and config.augment.flip


# ---- batch normalization --------------------------------------------------------------------


@pytest.fixture(scope='module')
def normed():
    return assemble(config_with(model__norm='batch', model__class_maps='linear'))


def test_batch_norm_adds_statistics_and_no_parameter(normed):
    state, plain = normed.init_state(0), assemble(small_config()).init_state(0)
    shapes = [jax.tree.map(jnp.shape, s.params) for s in (state, plain)]
    assert shapes[0] == shapes[1] and plain.stats == {}
    # Two convolutions, of which the last outputs the class maps.
    assert len(jax.tree.leaves(state.stats)) == 2


def test_batch_norm_standardizes_and_averages_as_written_out(normed):
    state = normed.init_state(0)
    x_BHWC, labels_B, keys_B = batch(normed)
    setup = dataclasses.replace(normed.setup, microbatch=32)
    *_, stats = loss_and_gradient(state.params, x_BHWC, labels_B, keys_B, setup, state.stats)
    y_BHWC = jax.lax.conv_general_dilated(
        *(x_BHWC, jnp.asarray(kernel(state.params)), (1, 1), 'SAME'),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    got = stats['mlpconvs']['mlpconv1']['layers']['conv']['norm']
    np.testing.assert_allclose(got['mean'], 0.1 * y_BHWC.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], 0.9 + 0.1 * y_BHWC.var((0, 1, 2)), rtol=1e-4)


def test_evaluation_uses_the_running_statistics(normed):
    state, _ = advance(normed, 3)
    x_BHWC, *_ = batch(normed)
    together, _ = apply(normed.setup.model, state.weights, x_BHWC)
    alone = [apply(normed.setup.model, state.weights, x_BHWC[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(np.concatenate(alone), together[:4], rtol=1e-4, atol=1e-5)
    shifted = jax.tree.map(lambda s: s + 1, state.stats)
    other = dataclasses.replace(state, stats=shifted).weights
    assert not np.allclose(apply(normed.setup.model, other, x_BHWC)[0], together)


def test_pieces_are_normalised_each_by_itself_with_one_update_a_step(normed):
    """Ghost batch norm: documented, and the reason why no piece is chosen by the device."""
    state = normed.init_state(0)
    args = (state.params, *batch(normed))
    assert normed.setup.microbatch == 32
    pieces = dataclasses.replace(normed.setup, microbatch=8)
    whole_loss, *_, whole = loss_and_gradient(*args, normed.setup, state.stats)
    pieces_loss, *_, averaged = loss_and_gradient(*args, pieces, state.stats)
    assert float(whole_loss) != pytest.approx(float(pieces_loss), rel=1e-6)
    mean = [s['mlpconvs']['mlpconv1']['layers']['conv']['norm']['mean'] for s in (whole, averaged)]
    np.testing.assert_allclose(*mean, rtol=1e-4, atol=1e-6)


def test_linear_class_maps_go_below_zero():
    for class_maps, negative in (('relu', False), ('linear', True)):
        run = assemble(config_with(model__class_maps=class_maps))
        x_BHWC, *_ = batch(run)
        logits_BK, maps_BHWK = apply(run.setup.model, run.init_state(0).weights, x_BHWC)
        assert (np.asarray(maps_BHWK) < 0).any() == negative
        np.testing.assert_allclose(logits_BK, maps_BHWK.mean((1, 2)), rtol=1e-5, atol=1e-6)


# ---- images and labels ----------------------------------------------------------------------


def images(size: int = 64) -> jax.Array:
    return 1.0 + jax.random.uniform(jax.random.key(9), (size, 12, 10, 3))  # nowhere 0


def test_cutout_zeros_exactly_one_square_wholly_inside():
    x_BHWC = images()
    out_BHWC = np.asarray(augment.cutout(jax.random.key(0), x_BHWC, 4))
    corners = set()
    for x_HWC, out_HWC in zip(np.asarray(x_BHWC), out_BHWC, strict=True):
        rows, columns = np.nonzero(out_HWC[..., 0] == 0)
        assert rows.size == 16 and np.ptp(rows) == np.ptp(columns) == 3
        assert (out_HWC[rows, columns] == 0).all()
        rest = out_HWC != 0
        np.testing.assert_array_equal(out_HWC[rest], x_HWC[rest])
        corners.add((rows.min(), columns.min()))
    assert {0, 8} <= {r for r, _ in corners} and {0, 6} <= {c for _, c in corners}


def one_hot(size: int = 64) -> jax.Array:
    return jax.nn.one_hot(jnp.arange(size) % 10, 10)


def test_mixup_mixes_images_and_targets_by_one_share():
    x_BHWC, targets_BK = images(), one_hot()
    mixed, targets = augment.mix(jax.random.key(1), x_BHWC, targets_BK, 0.5, 0.0)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    share_B = np.asarray(targets)[np.arange(64), np.arange(64) % 10]
    expected = [
        s * a + (1 - s) * b for s, a, b in zip(share_B, x_BHWC, np.roll(x_BHWC, -1, 0), strict=True)
    ]
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)
    assert share_B.min() < 0.1 and share_B.max() > 0.9 and 0.3 < share_B.mean() < 0.7


def test_cutmix_pastes_one_box_and_weighs_the_targets_by_its_area():
    x_BHWC, targets_BK = images(), one_hot()
    mixed, targets = augment.mix(jax.random.key(2), x_BHWC, targets_BK, 0.0, 1.0)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    other_BHWC, areas = np.roll(x_BHWC, -1, 0), []
    for i in range(64):
        own, pasted = (np.isclose(mixed[i], source[i]).all(-1) for source in (x_BHWC, other_BHWC))
        assert (own ^ pasted).all()
        rows, columns = np.nonzero(pasted)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if rows.size else 0
        assert rows.size == box  # a rectangle without holes
        assert targets[i, i % 10] == pytest.approx(1 - box / 120, abs=1e-5)
        areas.append(box / 120)
    assert min(areas) < 0.1 and max(areas) > 0.6


def test_with_both_a_coin_decides_for_each_image():
    mixed, _ = augment.mix(jax.random.key(3), images(), one_hot(), 0.5, 1.0)
    own_BHW = np.isclose(mixed, images()).all(-1) | np.isclose(mixed, np.roll(images(), -1, 0)).all(
        -1
    )
    boxes = own_BHW.all((1, 2)).mean()  # every pixel is of one image or of the other
    assert 0.25 < boxes < 0.75


def test_label_smoothing_by_hand():
    smooth = augment.Augment(classes=4, label_smoothing=0.2)
    _, targets_BK = smooth(jax.random.key(0), 0, images(1), jnp.array([2]), jnp.array([0]))
    np.testing.assert_allclose(targets_BK, [[0.05, 0.05, 0.85, 0.05]], rtol=1e-6)
    logits = np.array([[1.0, 2.0, 3.0, 4.0]])
    log_p = logits - np.log(np.exp(logits).sum())
    by_hand = -(0.85 * log_p[0, 2] + 0.05 * (log_p.sum() - log_p[0, 2]))
    assert float(cross_entropy(jnp.asarray(logits), targets_BK)[0]) == pytest.approx(by_hand)


def test_without_a_switch_labels_stay_labels():
    x_BHWC, labels_B = images(4), jnp.arange(4)
    same, labels = augment.Augment(classes=10)(jax.random.key(0), 0, x_BHWC, labels_B, labels_B)
    assert labels is labels_B and (same == x_BHWC).all()


# ---- schedules, rules, averages -------------------------------------------------------------


def rates_of(name: str, steps: int, **plan) -> list[float]:
    """The learning rates of a run of `steps` with lr=0.4, and of two steps after it."""
    config = default_config().optim
    config.schedule, config.lr = name, 0.4
    rate = schedule(config, plan_of(total_steps=steps, **plan))
    return [float(rate(step)) for step in range(steps + 2)]


@pytest.mark.parametrize('name', CHOICES['optim.schedule'])
def test_every_schedule_rises_for_the_warmup(name):
    rates = rates_of(name, 110, warmup=10, drops=(30, 50))
    assert rates[0] == pytest.approx(0.4 / 11)
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(0.4)
    np.testing.assert_allclose(np.diff(rates[:11]), (0.4 - rates[0]) / 10, rtol=1e-4)
    assert rates_of(name, 110, drops=(30, 50))[0] == pytest.approx(0.4)


def test_what_schedules_do_after_the_warmup():
    warm = dict(warmup=10, drops=(30, 50))
    cosine, line = (rates_of(name, 110, **warm) for name in ('cosine', 'one_cycle'))
    for step in (35, 60, 85, 110):
        done = (step - 10) / 100
        half = 0.2 * (1 + np.cos(np.pi * done))
        assert cosine[step] == pytest.approx(half, rel=1e-5, abs=1e-7)
        assert line[step] == pytest.approx(0.4 * (1 - done), rel=1e-5, abs=1e-7)
    assert cosine[109] > 0 and line[109] > 0
    drops = rates_of('drops', 110, **warm)
    assert drops[10:] == pytest.approx([0.4] * 20 + [0.04] * 20 + [0.004] * 62)
    assert rates_of('plateau', 110, **warm)[10:] == pytest.approx([0.4] * 102)
    assert rates_of('one_cycle', 10, warmup=10)[10:] == pytest.approx([0.4, 0])
    with pytest.raises(KeyError, match='linear'):
        rates_of('linear', 110)


def test_warmup_is_a_duration_no_longer_than_the_run():
    config = default_config()
    config.train.batch_size, config.train.duration, config.optim.warmup = 10, '200steps', '20%'
    assert make_plan(config, 1000, short_calls=True).warmup == 40
    config.optim.warmup = '0%'
    assert make_plan(config, 1000, short_calls=True).warmup == 0
    config.optim.warmup = '3ep'
    with pytest.raises(ConfigError, match=r"optim.warmup='3ep': 300 steps, but the run has only"):
        make_plan(config, 1000, short_calls=True)


PARAMS = {
    'a': {'kernel': jnp.ones((3, 3, 4, 6)), 'bias': jnp.ones(6)},
    'last': {'kernel': jnp.ones((6, 2)), 'bias': jnp.ones(2)},
}


def updates_of(rule: str, steps: int = 3, **changes):
    """Parameters after some steps down random gradients."""
    config = default_config().optim
    config.update(dict(rule=rule, schedule='one_cycle', bias_lr=1.0, last_layer_lr=1.0) | changes)
    tx = make_optimizer(config, PARAMS, ('last',), plan_of(total_steps=10))
    return run_optimizer(tx, steps)


def run_optimizer(tx, steps: int):
    tx = optax.with_extra_args_support(tx)
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(steps):
        key = jax.random.fold_in(jax.random.key(0), i)
        grads = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params)
        updates, state = tx.update(grads, state, params, value=0.5)
        params = optax.apply_updates(params, updates)
    return params, updates


def test_nesterov_is_optaxs():
    """At a constant rate, where it does not matter that ours stands inside the momentum."""
    ours, _ = updates_of('nesterov', schedule='drops', weight_decay=0.0)
    theirs, _ = run_optimizer(optax.sgd(0.1, momentum=0.9, nesterov=True), 3)
    plain, _ = run_optimizer(optax.sgd(0.1, momentum=0.9), 3)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, theirs, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        assert not np.allclose(a, c, rtol=1e-3)


def test_muon_moves_each_kernel_by_an_orthogonal_matrix_and_biases_by_nadam():
    _, updates = updates_of('muon', steps=1, lr=0.1, weight_decay=0.0)
    step_IO = np.asarray(updates['a']['kernel'], np.float64).reshape(36, 6) / 0.1
    # Muon's Newton-Schulz iteration brings singular values near 1, to between 0.7 and 1.2.
    assert np.all(abs(np.linalg.svd(step_IO, compute_uv=False) - 1) < 0.35)
    # Adam's first step, with Nesterov's look ahead: gradient and momentum agree but in size.
    nadam = 0.1 * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    np.testing.assert_allclose(abs(updates['a']['bias']), nadam, rtol=1e-3)


def test_muons_decay_is_of_kernels_only_and_decoupled():
    decayed, plain = (updates_of('muon', 1, lr=0.1, weight_decay=w)[1] for w in (0.5, 0.0))
    for layer in ('a', 'last'):
        np.testing.assert_allclose(
            decayed[layer]['kernel'] - plain[layer]['kernel'], -0.1 * 0.5, atol=1e-5
        )
        np.testing.assert_array_equal(decayed[layer]['bias'], plain[layer]['bias'])


def test_muon_heeds_the_multipliers():
    slow, plain = (
        updates_of('muon', 1, weight_decay=0.0, bias_lr=b, last_layer_lr=last)[1]
        for b, last in ((2.0, 0.1), (1.0, 1.0))
    )
    np.testing.assert_allclose(slow['a']['kernel'], plain['a']['kernel'], rtol=1e-6)
    np.testing.assert_allclose(slow['a']['bias'], 2 * plain['a']['bias'], rtol=1e-5)
    np.testing.assert_allclose(slow['last']['kernel'], 0.1 * plain['last']['kernel'], rtol=1e-5)


def test_ema_by_its_formula():
    run = assemble(config_with(train__ema=0.3, model__norm='batch'))
    state = run.init_state(0)
    average = np.float64(kernel(state.ema))
    np.testing.assert_array_equal(average, kernel(state.params))
    for step in range(6):
        state, _ = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=1
        )
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * kernel(state.params)
    np.testing.assert_allclose(kernel(state.ema), average, rtol=1e-4, atol=1e-6)
    assert state.weights is state.ema
    assert jax.tree.structure(state.ema) != jax.tree.structure(state.params)  # statistics too


# ---- test-time augmentation -----------------------------------------------------------------


def test_views_are_moved_and_mirrored():
    x_BHWC = images(2)
    original, mirrored = augment.views(x_BHWC, 'flip')
    np.testing.assert_array_equal(original, x_BHWC)
    np.testing.assert_array_equal(mirrored, x_BHWC[:, :, ::-1])
    _, up, down = np.asarray(augment.views(x_BHWC, 'shift'))
    np.testing.assert_array_equal(up[:, :-1, :-1], x_BHWC[:, 1:, 1:])
    assert (up[:, -1] == 0).all() and (up[:, :, -1] == 0).all()
    np.testing.assert_array_equal(down[:, 1:, 1:], x_BHWC[:, :-1, :-1])
    six = np.asarray(augment.views(x_BHWC, 'flip_shift'))
    assert len(six) == 6 and len({v.tobytes() for v in six}) == 6


@pytest.mark.parametrize('tta', ['flip', 'shift', 'flip_shift'])
def test_test_time_augmentation_averages_logits(tta):
    run = assemble(config_with(eval__tta=tta))
    weights = run.init_state(0).weights
    x_NHWC = run.preprocess(run.eval.examples.images)
    logits = [apply(run.setup.model, weights, v)[0] for v in augment.views(x_NHWC, tta)]
    mean_NK = np.mean(logits, axis=0)
    scores = evaluate(weights, run.eval.examples, run.preprocess, setup=run.setup)
    assert int(scores['errors']) == int((mean_NK.argmax(-1) != run.eval.examples.labels).sum())
    losses_N = cross_entropy(jnp.asarray(mean_NK), run.eval.examples.labels)
    assert float(scores['loss']) == pytest.approx(float(losses_N.mean()), rel=1e-5)


# ---- mistakes, and devices ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'optim.rule': 'moun'}, "optim.rule='moun', did you mean 'muon'?"),
        ({'optim.schedule': 'cosin'}, "optim.schedule='cosin', did you mean 'cosine'?"),
        ({'model.norm': 'bach'}, "model.norm='bach', did you mean 'batch'?"),
        ({'model.class_maps': 'linaer'}, "model.class_maps='linaer', did you mean 'linear'?"),
        ({'eval.tta': 'flipshift'}, "eval.tta='flipshift', did you mean 'flip_shift'?"),
        ({'augment.cutout': -1}, 'augment.cutout=-1: must be 0 (none) or more'),
        ({'augment.mixup': -0.1}, 'augment.mixup=-0.1: must be 0 (none) or more'),
        ({'augment.label_smoothing': 1.0}, 'augment.label_smoothing=1.0: must be from 0 to'),
        ({'train.ema': 1.0}, 'train.ema=1.0: must be from 0 to below 1'),
        (
            {'model.head': 'fc', 'model.class_maps': 'linear'},
            "model.class_maps='linear': with model.head='fc' there are no class maps",
        ),
        (
            {'model.norm': 'batch', 'model.blocks.mlpconv1.local': True},
            'model.blocks.mlpconv1.local=True: local filters have no batch normalization',
        ),
    ],
)
def test_mistakes_are_named_with_the_mend(changes, words):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError) as e:
        validate(config)
    assert str(e.value).startswith(words)


def test_a_cutout_larger_than_the_image_is_named():
    config = small_config()
    config.augment.cutout = 29
    with pytest.raises(ConfigError, match=r'augment.cutout=29: the images are only 28x28'):
        assemble(config)


DEVICES = """
import sys
sys.path[:0] = ['.']
import jax
import numpy as np
from tests.helpers import assemble, load_page, tiny_config
from nin_jax.config import flatten
from nin_jax.train.step import evaluate, train_steps

assert jax.device_count() == 8
ends = []
for devices in (1, 8):
    config, modern = tiny_config(), load_page('cifar10', 'modern')
    config.update_from_flattened_dict(
        {k: v for k, v in flatten(modern).items() if k.startswith(('augment.', 'optim.'))}
    )
    config.model.norm, config.model.class_maps = 'batch', 'linear'
    config.augment.mixup, config.augment.cutmix, config.train.ema = 0.5, 1.0, 0.9
    config.eval.tta = 'flip_shift'
    config.devices = devices
    run = assemble(config)
    state, metrics = train_steps(
        run.init_state(0), run.train(0).examples, run.preprocess, setup=run.setup, num_steps=4
    )
    scores = evaluate(state.weights, run.eval.examples, run.preprocess, setup=run.setup)
    ends.append(jax.device_get((state.weights, state.params, metrics['loss'], scores['loss'])))
for one, eight in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(one, eight, rtol=2e-3, atol=2e-4)
"""


@pytest.mark.processes
def test_the_recipe_is_the_same_on_eight_devices():
    flags = '--xla_force_host_platform_device_count=8'
    done = subprocess.run(
        [sys.executable, '-c', DEVICES],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


# ---- launch.ablate --------------------------------------------------------------------------


def overrides(flags: tuple[str, ...]) -> dict[str, object]:
    pairs = (flag.removeprefix('--config.').split('=', 1) for flag in flags)
    return {
        k: ast.literal_eval(v) if re.match(r'[(\d]|True|False', v) and '%' not in v else v
        for k, v in pairs
    }


@pytest.mark.parametrize('recipe', ablate.SWITCHES)
def test_each_ablation_sets_one_switch_back(recipe):
    """Back to what the paper's run does; a recipe's numbers go with its switches."""
    paper, changed = (flatten(load_page('cifar10', v)) for v in ('', recipe))
    runs, switches = ablate.runs_of(recipe), set()
    for name, (config, *back) in runs.items():
        is_whole = name in ('paper', recipe)
        if name == 'layers':
            made = flatten(cli.load_config(config, back))
            different = {key for key in changed | made if changed.get(key) != made.get(key)}
            assert different and all(key.startswith('model.blocks.') for key in different)
            assert made['model.blocks.mlpconv3.features'] == paper['model.blocks.mlpconv3.features']
            continue
        assert config == ablate.CIFAR10 + ('' if name == 'paper' else f':{recipe}')
        assert bool(back) != (name == recipe)
        if is_whole:  # the paper's run is shortened to the recipe's length
            assert all('train.duration=' in flag or 'optim.drops=' in flag for flag in back)
            continue
        for key, value in overrides(back).items():
            assert changed[key] != value
            # Fitted to the recipe's budget: the optimizer, the batch, drops as shares of the run.
            if name not in ('rule', 'batch_size') and key != 'optim.drops':
                row, _, field = key.rpartition('.')
                of_paper = paper[f'model.blocks.mlpconv1.{field}' if 'blocks' in row else key]
                # Layers may be fewer than the paper's three per block.
                assert (of_paper[: len(value)] if field == 'init_std' else of_paper) == value
            switches.add(key)
    assert len(runs) == 4 + len(ablate.SWITCHES[recipe]) + (recipe == 'modern')
    assert len(switches) >= len(runs) - 2


def test_ablate_trains_all_at_one_budget_and_prints_a_table(tmp_path, monkeypatch, capsys):
    commands = []

    def run(flags: list[str]) -> int:
        commands.append(flags)
        folder = pathlib.Path(flags[1].removeprefix('--workdir='))
        folder.mkdir(parents=True)
        name, seed = folder.parts[-2], int(folder.name.removeprefix('seed'))
        record = {
            'status': 'done',
            'seed': seed,
            'final_error': {'paper': 0.9, 'fast': 0.2, 'norm': 0.4 + 0.02 * seed}[name],
            'seconds': {'train': 12.5},
            'config': {'data.eval': 'valid'},
            'eval_images': 10_000,
            'commit': 'abc',
            'device': {'platform': 'cpu', 'cpus': 2, 'machine': 'x86_64'},
        }
        (folder / 'summary.json').write_text(json.dumps(record))
        return 0

    monkeypatch.setattr(seeds, 'run', run)
    budget = '--config.train.duration=1ep'
    flags = [f'--workdir={tmp_path}', '--only=paper,fast,norm', '--seeds=3', budget]
    assert ablate.main(flags) == 0
    assert len(commands) == 9 and all(budget in c for c in commands)
    assert ['--config.model.norm=none' in c for c in commands] == [False] * 6 + [True] * 3
    page = (tmp_path / 'ablation.md').read_text()
    assert page in capsys.readouterr().out
    assert '10,000 images of `valid`; commit abc; 2 CPUs (x86_64), 0:12 per run' in page
    # Student's t with two degrees of freedom at 97.5 % is 4.303; the differences are 20, 22, 24.
    assert page.splitlines()[-3:] == [
        '| paper | `experiments/configs/cifar10.py`, `train.duration=5.4ep`, '
        '`optim.drops=77% 88%` '
        '| 0.065 | 90.00 ± 0.00 % (3 seeds) | +70.00 ± 0.00 |',
        '| fast |  | 0.037 | 20.00 ± 0.00 % (3 seeds) |  |',
        '| norm | `model.norm=none` | 0.037 | 42.00 ± 2.00 % (3 seeds) | +22.00 ± 4.97 |',
    ]


def test_ablate_names_a_run_it_does_not_know(tmp_path, capsys):
    assert ablate.main([f'--workdir={tmp_path}', '--only=paper,nrom']) == 2
    assert "'nrom'" in capsys.readouterr().err


# ---- runs from before -----------------------------------------------------------------------


def test_a_key_that_an_older_run_lacks_has_its_default(tmp_path):
    config = small_config()
    workdir.write_or_check_config(tmp_path, workdir.flat_config(config))
    (tmp_path / 'metrics.jsonl').write_text('{}\n')  # the run has started
    path = tmp_path / 'config.json'
    write_json(path, {k: v for k, v in read_json(path).items() if 'cutmix' not in k})
    workdir.write_or_check_config(tmp_path, workdir.flat_config(config))
    config.augment.cutmix = 1.0
    with pytest.raises(CheckpointError, match=r'augment.cutmix=0.0, this command sets 1.0'):
        workdir.write_or_check_config(tmp_path, workdir.flat_config(config))


def test_statistics_and_averages_come_back_from_a_checkpoint(tmp_path):
    run = assemble(config_with(model__norm='batch', train__ema=0.9))
    state, _ = advance(run, 3)
    with Checkpoints(tmp_path, 1, print) as checkpoints:
        checkpoints.save(3, state, {}, error=None)
        checkpoints.wait()
        restored, meta = checkpoints.restore(state)
    assert digest(restored) == meta['digest'] == digest(state)
    assert jax.tree.leaves(restored.stats) and jax.tree.leaves(restored.ema)


def test_a_seed_that_ends_with_a_bug_leaves_the_others_their_sentence(tmp_path):
    for seed, error in ((0, 0.1), (1, 0.2)):
        (tmp_path / f'seed{seed}').mkdir()
        record = {'status': 'done', 'final_error': error, 'seconds': {'train': 60.0}}
        write_json(tmp_path / f'seed{seed}' / 'summary.json', record)
    text = seeds.format_summary([tmp_path / f'seed{seed}' for seed in range(3)])
    assert '(10.00, 20.00)' in text and text.endswith('1 diverged or failed')
