"""Tests of the detection of dead networks; test_numerics.py has whole runs that die."""

import json

import pytest

from nin_jax.train.health import DivergedError, Health
from tests.helpers import tiny_config


def health(saved=None, **changes):
    config = tiny_config()
    config.train.dead_steps = 8
    config.update(changes)
    return Health(config, 10, saved or {})


def test_constant_logits_are_dead_after_dead_steps_also_in_a_resumed_run():
    first = health()
    assert first.check_evaluation(8, 0, True) == ''
    saved = json.loads(json.dumps(first.saved))
    resumed = health(saved)
    with pytest.raises(DivergedError, match='the same logits'):
        resumed.check_evaluation(16, 0, True)


def test_logits_that_differ_again_start_the_count_over():
    one = health()
    for step, is_constant in ((8, True), (15, True), (16, False), (24, True)):
        one.check_evaluation(step, 0, is_constant)
    with pytest.raises(DivergedError):
        one.check_evaluation(32, 0, True)


def test_constant_logits_in_bfloat16_are_not_dead():
    one = health(dtype='bfloat16')
    for step in (8, 16, 24):
        one.check_evaluation(step, 0, True)


@pytest.mark.parametrize(('loss', 'dead_steps'), [(float('nan'), 0), (float('inf'), 0), (2.3, 8)])
def test_training_diverges(loss, dead_steps):
    health().check_training(1, 2.3, 7)
    with pytest.raises(DivergedError) as e:
        health().check_training(9, loss, dead_steps)
    assert e.value.step == 9
