"""All shell scripts of the project, by shellcheck."""

import pathlib
import subprocess
import sys

import pytest
import yaml

from tests.helpers import ROOT

PATTERNS = ('launch/**/*.sh', 'launch/**/*.sbatch', 'tests/**/*.sh', '.ci/run')
SCRIPTS = sorted(str(p.relative_to(ROOT)) for pattern in PATTERNS for p in ROOT.glob(pattern))
SKY = [(name, part) for name in ('tpu', 'gpu') for part in ('setup', 'run')]


def shellcheck(*words: str, text: str | None = None) -> None:
    tool = pathlib.Path(sys.executable).with_name('shellcheck')
    command = [str(tool) if tool.exists() else 'shellcheck', *words]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts(script):
    shellcheck(script)


@pytest.mark.parametrize('name, part', SKY)
def test_scripts_in_skypilot_tasks(name, part):
    text = yaml.safe_load((ROOT / 'launch' / 'sky' / f'{name}.yaml').read_text())[part]
    shellcheck('--shell=bash', '-', text=text)
