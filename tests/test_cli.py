"""What a user types: every command of the README, and mistakes."""

import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, run_main

README = (ROOT / 'README.md').read_text()
COMMANDS = [
    shlex.split(line.split('&&')[-1])
    for block in re.findall(r'```bash\n(.*?)```', README, re.S)
    for line in block.splitlines()
]
MAIN = [c for c in COMMANDS if c[:3] == ['python', '-m', 'experiments.main']]
QUICKSTART = 'experiments/configs/quickstart.py'


def smoke(command: list[str], runs) -> list[str]:
    """The command on a few images, in a folder of its own."""
    page = next(w for w in command if w.startswith('--config='))
    flags = [w for w in command[3:] if not w.startswith(('--config=', '--workdir='))]
    workdir = next((w.split('=')[1] for w in command if w.startswith('--workdir=')), None)
    where = [f'--workdir={runs / workdir}'] if workdir else []
    return [page + (',' if ':' in page else ':') + 'smoke', *where, *flags]


def main(*words, **kwargs):
    return subprocess.run(
        [sys.executable, '-m', 'experiments.main', *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )


def test_the_readme_has_the_commands():
    assert len(MAIN) >= 5 and ['python', '-m', 'pytest'] in COMMANDS


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.mark.parametrize('command', [c for c in MAIN if QUICKSTART in ' '.join(c)], ids=' '.join)
def test_readme_commands_without_data(command, runs):
    result = main(*smoke(command, runs))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''


@pytest.mark.parametrize(
    'command', [c for c in MAIN if QUICKSTART not in ' '.join(c)], ids=' '.join
)
def test_readme_commands_on_real_data(command, runs, data_dir):
    result = main(*smoke(command, runs), f'--config.data.dir={data_dir}')
    assert result.returncode == 0, result.stderr
    assert 'top-1 error' in result.stdout


@pytest.mark.parametrize('page', ['mnist', 'svhn', 'cifar100'])
def test_other_pages_on_real_data(page, tmp_path, data_dir):
    result = main(
        f'--config=experiments/configs/{page}.py:smoke',
        f'--workdir={tmp_path}',
        f'--config.data.dir={data_dir}',
    )
    assert result.returncode == 0, result.stderr
    assert 'top-1 error' in result.stdout


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--config.optim.lrr=1'], "unknown key 'optim.lrr', did you mean 'optim.lr'?"),
        (['--config.optim=1'], "unknown key 'optim', did you mean"),
        (['--config.optim.lr=fast'], "could not convert string to float: 'fast'"),
        (['--config.seed=1.5'], "invalid literal for int() with base 10: '1.5'"),
        (['--config.optim.lr=-1'], 'optim.lr=-1.0: must be above 0'),
        (['--config.train.duration=3parsecs'], "train.duration='3parsecs': write a duration as"),
        (['--config.data.name=mnits'], "no dataset 'mnits'; did you mean 'mnist'?"),
        (['--config.data.eval=tset'], "no split 'tset'"),
        (
            ['--config.data.name=cifar10', '--config.data.dir=/nowhere'],
            'cifar10 is not prepared in /nowhere: run  python -m experiments.prepare cifar10',
        ),
        (['--config.model.blocks.mlpconv3.features=(8,8,9)'], 'end it in 10'),
        (['--workdirr=x'], "Unknown command line flag 'workdirr'. Did you mean: workdir"),
        (['--mode=trian'], 'value should be one of <train|eval|describe|dryrun>'),
        (['extra'], "unexpected argument 'extra': flags begin with --"),
        (['--workdir=/proc/no/such'], "No such file or directory '/proc/no'"),
        (['--workdir=README.md'], "File exists 'README.md'"),
        (['--workdir=/nowhere', '--mode=eval'], 'holds no preprocess.npz'),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, flags, words):
    result = run_main(f'--workdir={tmp_path / "run"}', *flags, page=QUICKSTART)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('page', 'words'),
    [
        ('nope.py', "no config page 'nope.py'"),
        ('experiments/configs/quikstart.py', "did you mean 'experiments/configs/quickstart.py'?"),
        (f'{QUICKSTART}:smokey', "unknown variant ':smokey', did you mean ':smoke'?"),
        ('README.md', "config page 'README.md' does not load"),
    ],
)
def test_a_page_that_is_not_there_gets_one_sentence(tmp_path, page, words):
    result = run_main(f'--workdir={tmp_path}', page=page)
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


@pytest.mark.parametrize('words', [[], ['--config.seed=3'], [f'--config={QUICKSTART}']])
def test_missing_flags_get_one_sentence(words):
    result = main(*words)
    assert result.returncode == 2
    assert 'needs a page' in result.stderr or 'is missing' in result.stderr


def test_help_does_not_wait_for_jax():
    assert 'experiments.main --config=' in main('--help').stdout
    code = 'import sys, experiments.main; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_full_disk_is_one_sentence(tmp_path):
    """/dev/full stands in for a disk without space: the run's first file ends up there."""
    (tmp_path / 'config.tmp').symlink_to('/dev/full')
    result = run_main(f'--workdir={tmp_path}', page=f'{QUICKSTART}:smoke')
    assert result.returncode == 2
    assert result.stderr.startswith('error: No space left on device')


def test_description_of_the_network():
    out = main(f'--config={QUICKSTART}', '--mode=describe').stdout
    assert '349,674 parameters' in out and '0.304 to train on' in out
