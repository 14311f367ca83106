"""launch/Dockerfile, without Docker."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml

from tests.helpers import ROOT


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continued lines joined."""
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    lines = [line for line in text.splitlines() if not line.startswith('#')]
    joined = re.sub(r'\\\n', '', '\n'.join(lines))
    pairs = [line.partition(' ') for line in joined.splitlines() if line.strip()]
    return [(kind, rest) for kind, _, rest in pairs]


def sent() -> list[str]:
    """What .dockerignore lets through, as patterns."""
    first, *words = (ROOT / '.dockerignore').read_text().split()
    assert first == '*'
    return [w[1:] for w in words if w.startswith('!')]


def test_the_dockerfile_ends_as_a_user_without_rights():
    words = steps()
    kinds = [kind for kind, _ in words]
    assert kinds[0] == 'FROM' and re.fullmatch(r'python:3\.1[123]-slim', words[0][1])
    assert kinds.index('USER') < kinds.index('ENTRYPOINT') == len(kinds) - 1
    assert dict(words)['USER'] not in ('root', '0')
    assert all('--no-cache-dir' in rest for kind, rest in words if 'pip install' in rest)
    assert [rest for kind, rest in words if kind == 'COPY'] == ['. .']
    assert all(list(ROOT.glob(name)) for name in sent())


class Image:
    """Runs a Dockerfile's steps in a folder, with a virtual environment for FROM's Python.

    Not covered: the base image itself, its system packages, layers, and paths outside WORKDIR.
    """

    def __init__(self, root: pathlib.Path, **build_args: str):
        self.root, self.build_args = root, build_args
        self.cwd, self.user = root, None
        # Root's own Python may lie where the image's user cannot look.
        python = '/usr/bin/python3' if os.geteuid() == 0 else sys.executable
        subprocess.run([python, '-m', 'venv', root / 'usr'], check=True)
        (root / 'home').mkdir()
        (root / 'home').chmod(0o777)
        path = f'{root}/usr/bin:/usr/bin:/bin'
        self.env = {'PATH': path, 'HOME': str(root / 'home'), 'PIP_QUIET': '1'}
        # No users are made on this machine; what was asked for is looked at instead.
        (root / 'usr' / 'bin' / 'useradd').write_text(f'#!/bin/sh\necho "$@" >{root}/useradd\n')
        (root / 'usr' / 'bin' / 'useradd').chmod(0o755)

    def build(self) -> None:
        for kind, rest in steps()[1:]:
            getattr(self, kind)(rest)

    def WORKDIR(self, rest):
        self.cwd = self.root / rest.lstrip('/')
        self.cwd.mkdir()

    def ARG(self, rest):
        name, _, default = rest.partition('=')
        self.env[name] = self.build_args.get(name, default) or ''

    def ENV(self, rest):
        pairs = [word.split('=', 1) for word in shlex.split(rest)]
        self.env |= {k: re.sub(r'\$(\w+)', lambda m: self.env[m[1]], v) for k, v in pairs}

    def COPY(self, rest):
        for path in [p for pattern in sent() for p in ROOT.glob(pattern)]:
            if path.is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(path, self.cwd / path.name, ignore=ignore)
            else:
                shutil.copy(path, self.cwd)

    def RUN(self, rest):
        subprocess.run(['/bin/sh', '-c', rest], cwd=self.cwd, env=self.env, check=True)

    def USER(self, rest):
        self.user = rest

    def ENTRYPOINT(self, rest):
        self.entrypoint = yaml.safe_load(rest)

    def run(self, *words: str) -> subprocess.CompletedProcess:
        (uid,) = map(int, re.findall(r'--uid (\d+)', (self.root / 'useradd').read_text()))
        who = {'user': uid, 'group': uid, 'extra_groups': []} if os.geteuid() == 0 else {}
        return subprocess.run(
            [*self.entrypoint, *words],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            **who,
        )


@pytest.fixture
def root():
    """A folder that the image's user may enter; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@pytest.mark.slow
def test_dockerfile_steps_make_an_image_that_trains(root):
    """Every step of the Dockerfile for a CPU, then the entry point as the user it names."""
    image = Image(root, ACCELERATOR='cpu', COMMIT='c0ffee')
    image.build()
    config = 'experiments/configs/quickstart.py:smoke'
    done = image.run(f'--config={config}', f'--workdir={root}/home/run')
    assert done.returncode == 0, done.stderr
    summary = yaml.safe_load((root / 'home' / 'run' / 'summary.json').read_text())
    assert summary['status'] == 'done' and summary['commit'] == 'c0ffee'
    packages = subprocess.run(
        [root / 'usr/bin/python', '-m', 'pip', 'list'], capture_output=True, text=True
    ).stdout
    assert not re.search('nvidia|libtpu', packages)
    for name in ('kubernetes', 'optuna', 'grain', 'nin-jax'):
        assert re.search(f'^{name} ', packages, re.M), name


def test_dockerfile_refuses_another_accelerator(tmp_path):
    run = next(rest for kind, rest in steps() if kind == 'RUN' and 'ACCELERATOR' in rest)
    (tmp_path / 'pip').write_text('#!/bin/sh\necho pip "$@"\n')
    (tmp_path / 'pip').chmod(0o755)

    def try_(accelerator):
        env = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'ACCELERATOR': accelerator}
        return subprocess.run(['/bin/sh', '-c', run], env=env, capture_output=True, text=True)

    assert try_('cpu').stdout.endswith(' .[prepare,sweep,stream] jax[k8s]\n')
    assert try_('cuda13').stdout.endswith('jax[k8s,cuda13]\n')
    assert try_('tpu').stdout.endswith('jax[k8s,tpu]\n')
    done = try_('gpu')
    assert done.returncode == 2 and "not 'gpu'" in done.stderr and not done.stdout
