"""The folder of a run: what a run that never started leaves behind."""

import pytest
from helpers import tiny_config

from nin_jax import commands
from nin_jax.errors import ConfigError


def test_a_corrected_command_is_accepted(tmp_path):
    """A batch larger than the split shows only once the data are read."""
    config = tiny_config()
    config.train.batch_size = 512
    with pytest.raises(ConfigError, match=r'train\.batch_size=512'):
        commands.train(config, tmp_path, command='')
    assert not (tmp_path / 'config.json').exists() and not (tmp_path / 'preprocess.npz').exists()
    config.train.batch_size = 32
    config.train.duration = '4steps'
    assert commands.train(config, tmp_path, command='') == 0


def test_a_run_that_has_started_keeps_its_config(tmp_path):
    config = tiny_config()
    config.train.duration = '4steps'
    assert commands.train(config, tmp_path, command='') == 0
    (tmp_path / 'summary.json').unlink()
    (tmp_path / 'metrics.jsonl').write_text('{}\n')
    with pytest.raises(Exception, match='damaged'):
        commands.train(config, tmp_path, command='')
    assert (tmp_path / 'config.json').exists()
