"""docs/guide.md: every block of it runs, in its order, and its pictures are there."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

GUIDE = (ROOT / 'docs' / 'guide.md').read_text()
QUICKSTART = 'experiments/configs/quickstart.py'


@pytest.mark.processes
def test_every_block_runs(tmp_path, monkeypatch):
    """With four steps of the quickstart."""
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    namespace, commands = {}, 0
    for kind, code in re.findall(r'```(\w+)\n(.*?)```', GUIDE, re.S):
        if kind == 'python':
            exec(compile(code, f'guide.md: {code.splitlines()[-1]}', 'exec'), namespace)
            continue
        for line in code.splitlines():
            words = shlex.split(line.replace(QUICKSTART, f'{ROOT / QUICKSTART}:smoke'))
            assert words[0] == 'python'
            result = subprocess.run(
                [sys.executable, *words[1:]],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert result.returncode == 0, f'{line}: {result.stderr}'
            commands += 1
    assert commands == 5
    assert (tmp_path / 'runs/quickstart/pictures/heatmaps.png').exists()
    assert (tmp_path / 'runs/quickstart/pictures/dense_digits.png').exists()
    shutil.rmtree(tmp_path / 'runs')


def test_its_pictures_and_links_are_there_and_small():
    links = re.findall(r'\]\(([^)#]+)\)', GUIDE)
    for link in links:
        assert link.startswith('https://') or (ROOT / 'docs' / link).is_file(), link
    pictures = [ROOT / 'docs' / link for link in links if link.endswith('.png')]
    assert len(pictures) == 3
    assert all(p.stat().st_size < 150_000 for p in pictures if p.name.startswith('guide_'))
