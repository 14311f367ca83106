"""Checkpoints: a flipped bit that Orbax restores silently, and a disk that stumbles."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nin_jax import distributed
from nin_jax.errors import CheckpointError, SaveError
from nin_jax.runs import checkpoint
from nin_jax.runs.checkpoint import Checkpoints, digest, filled
from nin_jax.train.step import TrainState


def state_at(step: int) -> TrainState:
    """A state whose weights do not compress, so that most bytes on the disk are weights."""
    weights = jax.random.normal(jax.random.key(step), (32, 64))
    zero = jnp.int32(0)
    params = {'conv': {'kernel': weights, 'bias': jnp.zeros(64)}}
    return TrainState(jnp.int32(step), zero, zero, params, opt_state=())


def save(folder: pathlib.Path, *steps: int) -> None:
    with Checkpoints(folder, len(steps), print) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_at(step), {'note': step}, error=None)


def restore(folder: pathlib.Path) -> tuple[TrainState, dict, list[str]]:
    warnings = []
    with Checkpoints(folder, 2, warnings.append) as checkpoints:
        state, meta = checkpoints.restore(state_at(0))
    return state, meta, warnings


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder with the checkpoints of steps 8 and 16."""
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    save(folder, 8, 16)
    return folder


def test_the_newest_comes_back_bit_for_bit(saved):
    state, meta, warnings = restore(saved)
    assert digest(state) == digest(state_at(16)) and not warnings
    assert (meta['note'], meta['digest']) == (16, digest(state))


# ---- damage that only the digest sees ---------------------------------------------------------


def flip(path: pathlib.Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def read_by_orbax(step_folder: pathlib.Path, template: TrainState) -> dict | None:
    """The arrays as Orbax alone restores them; None if it sees the damage."""
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(step_folder.absolute() / 'state', filled(template))
    except Exception:  # Orbax raises many types
        return None


def silent_flips(saved: pathlib.Path, scratch: pathlib.Path) -> list[tuple[pathlib.Path, int, int]]:
    """(file, byte, bit) of single flips in array files after which Orbax restores other numbers."""
    rng, found, whole = np.random.default_rng(0), [], filled(state_at(16))
    files = sorted(p for p in (saved / '16' / 'state').rglob('d/*') if p.is_file())
    assert files
    for path in files:
        for byte in rng.integers(0, path.stat().st_size, 6):
            where, bit = path.relative_to(saved), int(rng.integers(8))
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(saved, scratch)
            flip(scratch / where, byte, bit)
            read = read_by_orbax(scratch / '16', state_at(0))
            if read is not None and digest(read) != digest(whole):
                found.append((where, int(byte), bit))
    return found


def test_a_flipped_bit_that_orbax_does_not_notice_is_found(saved, tmp_path):
    """Orbax compares no checksum of the arrays' own bytes; the SHA-256 beside them does."""
    silent = silent_flips(saved, tmp_path / 'scratch')
    assert len(silent) >= 3  # else this damage proves nothing: Orbax sees it by itself
    for i, (where, byte, bit) in enumerate(silent):
        folder = tmp_path / f'{i}' / 'checkpoints'
        shutil.copytree(saved, folder)
        flip(folder / where, byte, bit)
        with (
            pytest.raises(CheckpointError, match=r'^checkpoint 16 '),
            Checkpoints(folder, 2, print, read_only=True) as checkpoints,
        ):
            checkpoints.restore(state_at(0), step=16)
        state, _, warnings = restore(folder)
        assert digest(state) == digest(state_at(8)), (where, byte, bit)
        assert len(warnings) == 1 and 'checkpoint 16' in warnings[0]
        assert (folder.parent / 'damaged' / '16').is_dir()


def test_the_arrays_of_another_step_are_refused(saved, tmp_path):
    """Whole in themselves, with a digest that matches, but in the wrong folder."""
    folder = tmp_path / 'checkpoints'
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / '16')
    shutil.copytree(folder / '8', folder / '16')
    state, _, warnings = restore(folder)
    assert int(state.step) == 8 and len(warnings) == 1


# ---- a disk that stumbles ---------------------------------------------------------------------


@pytest.mark.parametrize(('failures', 'is_saved'), [(3, True), (4, False)])
def test_saving_is_tried_again_before_the_run_gives_up(tmp_path, monkeypatch, failures, is_saved):
    """As when Orbax meets its own threads, which still write what failed."""
    left, save = [OSError(39, 'Directory not empty')] * failures, ocp.CheckpointManager.save

    def failing(*args, **kwargs):
        if left:
            raise left.pop()
        return save(*args, **kwargs)

    pauses = []
    monkeypatch.setattr(checkpoint.time, 'sleep', pauses.append)
    monkeypatch.setattr(ocp.CheckpointManager, 'save', failing)
    state = state_at(0)
    with Checkpoints(tmp_path, 1, print) as checkpoints:
        if is_saved:
            checkpoints.save(0, state, {}, error=None)
            checkpoints.wait()
            assert digest(checkpoints.restore(state)[0]) == digest(state)
        else:
            with pytest.raises(SaveError, match=r'checkpoint 0 .* not empty'):
                checkpoints.save(0, state, {}, error=None)
    assert pauses == [0, 0.5, 2]


def test_a_write_that_fails_in_the_background_is_tried_again(tmp_path, monkeypatch):
    failures, wait = [], ocp.CheckpointManager.wait_until_finished

    def failing(manager):
        wait(manager)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(ocp.CheckpointManager, 'wait_until_finished', failing)
    with Checkpoints(tmp_path, 2, print) as checkpoints:
        checkpoints.save(8, state_at(8), {}, error=None)
        wait(checkpoints._manager)
        shutil.rmtree(tmp_path / '8')
        failures.append(OSError('no space'))
        checkpoints.wait()
        failures.append(OSError('no reason'))
        with pytest.raises(OSError, match='no reason'):  # all is written: nothing to repeat
            checkpoints.wait()
    assert digest(restore(tmp_path)[0]) == digest(state_at(8))


@pytest.mark.parametrize(
    ('error', 'several', 'is_closed'),
    [
        (None, True, True),
        (KeyError('x'), False, True),
        (KeyError('x'), True, False),  # the others do not know, and closing would wait for them
        (distributed.PeerError('x', 75), True, True),
    ],
)
def test_leaving_closes_unless_others_would_wait(tmp_path, monkeypatch, error, several, is_closed):
    closed = []
    checkpoints = Checkpoints(tmp_path, 2, print)
    monkeypatch.setattr(checkpoints, '_several', several)
    monkeypatch.setattr(checkpoints._manager, 'close', lambda: closed.append(True))
    checkpoints.__exit__(type(error), error, None)
    assert bool(closed) is is_closed


def test_an_error_while_closing_is_raised_after_closing(tmp_path, monkeypatch):
    calls = []

    def close():
        calls.append(True)
        if len(calls) == 1:
            raise OSError('pending')

    checkpoints = Checkpoints(tmp_path, 2, print)
    monkeypatch.setattr(checkpoints._manager, 'close', close)
    with pytest.raises(OSError, match='pending'):
        checkpoints.__exit__(None, None, None)
    assert len(calls) == 2
    calls.clear()
    checkpoints.__exit__(KeyError, KeyError('x'), None)  # the first error says more
    assert len(calls) == 2


# ---- what is on the disk ----------------------------------------------------------------------


def damage_arrays(folder: pathlib.Path, step: int) -> None:
    for path in (folder / str(step) / 'state').rglob('d/*'):
        path.write_bytes(b'')


def test_the_step_of_a_damaged_checkpoint_can_be_saved_again(saved, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(saved, folder)
    damage_arrays(folder, 16)
    with Checkpoints(folder, 2, lambda _: None) as checkpoints:
        assert int(checkpoints.restore(state_at(0))[0].step) == 8
        checkpoints.save(16, state_at(16), {}, error=None)
    assert digest(restore(folder)[0]) == digest(state_at(16))


@pytest.mark.parametrize('damage', ['', '{"error"', '{}', '{"error": null}', '{"error": "x"}'])
def test_a_checkpoint_without_a_readable_error_is_left_out(tmp_path, damage):
    folder, warnings = tmp_path / 'checkpoints', []
    with Checkpoints(folder, 2, print) as checkpoints:
        for step in (8, 16):
            checkpoints.save(step, state_at(step), {}, error=0.5)
    (folder / '16' / 'metrics' / 'metrics').write_text(damage)
    with Checkpoints(folder, 2, warnings.append) as checkpoints:
        assert int(checkpoints.restore(state_at(0))[0].step) == 8
    assert len(warnings) == 1 and warnings[0].startswith('checkpoint 16 is damaged')
    assert (tmp_path / 'damaged' / '16').is_dir() and not (folder / '16').exists()


def test_a_checkpoint_whose_error_is_not_a_file_is_left_out(tmp_path):
    folder, warnings = tmp_path / 'checkpoints', []
    with Checkpoints(folder, 2, print) as checkpoints:
        checkpoints.save(8, state_at(8), {}, error=0.5)
    (folder / '8' / 'metrics' / 'metrics').unlink()
    (folder / '8' / 'metrics' / 'metrics').mkdir()  # reading it is an OSError
    with Checkpoints(folder, 2, warnings.append) as checkpoints:
        assert checkpoints.restore(state_at(0)) is None
    assert len(warnings) == 1


def test_an_unfinished_checkpoint_is_cleaned_up(saved, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(saved, folder)
    unfinished = folder / f'24{ocp.utils.TMP_DIR_SUFFIX}1'
    unfinished.mkdir()
    assert int(restore(folder)[0].step) == 16
    assert not unfinished.exists()


def test_a_step_that_is_not_there_is_named_beside_those_that_are(saved):
    with (
        Checkpoints(saved, 2, print, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=r'no checkpoint at step 9: there are 8, 16$'),
    ):
        checkpoints.restore(state_at(0), step=9)


def test_only_what_orbax_abandons_is_not_printed(monkeypatch):
    """Of an abandoned read, Python prints what it raises while it is collected."""
    printed = []
    monkeypatch.setattr(checkpoint.sys, '__unraisablehook__', lambda news: printed.append(news))
    monkeypatch.setattr(checkpoint.sys, 'unraisablehook', checkpoint.drop_abandoned_read)
    for text in ('Event loop is closed', 'something else'):
        checkpoint.drop_abandoned_read(
            types.SimpleNamespace(exc_value=RuntimeError(text), object=None)
        )
    for place in ('orbax', 'nin_jax'):
        abandon_a_coroutine(f'/packages/{place}/read.py')
    assert [str(news.exc_value) for news in printed] == ['something else', 'of nin_jax']


def abandon_a_coroutine(path: str) -> None:
    """Starts a coroutine of the file `path`, which raises when it is collected, as now."""
    names: dict = {'Suspended': type('Suspended', (), {'__await__': lambda self: iter([None])})}
    source = f"""
async def read():
    try:
        await Suspended()
    finally:
        raise ValueError('of {pathlib.Path(path).parent.name}')
"""
    exec(compile(source, path, 'exec'), names)
    names['read']().send(None)


@pytest.mark.parametrize('exists', [True, False])
def test_process_0_decides_whether_to_save(tmp_path, monkeypatch, exists):
    """Its list of checkpoints says so; another process may see other files on a shared disk."""
    answers = [json.dumps(exists), json.dumps(not exists)]
    monkeypatch.setattr(checkpoint.distributed, 'gather', lambda text: answers)
    with Checkpoints(tmp_path, 2, print) as checkpoints:
        checkpoints.save(8, state_at(8), {}, error=None)
        checkpoints.wait()
    assert (tmp_path / '8').exists() is not exists


def test_the_best_is_kept_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, 2, print) as checkpoints:
        for step, error in ((1, 0.5), (2, 0.1), (3, 0.3), (4, None), (5, 0.2)):
            checkpoints.save(step, state_at(step), {}, error=error)
        checkpoints.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 4, 5]


def test_the_digest_covers_paths_dtypes_shapes_and_bytes():
    tree = {'a': np.arange(6, dtype=np.float32)}
    others = (
        {'b': tree['a']},
        {'a': tree['a'].astype(np.int32)},
        {'a': tree['a'].reshape(2, 3)},
        {'a': np.nextafter(tree['a'], 9)},
        {'a': tree['a'], 'b': tree['a'][:0]},
    )
    assert len({digest(t) for t in (tree, *others)}) == 6
    assert digest({'a': jnp.asarray(tree['a'])}) == digest(tree)


def test_fields_that_hold_nothing_are_not_saved():
    assert set(filled(state_at(0))) == {'step', 'attempt', 'dead_steps', 'params'}
    with_ema = dataclasses.replace(state_at(0), ema={'a': jnp.ones(2)})
    assert 'ema' in filled(with_ema)
