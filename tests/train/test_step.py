"""The compiled programs: batch order, masked evaluation, independence of how steps are grouped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.batches import example_order
from nin_jax.models.factory import join
from nin_jax.models.nin import apply
from nin_jax.runs.checkpoint import digest
from nin_jax.train.step import (
    evaluate,
    is_dead,
    loss_and_gradient,
    moving_average,
    predict_logits,
    train_steps,
)
from tests.helpers import assemble, tiny_config


@pytest.fixture(scope='module')
def run():
    return assemble(tiny_config())


def orders(key, steps, batch, n):
    return np.concatenate(
        [np.asarray(example_order(key, jnp.int32(s), 1, batch, n)).ravel() for s in range(steps)]
    )


@pytest.mark.parametrize(('n', 'batch'), [(100, 10), (103, 10), (64, 64), (65, 64)])
def test_each_epoch_is_a_fresh_permutation(n, batch):
    stream = orders(jax.random.key(0), 4 * n // batch, batch, n)
    epochs = [stream[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_order_is_the_same_however_steps_are_grouped():
    key = jax.random.key(7)
    one_by_one = orders(key, 30, 10, 103)
    for k in (2, 5, 10):
        grouped = [example_order(key, jnp.int32(s), k, 10, 103) for s in range(0, 30, k)]
        np.testing.assert_array_equal(np.concatenate(grouped).ravel(), one_by_one)


def test_order_depends_on_the_seed():
    a, b = (orders(jax.random.key(s), 10, 10, 100) for s in (0, 1))
    assert (a != b).any()


def advance(run, calls):
    state, losses = run.init_state(0), []
    for k in calls:
        state, metrics = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=k
        )
        losses.append(float(metrics['loss']))
    return state, losses


def test_weights_are_the_same_however_steps_are_grouped(run):
    one, losses = advance(run, [1] * 8)
    four, grouped = advance(run, [4, 4])
    assert int(one.step) == int(four.step) == 8
    np.testing.assert_allclose(grouped, np.mean(np.reshape(losses, (2, 4)), axis=1), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradient_is_the_same_however_a_batch_is_cut(run):
    state = run.init_state(0)
    x_BHWC, labels_B = (
        run.preprocess(run.train(0).examples.images[:32]),
        run.train(0).examples.labels[:32],
    )
    keys_B = jax.random.split(jax.random.key(0), 32)
    whole, pieces = (
        loss_and_gradient(
            state.params, x_BHWC, labels_B, keys_B, dataclasses.replace(run.setup, microbatch=m)
        )
        for m in (32, 8)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_evaluation_counts_every_example_once(run):
    """256 examples in batches of 96: the last is filled up with copies that must not count."""
    state = run.init_state(0)
    sizes = (96, 256, 7)
    scores = [
        evaluate(
            state.params,
            run.eval.examples,
            run.preprocess,
            setup=dataclasses.replace(run.setup, eval_batch_size=b),
        )
        for b in sizes
    ]
    logits_BK, _ = apply(run.setup.model, state.params, run.preprocess(run.eval.examples.images))
    errors = int((jnp.argmax(logits_BK, -1) != run.eval.examples.labels).sum())
    losses = -jax.nn.log_softmax(logits_BK)[jnp.arange(256), run.eval.examples.labels]
    assert 0 < errors < 256
    for got in scores:
        assert int(got['errors']) == errors
        assert float(got['loss']) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_one_view_scores_the_image_itself(run):
    weights, x_BHWC = run.init_state(0).weights, run.preprocess(run.eval.examples.images[:8])
    np.testing.assert_array_equal(
        predict_logits(run.setup, weights, x_BHWC), apply(run.setup.model, weights, x_BHWC)[0]
    )


def test_the_weights_to_evaluate_are_the_averages_where_there_are_any(run):
    plain = run.init_state(0)
    stats = {'mean': jnp.ones(2)}
    joined = join(plain.params, stats)
    assert equal(plain.weights, plain.params)
    state = dataclasses.replace(plain, stats=stats, ema={'averages': jnp.zeros(1)})
    assert equal(state.weights, state.ema)
    assert equal(dataclasses.replace(state, ema={}).weights, joined)
    new = jax.tree.map(lambda x: x + 1, plain.params)
    assert equal(state.starting_from(new).weights, join(new, stats))
    assert equal(state.starting_from(new, {'mean': jnp.zeros(2)}).stats, {'mean': jnp.zeros(2)})
    assert plain.starting_from(new).ema == {}


def equal(a, b):
    return digest(a) == digest(b)


@pytest.mark.parametrize(('step', 'decay'), [(0, 1 / 10), (5, 6 / 15), (1000, 0.9)])
def test_the_decay_of_the_averages_grows_to_its_limit(run, step, decay):
    state = dataclasses.replace(run.init_state(0), step=jnp.int32(step), ema={'w': jnp.ones(1)})
    averages = moving_average(state, {'w': jnp.zeros(1)}, 0.9)
    assert float(averages['w'][0]) == pytest.approx(decay, rel=1e-5)


def test_it_learns_64_images_by_heart():
    config = tiny_config()
    config.data.limit, config.data.eval = 64, config.data.train
    config.model.blocks.mlpconv1.dropout = 0.0
    config.seed, config.model.class_bias = 1, 1.0
    config.model.blocks.mlpconv1.features = (32, 32, 32)
    config.model.blocks.mlpconv2.features = (32, 32, 10)
    config.optim.last_layer_lr, config.optim.bias_lr, config.optim.lr = 1.0, 1.0, 0.02
    config.train.duration = '1000steps'
    run = assemble(config)
    state, losses = advance(run, [2] * 250)
    scores = evaluate(state.params, run.eval.examples, run.preprocess, setup=run.setup)
    assert int(scores['errors']) == 0 and losses[-1] < 0.05 < 2.0 < losses[0]


def test_a_dead_network_is_counted_and_a_live_one_is_not(run):
    state = run.init_state(0)
    dead = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    dead, metrics = train_steps(
        dead, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=3
    )
    assert int(metrics['dead_steps']) == 3
    assert float(metrics['loss']) == pytest.approx(np.log(10), rel=1e-6)
    _, metrics = train_steps(
        run.init_state(0), run.train(0).examples, run.preprocess, setup=run.setup, num_steps=3
    )
    assert int(metrics['dead_steps']) == 0


@pytest.mark.parametrize(('alive', 'dead'), [(0, True), (6, True), (7, False), (128, False)])
def test_a_network_is_dead_if_dropout_revives_a_few_images(alive, dead):
    logits_BK = np.zeros((128, 10), np.float32)
    logits_BK[:alive, 3] = 0.01
    assert bool(is_dead(logits_BK)) == dead


def test_seed_and_attempt_decide_the_weights(run):
    def kernel(run, attempt):
        return np.asarray(
            run.init_state(attempt).params['mlpconvs']['mlpconv1']['layers']['conv']['kernel']
        )

    config = tiny_config()
    config.seed = 1
    assert (kernel(run, 0) == kernel(run, 0)).all()
    assert (kernel(run, 0) != kernel(run, 1)).any()
    assert (kernel(run, 0) != kernel(assemble(config), 0)).any()


def test_an_evaluation_batch_is_not_larger_than_the_split(run):
    weights = run.init_state(0).weights
    large = dataclasses.replace(run.setup, eval_batch_size=2**20)
    args = (weights, run.eval.examples, run.preprocess)
    temporaries = evaluate.lower(*args, setup=large).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 2**28
    assert evaluate(*args, setup=large)['errors'] == evaluate(*args, setup=run.setup)['errors']
