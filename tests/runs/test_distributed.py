"""Two processes that train one run, over loopback on the CPU: the same numbers, and ends together.

On one machine two processes of one device came out the same bit for bit, two of two devices with
losses off by 1e-7 and weights by 5e-8 of the largest; TOLERANCE leaves room for other CPUs.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nin_jax import distributed
from nin_jax.errors import UserError
from nin_jax.pretrained import trained
from tests.helpers import ROOT, assert_refused, metrics, run_main, summary
from tests.pairs import finish, free_port, pair, wait_for_lines

TOLERANCE = 1e-5
SETTINGS = ('--config.train.steps_per_call=1', '--config.train.duration=40steps')


def steps(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*'))


def params(workdir) -> np.ndarray:
    """The newest checkpoint's, as one long vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(trained.load_run(workdir).params)])


def assert_same_run(workdir, undisturbed):
    ours, theirs = params(workdir), params(undisturbed)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    for kind in ('train', 'eval'):
        ours, theirs = metrics(workdir, kind), metrics(undisturbed, kind)
        assert [m['step'] for m in ours] == [m['step'] for m in theirs]
        np.testing.assert_allclose(
            [m['loss'] for m in ours], [m['loss'] for m in theirs], rtol=TOLERANCE
        )


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The whole run in one process."""
    workdir = tmp_path_factory.mktemp('one')
    result = run_main(f'--workdir={workdir}', *SETTINGS)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.processes
@pytest.mark.parametrize('signalled', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_two_processes_stop_together_and_one_goes_on(tmp_path, undisturbed, signalled):
    with pair(tmp_path, *SETTINGS) as processes:
        wait_for_lines(tmp_path, 5, processes)
        processes[signalled].send_signal(signal.SIGTERM)
        statuses, outputs, errors = finish(processes)
    assert statuses == [os.EX_TEMPFAIL, os.EX_TEMPFAIL], errors
    assert '2 x cpu in 2 processes' in outputs[0] and 'run the same command again' in outputs[0]
    assert outputs[1] == ''
    stopped = summary(tmp_path)['step']
    assert 5 <= stopped < 40 and steps(tmp_path)[-1] == stopped
    written_by = tmp_path / 'checkpoints' / str(stopped) / 'state'
    assert {p.name for p in written_by.glob('ocdbt.*')} == {'ocdbt.process_0', 'ocdbt.process_1'}
    (tmp_path / 'two.jsonl').write_text((tmp_path / 'metrics.jsonl').read_text())

    result = run_main(f'--workdir={tmp_path}', *SETTINGS)
    assert result.returncode == 0 and f'resuming at step {stopped}' in result.stdout
    assert (tmp_path / 'metrics.jsonl').read_text().startswith((tmp_path / 'two.jsonl').read_text())
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.processes
def test_one_process_stops_and_two_go_on_past_a_damaged_checkpoint(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'summary.json').unlink()
    for path in (tmp_path / 'checkpoints' / '40' / 'state').rglob('d/*'):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    before = steps(tmp_path)[-2]
    with pair(tmp_path, *SETTINGS) as processes:
        statuses, outputs, errors = finish(processes)
    assert statuses == [0, 0], errors
    assert errors[0].count('checkpoint 40 is damaged') == 1 and 'warning' not in errors[1]
    assert f'resuming at step {before}' in outputs[0]
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.processes
def test_two_processes_start_from_a_run_and_draw_class_maps(tmp_path, undisturbed):
    flags = (f'--config.init.weights={undisturbed}', '--config.eval.pictures=4')
    with pair(tmp_path, *SETTINGS, *flags) as processes:
        statuses, _, errors = finish(processes)
    assert statuses == [0, 0], errors
    assert metrics(tmp_path, 'train')[0]['loss'] < metrics(undisturbed, 'train')[0]['loss']


@pytest.mark.processes
def test_a_mistake_ends_both_processes_with_one_sentence(undisturbed):
    with pair(undisturbed, *SETTINGS, '--config.optim.lr=0.05') as processes:
        statuses, _, errors = finish(processes)
    assert statuses == [2, 2]
    assert errors[0].count('error: ') == 1 and 'optim.lr=0.1' in errors[0]
    assert 'error' not in errors[1]


NOT_SHARED = """
import sys
from experiments import cli, main
if any(word.endswith(',2,1') for word in sys.argv):
    sys.argv = [w + '/other' if w.startswith('--workdir=') else w for w in sys.argv]
cli.run(main.main)
"""


@pytest.mark.processes
def test_folders_that_are_not_shared_are_refused(tmp_path):
    with pair(tmp_path, *SETTINGS, main=[sys.executable, '-c', NOT_SHARED]) as processes:
        statuses, _, errors = finish(processes)
    assert statuses == [2, 2], errors
    assert 'is not the same folder for all processes' in errors[0] and '(on process 1)' in errors[0]
    assert 'Traceback' not in errors[0] + errors[1]


@pytest.mark.parametrize(
    'where', ['', 'localhost', 'localhost:1,2', 'localhost:1,2,2', 'localhost:99999,2,0', 'a:1,x,0']
)
def test_flag_that_cannot_be_read_is_told(where):
    with pytest.raises(UserError, match='HOST:PORT,COUNT,INDEX'):
        distributed.join(where)


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllGather failed: Read error'), os.EX_TEMPFAIL),
        (ValueError('UNKNOWN: Gloo AllGather failed: Connection closed'), os.EX_TEMPFAIL),
        (ValueError('operands could not be broadcast together'), 1),
    ],
)
def test_a_lost_process_is_told_from_a_bug(error, status, capsys):
    assert distributed.explain(error) == status
    assert ('run the same command again' in capsys.readouterr().err) is (status != 1)


def test_port_in_use_is_told():
    with socket.socket() as s:
        s.bind(('', 0))
        s.listen()
        with pytest.raises(UserError, match='cannot listen there'):
            distributed.join(f'localhost:{s.getsockname()[1]},2,0')


@pytest.mark.processes
def test_missing_processes_and_missing_cluster_are_told(tmp_path):
    waiting = [
        subprocess.Popen(
            [
                sys.executable,
                '-c',
                f"from nin_jax import distributed; distributed.join('{where}', timeout_s=2)",
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for where in (f'localhost:{free_port()},2,{i}' for i in range(2))
    ]
    errors = [p.communicate(timeout=300)[1] for p in waiting]
    statuses = [p.returncode for p in waiting]
    assert statuses == [os.EX_TEMPFAIL] * 2
    assert all(e.startswith('error: ') and e.count('\n') == 1 for e in errors), errors
    result = run_main(f'--workdir={tmp_path}', '--distributed=auto')
    assert_refused(result, '--distributed=auto', kind='UserError')


def test_only_training_takes_several_processes(tmp_path):
    result = run_main(f'--workdir={tmp_path}', '--mode=eval', '--distributed=localhost:1,2,0')
    assert_refused(result, '--mode=eval', '--distributed', kind='UserError')
