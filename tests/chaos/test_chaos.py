"""A few rounds of tests/chaos, each as its own command; `python -m tests.chaos` makes more."""

import pytest

from tests.helpers import run_main, run_process

ROUNDS, FILES, STEPS = 11, 12, 600


@pytest.mark.processes
def test_a_round_of_each_disturbance():
    result = run_process('tests.chaos', f'--rounds={ROUNDS}', '--seed=7', timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith('lost 0, silently different 0')
    assert f'{ROUNDS} rounds' in result.stdout


@pytest.mark.processes
def test_damaged_files():
    words = (f'--files={FILES}', '--every=6', '--seed=7')
    result = run_process('tests.chaos.damage', *words, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith('crashed 0, silent 0')
    assert f'{FILES} damaged files' in result.stdout


@pytest.mark.processes
def test_metrics_are_one_line_a_call_and_checkpoints_stay_few():
    result = run_process('tests.chaos.long_run', f'--steps={STEPS}', '--slope=1e9', timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.processes
@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_steps():
    result = run_process('tests.chaos.long_run', '--steps=10000', timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.processes
@pytest.mark.slow
def test_a_hundred_rounds_and_three_hundred_files():
    for words in (('tests.chaos', '--rounds=110'), ('tests.chaos.damage', '--files=300')):
        result = run_process(*words, timeout=7200)
        assert result.returncode == 0, result.stdout + result.stderr


def test_missing_metrics_are_said_and_the_run_goes_on(tmp_path):
    flags = (f'--workdir={tmp_path}', '--config.train.duration=16steps')
    assert run_main(*flags).returncode == 0
    (tmp_path / 'summary.json').unlink()
    (tmp_path / 'metrics.jsonl').unlink()
    result = run_main(*flags)
    assert result.returncode == 0 and result.stderr.count('\n') == 1
    assert result.stderr.startswith('warning: ') and 'metrics.jsonl' in result.stderr
