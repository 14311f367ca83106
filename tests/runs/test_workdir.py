"""The folder of a run: what a run that never started leaves behind."""

import dataclasses
import errno
import shutil

import pytest

from nin_jax import commands
from nin_jax.data import pipeline
from nin_jax.errors import CheckpointError, ConfigError, UserError
from nin_jax.pretrained import bundled
from nin_jax.runs.metrics import Metrics, Stopwatch
from nin_jax.runs.workdir import flat_config, locked, write_or_check_config
from tests.helpers import plan_of, tiny_config


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
    with pytest.raises(CheckpointError, match='damaged'):
        commands.train(config, tmp_path, command='')
    assert (tmp_path / 'config.json').exists()


def test_a_config_can_change_until_the_first_step(tmp_path):
    """Ctrl-C or a kill while the data are read leaves config.json behind."""
    config = tiny_config()
    write_or_check_config(tmp_path, flat_config(config))
    config.optim.lr = 0.01
    write_or_check_config(tmp_path, flat_config(config))
    (tmp_path / 'metrics.jsonl').write_text('{}\n')
    config.optim.lr = 0.02
    with pytest.raises(CheckpointError, match=r'optim\.lr=0\.01'):
        write_or_check_config(tmp_path, flat_config(config))


def test_a_slow_disk_is_not_another_process(tmp_path):
    with pytest.raises(TimeoutError), locked(tmp_path):
        raise TimeoutError(errno.ETIMEDOUT, 'Connection timed out')
    with (
        locked(tmp_path),
        pytest.raises(UserError, match='another process is running'),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ('text', 'accepted'),
    [
        ('', True),  # deleted, and the run was killed again before the next checkpoint
        ('{"kind": "eval", "attempt": 0, "step": 12, "loss": 1, "error": 1}\n', True),
        ('{"kind": "eval", "attempt": 0, "step": 8, "loss": 1, "error": 1}\n', False),
        ('{"kind": "eval"}\n', False),
    ],
)
def test_deleted_metrics_are_accepted_twice(tmp_path, capsys, text, accepted):
    (tmp_path / 'metrics.jsonl').write_text(text)

    def resume():
        plan = plan_of(total_steps=24)
        Metrics(tmp_path, plan, first=(0, 8), clock=Stopwatch(), digest='of other lines').close()

    if accepted:
        resume()
        assert 'metrics.jsonl' in capsys.readouterr().err
        assert (tmp_path / 'metrics.jsonl').read_text() == ''
    else:
        with pytest.raises(CheckpointError, match='is damaged'):
            resume()


def test_a_run_does_not_go_on_with_other_images(tmp_path, monkeypatch):
    config = tiny_config()
    config.train.duration = '8steps'
    assert commands.train(config, tmp_path, command='') == 0
    (tmp_path / 'summary.json').unlink()
    assert commands.train(config, tmp_path, command='') == 0
    (tmp_path / 'summary.json').unlink()
    load = pipeline.open_source

    def inverted(*args):
        arrays = load(*args)
        return dataclasses.replace(arrays, images=255 - arrays.images)

    monkeypatch.setattr(pipeline, 'open_source', inverted)
    with pytest.raises(CheckpointError, match='other images than those in'):
        commands.train(config, tmp_path, command='')


def test_a_release_is_no_workdir(tmp_path):
    shutil.copytree(bundled.WEIGHTS / 'mnist', tmp_path / 'release')
    before = (tmp_path / 'release' / 'config.json').read_bytes()
    with pytest.raises(UserError, match='holds a release'):
        commands.train(tiny_config(), tmp_path / 'release', command='')
    assert (tmp_path / 'release' / 'config.json').read_bytes() == before


def test_checkpoints_of_another_run_are_refused(tmp_path):
    config = tiny_config()
    config.train.duration = '8steps'
    for lr, name in ((0.1, 'ours'), (0.05, 'theirs')):
        config.optim.lr = lr
        assert commands.train(config, tmp_path / name, command='') == 0
    shutil.rmtree(tmp_path / 'ours' / 'checkpoints')
    shutil.copytree(tmp_path / 'theirs' / 'checkpoints', tmp_path / 'ours' / 'checkpoints')
    (tmp_path / 'ours' / 'summary.json').unlink()
    config.optim.lr = 0.1
    with pytest.raises(CheckpointError, match=r'belongs to another run, with optim\.lr=0\.05'):
        commands.train(config, tmp_path / 'ours', command='')
