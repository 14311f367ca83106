"""launch/local.sh: several processes on this machine."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from tests.helpers import ROOT, TINY_PAGE, wait_until
from tests.stand_ins import BASH, on_path

NEW_BASH = subprocess.run([BASH, '-c', '((BASH_VERSINFO[0]*100+BASH_VERSINFO[1]>=501))']).returncode
needs_new_bash = pytest.mark.skipif(NEW_BASH != 0, reason='local.sh needs bash 5.1')

# Notes its flags; ends as its plan says, or 0.2 s after being asked to, if asked but once.
STAND_IN = r"""
import os, pathlib, signal, sys, time
folder, flags, asked = pathlib.Path(os.environ['OUT']), sys.argv[1:], []
index = flags[-1].rsplit(',', 1)[1]
for s in (signal.SIGTERM, signal.SIGINT):
    signal.signal(s, lambda *_: asked.append(s))
(folder / f'gpu{index}').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', ''))
(folder / f'flags{index}').write_text(' '.join(flags))
plan = folder / f'plan{index}'
if plan.exists():
    while not all((folder / f'flags{i}').exists() for i in range(2)):
        time.sleep(0.01)
    sys.exit(int(plan.read_text()))
while not asked or os.environ.get('STUBBORN') == index:
    time.sleep(0.02)
end = time.monotonic() + 0.2
while time.monotonic() < end:
    time.sleep(0.02)
sys.exit(75 if len(asked) == 1 else 9)
"""


def local(folder: pathlib.Path, *words: str, **environment: str) -> subprocess.Popen:
    (folder / 'stand_in.py').write_text(STAND_IN)
    env = on_path(folder) | {'NIN_COMMAND': f'python {folder}/stand_in.py'} | environment
    return subprocess.Popen(
        [BASH, 'launch/local.sh', *words],
        cwd=ROOT,
        env=env,
        # A background job's children ignore SIGINT from their birth, and bash cannot undo that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_new_bash
@pytest.mark.parametrize('asked', [signal.SIGTERM, signal.SIGINT])
def test_local_hands_on_signals_once(tmp_path, asked):
    process = local(tmp_path, '2', '--config=a page', '--workdir=w')
    files = [tmp_path / f'flags{i}' for i in range(2)]
    wait_until(lambda: all(f.exists() for f in files))
    time.sleep(0.1)
    if asked == signal.SIGINT:
        os.killpg(process.pid, asked)  # as a terminal does at Ctrl-C
    else:
        process.send_signal(asked)
    assert process.wait(timeout=60) == 75
    first, second = [f.read_text() for f in files]
    match = re.fullmatch(r'--config=a page --workdir=w --distributed=(127.0.0.1:\d+),2,0', first)
    assert match and second.endswith(f' --distributed={match[1]},2,1')


@needs_new_bash
@pytest.mark.parametrize('plans, status', [('00', 0), ('11', 1), ('01', 1), ('20', 2)])
def test_local_ends_with_the_worst_status(tmp_path, plans, status):
    for i, plan in enumerate(plans):
        (tmp_path / f'plan{i}').write_text(plan)
    assert local(tmp_path, '2').wait(timeout=60) == status


@needs_new_bash
@pytest.mark.parametrize('status', [134, 137, 143])
def test_local_ends_with_75_if_one_was_ended_by_a_signal(tmp_path, status):
    for i, plan in enumerate((0, status)):
        (tmp_path / f'plan{i}').write_text(str(plan))
    assert local(tmp_path, '2').wait(timeout=60) == os.EX_TEMPFAIL


@needs_new_bash
@pytest.mark.parametrize('stubborn', ['', '0'])
def test_local_ends_the_others_when_one_dies(tmp_path, stubborn):
    (tmp_path / 'plan1').write_text('3')
    grace = '0.3' if stubborn else '3'  # from the first end to TERM, and from TERM to KILL
    process = local(tmp_path, '2', STUBBORN=stubborn, NIN_GRACE_SECONDS=grace)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    told = [line for line in err.splitlines() if line.startswith('process ')]
    lines = ['process 1 of 2 ended with status 3', 'process 0 of 2 ended with status 137']
    assert told == lines[: 2 if stubborn else 1]


@needs_new_bash
@pytest.mark.parametrize(
    ('visible', 'taken'), [({}, ['0', '1']), ({'CUDA_VISIBLE_DEVICES': '2,5'}, ['2', '5'])]
)
def test_local_takes_each_gpu(tmp_path, monkeypatch, visible, taken):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    on_path(tmp_path, **{'nvidia-smi': 'printf "GPU 0: A\\nGPU 1: A\\n"'})
    for i in range(2):
        (tmp_path / f'plan{i}').write_text('0')
    assert local(tmp_path, 'gpus', **visible).wait(timeout=60) == 0
    assert [(tmp_path / f'gpu{i}').read_text() for i in range(2)] == taken


@needs_new_bash
@pytest.mark.parametrize('words', [[], ['0'], ['two'], ['--config=x'], ['gpus']])
def test_local_tells_mistakes(words, tmp_path):
    on_path(tmp_path, **{'nvidia-smi': 'exit 9'})
    process = local(tmp_path, *words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and re.fullmatch('error: .*\n', err)


@pytest.mark.slow
@needs_new_bash
def test_local_trains_with_two_processes(tmp_path):
    env = on_path(tmp_path) | {'JAX_PLATFORMS': 'cpu'}
    words = ['launch/local.sh', '2', f'--config={TINY_PAGE}', f'--workdir={tmp_path}/run']
    done = subprocess.run([BASH, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'summary.json').exists()
