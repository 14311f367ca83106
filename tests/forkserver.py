"""Runs entry points of `experiments` many times and imports once: a forked process a command.

    python -m tests.forkserver < requests     a JSON object a line: [module, words, timeout]

Answers a line for each: exit status, stdout, stderr, and the class of the error that the entry
point raised ('' if none). A forked process has the flags, the modules and the exit status of a real
one, and leaves nothing behind for the next.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings

from experiments import cli
from nin_jax.errors import UserError

PRELOADED = (
    'nin_jax.commands',
    'nin_jax.data.prepare',
    'nin_jax.pretrained.import_caffe',
    'nin_jax.pretrained.trained',
    'nin_jax.visualize.figures',
)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    warnings.filterwarnings('ignore', message='os.fork')  # no backend is awake before the fork
    for line in sys.stdin:
        module, words, timeout = json.loads(line)
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            tempfile.TemporaryFile() as kind,
        ):
            child = os.fork()
            if not child:
                signal.alarm(timeout)  # ends a command that hangs
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(call(module, words, kind.fileno()))
            _, status = os.waitpid(child, 0)
            texts = [read(f) for f in (out, err, kind)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


def read(file) -> str:
    file.seek(0)
    return file.read().decode(errors='replace')


def call(module: str, words: list[str], kind: int) -> int:
    """The exit status, as the interpreter would make it; writes the error's class to `kind`."""
    entry = importlib.import_module(module)
    if not hasattr(entry, 'main'):  # a package
        entry = importlib.import_module(f'{module}.__main__')
    sys.argv = [entry.__file__, *words]

    def noting(argv: list[str]) -> int | None:
        try:
            return entry.main(argv)
        except (UserError, OSError) as e:
            os.write(kind, type(e).__name__.encode())
            raise

    try:
        cli.run(noting)
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if sys.stdout:
        sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == '__main__':
    main()
