"""What a user types: every command of the README, help and description; see test_bad_inputs.py."""

import errno
import os
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from nin_jax import list_models
from tests.helpers import ROOT, assert_refused, run_main, run_process

README = (ROOT / 'README.md').read_text()
COMMANDS = [
    shlex.split(line.split('&&')[-1])
    for block in re.findall(r'```bash\n(.*?)```', README, re.S)
    for line in block.splitlines()
]
EXPERIMENTS = [c for c in COMMANDS if c[:2] == ['python', '-m'] and '.' in c[2]]
QUICKSTART = 'experiments/configs/quickstart.py'


# The layer table with few channels, which compiles in a tenth of the time; other tests keep it.
THIN = [
    f'--config.model.blocks.mlpconv{i}.features=(8, 8, {last})'
    for i, last in ((1, 8), (2, 8), (3, 10))
]


def smoke(command: list[str], folder) -> list[str]:
    """The command on few images, channels and seeds, its files in a folder of their own."""
    words = []
    for word in command[3:]:
        name, _, value = word.partition('=')
        if name == '--config':
            word += (',' if ':' in value else ':') + 'smoke'
        elif name == '--seeds':
            word = '--seeds=2'
        elif name in ('--workdir', '--out', '--images', '--heatmap') and value not in list_models():
            word = f'{name}={folder / value}'
        elif not name.startswith('--'):
            word = str(folder / word)
        words.append(word)
    words += THIN if any(word.startswith('--config=') for word in words) else []
    return [sys.executable, '-m', command[2], *words]


@pytest.mark.processes
def test_readme_commands_without_data(tmp_path):
    """In the README's order, as some look at what others trained."""
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).save(tmp_path / 'photo.png')
    chosen = ('quickstart', 'experiments.predict', 'experiments.visualize')
    commands = [c for c in EXPERIMENTS if any(word in str(c) for word in chosen)]
    commands += [c for c in EXPERIMENTS if c[2] == 'experiments.report']
    assert len(commands) >= 8
    for command in commands:
        result = subprocess.run(
            smoke(command, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f'{shlex.join(command)}: {result.stderr}'
        assert result.stderr == ''


def test_readme_code_classifies_digits(capsys):
    (code,) = re.findall(r'```python\n(.*?)```', README, re.S)
    exec(code, {})
    wrong = int(capsys.readouterr().out.split()[0])
    assert wrong <= 4  # it says 2; another machine can round differently


def on_real_data(command):
    return command[2] == 'experiments.main' and 'quickstart' not in str(command)


@pytest.mark.processes
@pytest.mark.parametrize(
    'command', [c for c in EXPERIMENTS if on_real_data(c) and '--mode=eval' not in c], ids=' '.join
)
def test_readme_commands_on_real_data(command, tmp_path, data_dir):
    result = subprocess.run(
        [*smoke(command, tmp_path), f'--config.data.dir={data_dir}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert 'top-1 error' in result.stdout


@pytest.mark.processes
@pytest.mark.parametrize('page', ['mnist', 'svhn', 'cifar100'])
def test_other_pages_on_real_data(page, tmp_path, data_dir):
    page = f'experiments/configs/{page}.py:smoke'
    result = run_main(f'--workdir={tmp_path}', f'--config.data.dir={data_dir}', page=page)
    assert result.returncode == 0, result.stderr
    assert 'top-1 error' in result.stdout


def test_help_does_not_wait_for_jax():
    assert 'experiments.main --config=' in run_process('experiments.main', '--help').stdout
    code = 'import sys, experiments.main; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize(
    ('output', 'error', 'status'),
    [('pass', 'UserError', 2), ('print(1)', 'RetryError', os.EX_TEMPFAIL)],
)
def test_the_exit_status_does_not_depend_on_a_full_disk_for_the_log(output, error, status):
    code = f"""
from experiments import cli
from nin_jax import errors
def main(argv):
    {output}
    raise errors.{error}('a sentence')
cli.run(main)
"""
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=full, stderr=full)
    assert done.returncode == status


def test_full_disk_is_refused_and_can_be_tried_again(tmp_path):
    """/dev/full stands in for a disk without space: the run's first file ends up there."""
    (tmp_path / 'config.tmp').symlink_to('/dev/full')
    result = run_main(f'--workdir={tmp_path}', page=f'{QUICKSTART}:smoke')
    assert_refused(result, os.strerror(errno.ENOSPC), kind='OSError', status=os.EX_TEMPFAIL)


@pytest.mark.parametrize(
    ('page', 'words'),
    [
        ('quickstart.py', ['349,674 parameters', '0.304 forward and backward', 'GAP']),
        ('ablations.py:fc', ['973,396 parameters', 'fc ']),
        ('hinton.py:gap', ['302,112 parameters', 'conv4', 'GAP']),
    ],
)
def test_description_of_the_network(page, words):
    out = run_main('--mode=describe', page=f'experiments/configs/{page}').stdout
    assert all(word in out for word in words), out


def test_dry_run_compiles_every_stage():
    flags = ['--config.train.image_sizes=14@50%', '--config.optim.drops=50%']
    out = run_main('--mode=dryrun', *flags).stdout
    names = [line.split('  ')[0].strip() for line in out.splitlines()]
    assert names[:3] == ['training, 14x14', 'training', 'evaluation'], out
    assert 'drops the learning rate at step' in out
    assert 'drops' not in run_main('--mode=dryrun', '--config.optim.schedule=cosine', *flags).stdout
