"""Runs an entry point many times, paying for the imports once: a forked process for each time.

    python -m tests.forkserver experiments.main < requests     a JSON object a line: words

Answers a line for each: exit status, stdout, stderr. A forked process has the flags, the modules
and the exit status of a real one; nothing is left of it for the next.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
import warnings

from experiments import cli

PRELOADED = (
    'nin_jax.commands',
    'nin_jax.pretrained.trained',
    'nin_jax.pretrained.import_caffe',
    'nin_jax.visualize.figures',
)


def main(module: str) -> None:
    entry = importlib.import_module(module)
    for name in PRELOADED if module != 'experiments.prepare' else ('nin_jax.data.prepare',):
        importlib.import_module(name)
    warnings.filterwarnings('ignore', message='os.fork')  # no backend is awake before the fork
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(call(entry, json.loads(line)))
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            texts = [f.read().decode(errors='replace') for f in (out, err)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


def call(entry, words: list[str]) -> int:
    """The exit status, as the interpreter would make it."""
    sys.argv = [entry.__file__, *words]
    try:
        cli.run(entry.main)
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout and sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == '__main__':
    main(sys.argv[1])
