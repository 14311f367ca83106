"""Flags and their mistakes; passwords, which nobody may see."""

import contextlib
import os
import pathlib
import subprocess
import sys

import pytest

from launch.sweep import __main__ as entry
from launch.sweep import flags
from tests.helpers import ROOT
from tests.launch.sweep.server import Postgres, programs
from tests.launch.sweep.stress import PROGRAM, write_sweep

DIGITS = 'experiments/sweeps/digits.py'
SECRET = 'hush-hush-9'


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ([], '--sweep'),
        (['--sweep=experiments/sweeps/digit.py', '--study=x'], f"did you mean '{DIGITS}'?"),
        (['--sweep=README.md', '--study=x'], "'README.md'"),
        ([f'--sweep={DIGITS}', '--study=x', '--config.optim.lr=1'], 'optim.lr'),
        ([f'--sweep={DIGITS}', '--study=x', '--workes=2'], "'--workes=2'"),
        ([f'--sweep={DIGITS}', '--study=x', '--workers=0'], '--workers=0'),
        ([f'--sweep={DIGITS}', '--study=x', '--storage=oracle'], "--storage='oracle'"),
        ([f'--sweep={DIGITS}', '--study=x', '--storage_file=/nowhere'], '/nowhere'),
        (['report', '--study=x', '--workdir=/nowhere'], "'/nowhere/study.db'"),
        (['report', '--study=x', '--workdir=gs://bucket/x'], "'gs://bucket/x'"),
    ],
)
def test_a_mistake_in_the_command_gets_one_sentence(words, expected, tmp_path, capsys):
    where = [] if 'report' in words else [f'--workdir={tmp_path}']
    try:
        status = entry.main([*words, *where])
    except SystemExit as e:
        status = e.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and expected in error and error.count('\n') == 1


@pytest.mark.parametrize(
    ('url', 'secret', 'shown'),
    [
        ('postgresql://u:pass@h:5/d', 'pass', 'postgresql://u@h:5/d'),
        ('postgresql://u:p%40s:s/x@h/d', 'p%40s:s/x', 'postgresql://u@h/d'),
        ('postgresql://u:p@ss@h/d', 'p@ss', 'postgresql://u@h/d'),
        ('postgresql://u@h/d?password=pass&a=1', 'pass', 'postgresql://u@h/d?a=1'),
        ('postgresql://u@h:5432/d', '', 'postgresql://u@h:5432/d'),
        ('sqlite:////folder/a@b.db', '', 'sqlite:////folder/a@b.db'),
    ],
)
def test_the_parts_of_a_url(url, secret, shown):
    storage = flags.Storage(url)
    assert (storage.secret, storage.shown) == (secret, shown)
    assert not secret or secret not in repr(storage) + str(vars(storage)).replace(url, '')
    assert storage.scrub('plain') == 'plain'
    assert not secret or secret not in storage.scrub(f'no host in {url}')


@pytest.mark.parametrize(
    'url',
    [
        f'postgresql://u:{SECRET}@127.0.0.1:9/d',
        f'postgresql://u:{SECRET}@@127.0.0.1:9/d',
        f'postgresql://u:a@{SECRET}@127.0.0.1:9/d',
        f'postgresql://u:{SECRET}@127.0.0.1:port/d',
        f'postgresql://u@127.0.0.1:9/d?password={SECRET}',
        f'oracle+none://u:{SECRET}@h/d',
        f'u:{SECRET}@h/d',
    ],
)
@pytest.mark.parametrize('way', ['flag', 'file', 'variable'])
def test_no_sentence_shows_a_password(url, way, tmp_path, capsys, monkeypatch):
    """Neither the sentence nor the URL in it."""
    from launch.sweep import study

    monkeypatch.setattr(study, 'STARTUP_S', 0.0)
    words = {'flag': [f'--storage={url}'], 'file': [f'--storage_file={tmp_path}/url']}.get(way, [])
    (tmp_path / 'url').write_text(url + '\n')
    monkeypatch.setenv('NIN_STORAGE', url if way == 'variable' else '')
    sweep = [f'--sweep={write_sweep(tmp_path, 1)}', '--study=s', f'--workdir={tmp_path}']
    for argv in ([*sweep, *words], ['report', '--study=s', f'--workdir={tmp_path}', *words]):
        assert entry.main(argv, PROGRAM) in (2, 75)
        out = ''.join(capsys.readouterr())
        assert out.count('\n') == 1 and SECRET not in out


@pytest.mark.skipif(programs() is None, reason='apt-get install postgresql')
@pytest.mark.processes
def test_a_password_is_on_no_screen_in_no_file_and_on_no_command_line(tmp_path):
    """By a flag, whose command line is replaced at once; by a file, a variable and ~/.pgpass."""
    sweep = [
        f'--sweep={write_sweep(tmp_path, 2)}',
        f'--workdir={tmp_path / "out"}',
        '--devices=cpu',
    ]
    with Postgres(SECRET) as server:
        full = server.url.replace('sweeper@', f'sweeper:{SECRET}@')
        (tmp_path / 'url').write_text(full)
        pgpass = tmp_path / 'pgpass'
        pgpass.write_text(f'127.0.0.1:{server.port}:*:sweeper:{SECRET}\n')
        pgpass.chmod(0o600)
        ways = [
            ([f'--storage={full}'], {}),
            (['--storage', full], {}),
            ([f'--storage_file={tmp_path}/url'], {}),
            ([], {'NIN_STORAGE': full}),
            ([f'--storage={server.url}'], {'PGPASSWORD': SECRET}),
            ([f'--storage={server.url}'], {'PGPASSFILE': str(pgpass)}),
        ]
        for number, (words, env) in enumerate(ways):
            command = [sys.executable, '-m', 'launch.sweep', *sweep, f'--study=s{number}', *words]
            # A mistake that only the run finds ends it at once; what it says is in the log
            process = subprocess.Popen(
                [*command, '--config.devices=64'],
                cwd=ROOT,
                env=os.environ | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            lines = watch_command_lines(process)
            out = process.communicate(timeout=120)[0]
            assert process.returncode == 2 and 'did not start' in out, out
            assert SECRET not in out and lines and not any(SECRET in line for line in lines)
            report = run_report(f's{number}', tmp_path, words, env)
            assert SECRET not in report and '2 points: 2 waiting' in report
        wrong = run_report('s0', tmp_path, [f'--storage={full[:-9]}x/postgres'], {})
        assert SECRET not in wrong
    for path in tmp_path.rglob('*'):
        if path.is_file() and path.name not in ('url', 'pgpass'):
            assert SECRET.encode() not in path.read_bytes(), path


def run_report(name: str, folder: pathlib.Path, words: list[str], env: dict) -> str:
    command = ['report', f'--study={name}', f'--workdir={folder / "out"}', *words]
    result = subprocess.run(
        [sys.executable, '-m', 'launch.sweep', *command],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    return result.stdout + result.stderr


def watch_command_lines(process: subprocess.Popen) -> set[str]:
    """The command lines of the sweep's runs, and its own once it has replaced it."""
    from tests.launch.sweep.stress import children

    seen = set()
    while process.poll() is None:
        for pid in children(process.pid):
            with contextlib.suppress(OSError):
                seen.add(pathlib.Path(f'/proc/{pid}/cmdline').read_text())
                seen.add(pathlib.Path(f'/proc/{process.pid}/cmdline').read_text())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    return seen
