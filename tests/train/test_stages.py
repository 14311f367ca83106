"""Stages of a run: smaller images first, and mlpconv layers that stop training."""

import jax
import numpy as np
import pytest
from PIL import Image

from launch.cost import flops_per_image
from nin_jax.data.pipeline import resize_source
from nin_jax.data.sources import Arrays
from nin_jax.plan import Stage, make_plan
from nin_jax.runs.metrics import Stopwatch
from nin_jax.train import loop
from tests.helpers import assemble, load_page, plan_of, tiny_config


def test_images_are_resized_with_antialiasing():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    labels = np.zeros(3, np.int32)
    small = resize_source(Arrays(images, labels, ('a',)), 20).load()
    pillow = [Image.fromarray(i).resize((20, 20), Image.Resampling.BILINEAR) for i in images]
    difference = small.images.astype(int) - np.stack([np.asarray(i) for i in pillow])
    assert small.images.dtype == np.uint8 and np.abs(difference).max() <= 1  # rounded twice


def staged_config():
    config = tiny_config()
    config.model.norm, config.optim.rule = 'batch', 'nesterov'
    config.train.image_sizes, config.train.freeze = '20@50%', '75%'
    return config


def train_to(run, stops, state=None):
    """The states after each of `stops`, from `state` or the start, in calls that end there."""
    state = run.initial_state(0) if state is None else state
    step, states = int(state.step), []
    calls = loop.Calls(run, int(state.attempt), Stopwatch())
    for stop in stops:
        while step < stop:
            end = min(step + run.plan.call_length(step), stop)
            program, inputs = calls.prepare(step, end)
            state, _ = program(state, inputs, run.preprocess)
            step = end
        states.append(jax.device_get(state))
    return states


def test_stages_follow_each_other_to_the_end():
    plan = plan_of(steps_per_call=4, image_sizes=((3, 20), (6, 24)), freeze=(6, 8))
    assert plan.stages() == [
        (Stage(20), 0, 3),
        (Stage(24), 3, 6),
        (Stage(0, 1), 6, 8),
        (Stage(0, 2), 8, 10),
    ]
    ends, step = [], 0
    while step < 10:
        step += plan.call_length(step)
        ends.append(step)
    assert ends == [3, 4, 6, 8, 10]
    assert plan_of().stages() == [(Stage(), 0, 10)]


def test_sizes_that_change_at_the_same_step_in_a_short_run():
    config = tiny_config()
    config.train.image_sizes, config.train.duration = '20@30% 24@60%', '2steps'
    plan = make_plan(config, 256, short_calls=True)
    assert plan.stages() == [(Stage(20), 0, 1), (Stage(), 1, 2)]


def test_a_call_repeats_until_its_length_or_its_stage_changes():
    """Whoever compiles for the next call waits for this one: that is not training time."""
    plan = plan_of(steps_per_call=2, image_sizes=((4, 20),), total_steps=11)
    calls = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    assert [plan.repeats(*call) for call in calls] == [True, False, True, True, False, False]


def test_a_frozen_layer_stays_and_the_others_train_on():
    before, after = train_to(assemble(staged_config()), (18, 24))
    for tree in ('params', 'stats'):
        old, new = (getattr(state, tree)['mlpconvs'] for state in (before, after))
        jax.tree.map(np.testing.assert_array_equal, old['mlpconv1'], new['mlpconv1'])
        assert jax.tree.all(
            jax.tree.map(lambda a, b: (a != b).any(), old['mlpconv2'], new['mlpconv2'])
        )
    velocity = jax.tree.leaves(before.opt_state)
    assert any(np.abs(leaf).max() > 0 for leaf in velocity)  # momentum alone would move it


def test_later_layers_train_as_if_nothing_were_frozen():
    """In the first step; without batch normalization, whose statistics would differ."""
    config, results = tiny_config(), []
    for frozen in ('', '1steps'):
        config.train.freeze = frozen
        results.append(train_to(assemble(config), (1, 2))[1].params['mlpconvs'])
    free, held = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        free['mlpconv2'],
        held['mlpconv2'],
    )
    assert (
        free['mlpconv1']['layers']['conv']['kernel'] != held['mlpconv1']['layers']['conv']['kernel']
    ).any()


@pytest.mark.parametrize('stop', [7, 12, 18, 20])
def test_a_resumed_run_ends_with_the_same_weights(stop):
    run = assemble(staged_config())
    middle, whole = train_to(run, (stop, 24))
    state = jax.device_put(middle, jax.tree.map(lambda s: s.sharding, run.state_shapes()))
    (resumed,) = train_to(run, (24,), state)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_floating_point_operations_of_a_stage():
    """Counted by hand for the layers of table 1."""
    config = load_page('cifar10', 'fast')
    full, small, frozen = (
        flops_per_image(config, stage) for stage in (Stage(), Stage(16), Stage(0, 1))
    )
    # Multiply-accumulates of table 1's layers at 32x32 pixels, in millions.
    conv1, block1, conv2, rest = 14.7456, 61.9315, 117.9648, 42.5902
    assert full == pytest.approx(1e6 * (6 * (block1 + conv2 + rest) - 2 * conv1), rel=1e-4)
    assert small == pytest.approx(full / 4, rel=1e-4)
    assert frozen == pytest.approx(1e6 * (2 * block1 + 4 * conv2 + 6 * rest), rel=1e-4)


def test_freezing_saves_the_backward_pass():
    config = tiny_config()
    run = assemble(config)
    calls = loop.Calls(run, 0, Stopwatch())
    free, held = (calls.program(1, Stage(0, frozen)).cost_analysis()['flops'] for frozen in (0, 1))
    assert held < 0.6 * free
