"""Scripts on the PATH, for the tests of launchers."""

import os
import pathlib
import shutil
import sys

BASH = shutil.which('bash') or 'bash'


def on_path(folder: pathlib.Path, **scripts: str) -> dict:
    """The environment with these scripts, and this Python as `python`, first on the PATH."""
    for name, text in scripts.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (folder / name).chmod(0o755)
    if not (folder / 'python').exists():
        (folder / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / 'python').chmod(0o755)
    return os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', 'OUT': str(folder)}
