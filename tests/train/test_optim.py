"""The optimizer against the authors' update rule, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nin_jax.config import default_config
from nin_jax.train.optimizer import make_optimizer
from tests.helpers import plan_of

LAST = ('b', 'last')


def params_and_grads(steps):
    key = jax.random.key(0)
    params = {
        'a': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
        'b': {'last': {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)}},
    }
    grads = [
        jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.fold_in(key, i), p.shape), params)
        for i in range(steps)
    ]
    return params, grads


def optimise(config, drops, steps, errors=None):
    params, grads = params_and_grads(steps)
    tx = make_optimizer(config, params, LAST, plan_of(drops=drops))
    state, rates = tx.init(params), []
    for i, g in enumerate(grads):
        updates, state = tx.update(g, state, params, value=errors[i] if errors else 0.5)
        rates.append(updates)
        params = optax.apply_updates(params, updates)
    return params, rates


def test_equals_the_authors_rule_over_two_drops():
    """inc = mom*inc - eps*(grad + wc*W); W += inc, with cuda-convnet's rates per parameter."""
    config = default_config().optim
    config.weight_decay = 0.01
    params, grads = params_and_grads(8)
    # epsW, epsB and wc of conv1..cccp5 and of cccp6, times the cost's coefficient of 0.1.
    rules = {
        ('a', 'kernel'): (0.1, 0.01),
        ('a', 'bias'): (0.2, 0.0),
        ('b', 'last', 'kernel'): (0.01, 0.01),
        ('b', 'last', 'bias'): (0.02, 0.0),
    }
    got, _ = optimise(config, (3, 6), 8)
    for path, (eps, wc) in rules.items():

        def at(tree, path=path):
            for name in path:
                tree = tree[name]
            return np.asarray(tree, np.float64)

        w, inc = at(params), 0.0
        for i, g in enumerate(grads):
            rate = eps * 0.1 ** ((i >= 3) + (i >= 6))
            inc = 0.9 * inc - rate * (at(g) + wc * w)
            w = w + inc
        np.testing.assert_allclose(at(got), w, rtol=2e-5)


def test_two_drops_on_one_step_count_twice():
    config = default_config().optim
    config.momentum = 0.0
    config.weight_decay = 0.0
    _, updates = optimise(config, (2, 2), 3)
    _, plain = optimise(config, (), 3)
    np.testing.assert_allclose(updates[2]['a']['kernel'], plain[2]['a']['kernel'] * 0.01, rtol=1e-5)


def test_plateau_drops_once_training_error_stops_falling():
    config = default_config().optim
    config.schedule = 'plateau'
    config.plateau_patience = 2
    config.momentum = 0.0
    config.weight_decay = 0.0
    # Epochs of two steps: error .9 .5 then flat; two flat epochs drop the rate, twice at most.
    errors = [0.9, 0.9, 0.5, 0.5, *[0.5] * 16]
    _, updates = optimise(config, (0, 0), 20, errors)
    _, grads = params_and_grads(20)
    rates = [
        float(-(u['a']['kernel'] / g['a']['kernel']).mean())
        for u, g in zip(updates, grads, strict=True)
    ]
    expected = [0.1] * 7 + [0.01] * 4 + [0.001] * 9
    assert rates == pytest.approx(expected, rel=1e-4)
