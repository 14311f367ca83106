"""launch.attempts: starts without a new checkpoint are counted and capped."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def attempt(workdir: pathlib.Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'launch.attempts', '--most=3', '--']
    command += words or ('sh', '-c', 'exit 75', f'--workdir={workdir}')
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=60
    )


def statuses(workdir: pathlib.Path, times: int, **env: str) -> list[int]:
    return [attempt(workdir, **env).returncode for _ in range(times)]


def save(workdir: pathlib.Path, step: int | str) -> None:
    (workdir / 'checkpoints' / str(step)).mkdir(parents=True)


def test_starts_without_progress_are_capped_and_a_rerun_counts_afresh(tmp_path):
    assert statuses(tmp_path, 3) == [75] * 3
    refused = attempt(tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith('error: ')
    assert str(tmp_path) in refused.stderr and refused.stderr.count('\n') == 1
    assert statuses(tmp_path, 1) == [75]


def test_a_new_checkpoint_starts_the_count_again(tmp_path):
    for step in range(0, 20, 10):
        save(tmp_path, step)
        assert statuses(tmp_path, 3) == [75] * 3
    assert statuses(tmp_path, 1) == [2]


def test_what_is_no_newer_finished_checkpoint_is_no_progress(tmp_path):
    save(tmp_path, 20)
    assert statuses(tmp_path, 2) == [75] * 2
    (tmp_path / 'checkpoints' / '20').rmdir()
    save(tmp_path, 10)
    save(tmp_path, '30.orbax-checkpoint-tmp')
    assert statuses(tmp_path, 2) == [75, 2]


@pytest.mark.parametrize('rank', ['JOB_COMPLETION_INDEX', 'SKYPILOT_NODE_RANK'])
def test_only_the_first_of_several_processes_counts(tmp_path, rank):
    assert statuses(tmp_path, 5, **{rank: '1'}) == [75] * 5
    assert not (tmp_path / 'attempts.json').exists()
    assert statuses(tmp_path, 4, **{rank: '0'}) == [75, 75, 75, 2]


def test_the_command_takes_the_place_of_the_process(tmp_path):
    done = attempt(tmp_path, 'sh', '-c', 'echo "$@"', '_', '--workdir', str(tmp_path / 'w'), 'a b')
    assert done.returncode == 0 and done.stdout == f'--workdir {tmp_path}/w a b\n'
    assert (tmp_path / 'w' / 'attempts.json').exists()
    done = attempt(tmp_path, 'sh', '-c', 'kill -9 $$', f'--workdir={tmp_path}')
    assert done.returncode == -9


def test_a_count_cut_short_by_a_kill_is_none(tmp_path):
    (tmp_path / 'attempts.json').write_text('{"step": 1')
    assert statuses(tmp_path, 1) == [75]


@pytest.mark.parametrize(
    'words', [[], ['--most=0', '--', 'true'], ['true'], ['--', 'no-such-program']]
)
def test_mistakes(words):
    command = [sys.executable, '-m', 'launch.attempts', *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


@pytest.mark.parametrize('workdir', ['file/run', 'nowhere://bucket/run'])
def test_a_workdir_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / 'file').touch()
    workdir = workdir if ':' in workdir else str(tmp_path / workdir)
    words = ['sh', '-c', 'exit 75', f'--workdir={workdir}']
    done = attempt(tmp_path, *words, NIN_RETRY_SECONDS='0')
    assert done.returncode == 2 and workdir in done.stderr and done.stderr.count('\n') == 1
