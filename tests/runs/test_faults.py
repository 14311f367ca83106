"""Two processes, and what happens to one of them: the other ends with 75, and a rerun goes on.

Each run is interrupted after its first checkpoint. The rerun must end with the same weights, bit
for bit, as two undisturbed processes.
"""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.watchdog import watchdog
from tests.chaos.lab import mounted, weights
from tests.helpers import ROOT
from tests.pairs import finish, pair, wait_for_checkpoint

SETTINGS = ('--config.train.steps_per_call=1', '--config.train.duration=80steps')
SOON = '--config.train.stall_timeout=60'
ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='needs prlimit')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> str:
    """The digest of the weights of two undisturbed processes, the second of which starts late."""
    workdir = tmp_path_factory.mktemp('two')
    with pair(workdir, *SETTINGS, late_s=5) as processes:
        statuses, _, errors = finish(processes)
    assert statuses == [0, 0], errors
    return weights(workdir)


def assert_goes_on(workdir: pathlib.Path, undisturbed: str) -> None:
    """Runs the same command again in both processes."""
    with pair(workdir, *SETTINGS) as processes:
        statuses, outputs, errors = finish(processes)
    assert statuses == [0, 0], errors
    assert 'resuming at step' in outputs[0]
    assert weights(workdir) == undisturbed


def assert_says(error: str, *words: str) -> None:
    """The last line on stderr is the only sentence; above it, the runtime may log."""
    *others, last = error.splitlines()
    assert last.startswith('error: ') and all(w in last for w in words), error
    assert not any(line.startswith(('error: ', 'Traceback')) for line in others), error


@pytest.mark.processes
@pytest.mark.parametrize('killed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process(tmp_path, undisturbed, killed):
    with pair(tmp_path, *SETTINGS) as processes:
        wait_for_checkpoint(tmp_path, processes)
        processes[killed].kill()
        [status], _, [error] = finish([processes[1 - killed]])
    assert status == os.EX_TEMPFAIL, error
    assert_says(error, 'run the same command again')
    assert_goes_on(tmp_path, undisturbed)


PATIENT = """
from experiments import cli, main
from nin_jax import distributed
distributed.HEARTBEAT_S = 600
cli.run(main.main)
"""


@pytest.mark.processes
@pytest.mark.parametrize('hung', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_hung_process(tmp_path, undisturbed, hung):
    with pair(tmp_path, *SETTINGS, SOON, main=[sys.executable, '-c', PATIENT]) as processes:
        wait_for_checkpoint(tmp_path, processes)
        processes[hung].send_signal(signal.SIGSTOP)
        [status], _, [error] = finish([processes[1 - hung]])
        assert status == os.EX_TEMPFAIL, error
        assert_says(error, 'train.stall_timeout')
        assert error.count('\n') == 1, error  # nothing from the runtime

        processes[hung].send_signal(signal.SIGCONT)
        [status], _, [error] = finish([processes[hung]])
        assert status == os.EX_TEMPFAIL, error
        assert_says(error, 'run the same command again')
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize('hung', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_abort_of_the_runtime(tmp_path, undisturbed, hung):
    """The heartbeats of a hung process stop long before the default of train.stall_timeout."""
    with pair(tmp_path, *SETTINGS) as processes:
        wait_for_checkpoint(tmp_path, processes)
        processes[hung].send_signal(signal.SIGSTOP)
        [status], _, [error] = finish([processes[1 - hung]])
    assert status == os.EX_TEMPFAIL, error
    assert_says(error, 'the JAX runtime aborted', 'run the same command again')
    assert_goes_on(tmp_path, undisturbed)


IMPATIENT = """
import functools
from experiments import cli, main
from nin_jax import distributed
distributed.join = functools.partial(distributed.join, timeout_s=5)
cli.run(main.main)
"""


@pytest.mark.processes
def test_a_process_that_starts_too_late(tmp_path, undisturbed):
    with pair(tmp_path, *SETTINGS) as processes:
        wait_for_checkpoint(tmp_path, processes)
        processes[0].send_signal(signal.SIGTERM)  # they stop together
        assert finish(processes)[0] == [os.EX_TEMPFAIL] * 2
    with pair(tmp_path, *SETTINGS, late_s=25, main=[sys.executable, '-c', IMPATIENT]) as processes:
        statuses, _, errors = finish(processes)
    assert statuses == [os.EX_TEMPFAIL] * 2, errors
    for error in errors:
        assert_says(error, '--distributed=localhost:')
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.processes
def test_a_full_disk(tmp_path, undisturbed):
    with mounted(tmp_path / 'disk', '-t', 'tmpfs', '-o', 'size=32m', 'tmpfs') as small:
        if not small:
            pytest.skip('this user cannot mount a tmpfs')
        workdir, filler = tmp_path / 'disk' / 'run', tmp_path / 'disk' / 'filler'
        with pair(workdir, *SETTINGS, '--config.checkpoint.keep=99') as processes:
            wait_for_checkpoint(workdir, processes)
            with filler.open('wb', buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(1 << 12))
            statuses, _, errors = finish(processes)
        assert statuses == [os.EX_TEMPFAIL] * 2, errors
        for error in errors:  # either process can be the first that notices
            assert_says(error)
        assert any('disk' in error.splitlines()[-1] for error in errors), errors
        filler.unlink()
        assert_goes_on(workdir, undisturbed)


@ON_LINUX
@pytest.mark.processes
def test_a_process_that_cannot_save(tmp_path, undisturbed):
    """Both would wait in Orbax's barrier, of which only one knows that it cannot be reached."""
    with pair(tmp_path, *SETTINGS, SOON) as processes:
        wait_for_checkpoint(tmp_path, processes)
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (0, unlimited))
        statuses, _, errors = finish(processes)
    assert statuses == [os.EX_TEMPFAIL] * 2, errors
    assert any('train.stall_timeout' in e and "'checkpoint'" in e for e in errors), errors
    for error in errors:
        assert_says(error, 'run the same command again')
    assert_goes_on(tmp_path, undisturbed)


# ---- the watchdog alone -------------------------------------------------------------------------

STUCK = """
import time
from nin_jax.runs.metrics import Stopwatch
from nin_jax.runs.watchdog import watchdog
clock = Stopwatch()
with watchdog(clock, 0.4), clock('checkpoint'):
    time.sleep(600)
"""


def test_the_watchdog_names_the_part_that_hangs():
    ended = subprocess.run(
        [sys.executable, '-c', STUCK], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == os.EX_TEMPFAIL
    assert_says(ended.stderr, "'checkpoint'", 'train.stall_timeout')


@pytest.mark.parametrize('timeout_s', [2.0, 0.0])
def test_progress_and_a_timeout_of_zero_keep_the_process_and_no_thread_stays(
    timeout_s, monkeypatch
):
    clock, ended = Stopwatch(), []
    monkeypatch.setattr('nin_jax.runs.watchdog.give_up', ended.append)
    with watchdog(clock, timeout_s):
        assert watchdogs() == bool(timeout_s)
        for _ in range(30 if timeout_s else 1):
            with clock('train'):
                time.sleep(0.1)
    assert not ended and not watchdogs()


def watchdogs() -> int:
    return sum(thread.name == 'watchdog' for thread in threading.enumerate())
