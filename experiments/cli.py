"""Shared code of the entry points: common flags, and user errors without a traceback."""

import argparse
import io
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nin_jax.config import check_key, flatten
from nin_jax.errors import EXIT_USAGE, UserError, did_you_mean, from_os_error, from_runtime_error
from nin_jax.files import is_url

if TYPE_CHECKING:  # JAX takes seconds to import
    from nin_jax.data.sources import Arrays
    from nin_jax.pretrained.trained import Trained

CONFIGS = pathlib.Path('experiments/configs')
A_RUN = 'name the folder of a run, such as --workdir=runs/quickstart'


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses absl flags, runs `main` and exits with what it returns."""

    def quiet(argv: list[str]) -> int | None:
        logging.set_verbosity(logging.FATAL)  # Orbax logs every file it touches; errors are raised
        return guarded(main, argv)

    app.run(quiet, flags_parser=parse)


def guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    """Runs `main`, prints a user's mistake as one line, and returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names can contain any bytes
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        return main(argv)
    except UserError as e:
        return print_error(str(e), e.exit_status)
    except RuntimeError as e:
        found = from_runtime_error(e)
        if found is None:
            raise
        return print_error(str(found), found.exit_status)
    except KeyboardInterrupt:
        return print_error('stopped', status=130)
    except BrokenPipeError:  # the reader of the output has exited, such as head
        sys.stdout = None
        return 141
    except OSError as e:  # a full disk, a folder that cannot be written, ...
        if e.errno is None:
            raise
        found = from_os_error(e)
        return print_error(str(found), found.exit_status)
    finally:
        try:
            print(end='', flush=True)
        except OSError:  # as in print_error
            sys.stdout = None


def print_error(message: str, status: int = EXIT_USAGE) -> int:
    """Prints the message, unless it is empty (another process prints it); returns `status`."""
    if message:
        try:
            print(f'error: {message}', file=sys.stderr, flush=True)
        except OSError:  # a file on a full disk; at exit, Python would replace the status
            sys.stderr = None
    return status


class Parser(argparse.ArgumentParser):
    """Prints an error in one line, and shows a module's docstring as its help."""

    def __init__(self, prog: str, description: str | None):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        sys.exit(print_error(message))


def flags_of_runs(words: Sequence[str]) -> list[str]:
    """Returns flags that a command passes on to all runs of experiments.main.

    Raises:
      UserError: a word is not --config.KEY=VALUE.
    """
    for word in words:
        if not re.match(r'--config\.[^=]+=', word):
            raise UserError(f"unexpected argument '{word}': flags of runs are --config.KEY=VALUE")
    return list(words)


# ---- flags ----------------------------------------------------------------------------------


def define_step() -> flags.FlagHolder:
    """Defines --step, the checkpoint to read."""
    return flags.DEFINE_integer('step', None, 'Checkpoint to use; the newest if not given.')


def define_data_dir() -> flags.FlagHolder:
    """Defines --data_dir, for commands that read a run's dataset."""
    return flags.DEFINE_string(
        'data_dir', None, 'The TFDS folder of the data; the one of the run if not given.'
    )


def no_arguments(argv: list[str]) -> None:
    """Raises UserError if there is a positional argument."""
    if argv[1:]:
        raise UserError(f"unexpected argument '{argv[1]}': flags begin with --")


def required(flag: flags.FlagHolder, hint: str, or_url: bool = False) -> Any:
    """Returns the value of a flag.

    Raises:
      UserError: it is missing (with the hint), or a URL without `or_url`.
    """
    if not flag.value:
        raise UserError(f'--{flag.name} is missing: {hint}')
    if not (or_url and is_url(flag.value)):
        local(flag.value)
    return flag.value


def local(path: str) -> pathlib.Path:
    """Returns the path; raises UserError if it is a URL, or if it begins with ~.

    They would become folders named 'gs:' and '~'.
    """
    if is_url(path):
        raise UserError(
            f"'{path}' is a URL, and this command needs a folder: copy it from the bucket first, "
            'or mount the bucket'
        )
    if path.startswith('~'):
        raise UserError(f"'{path}': the shell did not replace ~, write $HOME or the whole path")
    return pathlib.Path(path)


def folder(path: str) -> pathlib.Path:
    """Returns the path, or raises what argparse expects of a `type`; see `local`."""
    try:
        return local(path)
    except UserError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def open_network(workdir: str, step: int | None) -> 'Trained':
    """Loads the network of a run or a release, and turns on JAX's compilation cache."""
    from nin_jax.devices import use_compilation_cache
    from nin_jax.pretrained import release

    use_compilation_cache()
    return release.load(local(workdir), step)


def eval_images(network: 'Trained', data_dir: str | None) -> 'Arrays':
    """Loads the evaluation split of the run, from --data_dir if given."""
    from nin_jax.data.pipeline import open_source

    if data_dir is not None:
        network.config.data.dir = data_dir
    return open_source(network.config, network.config.data.eval).load()


def parse(argv: list[str]) -> list[str]:
    """Parses flags; prints one line and exits on an error."""
    try:
        if 'config' in flags.FLAGS:
            check_config_keys(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as e:
        sys.exit(print_error(' '.join(str(e).split())))


# ---- configs --------------------------------------------------------------------------------


def check_config_keys(argv: list[str]) -> None:
    """Raises UserError if the config of --config or the key of an override does not exist."""
    values = [
        word.split('=', 1)[1] if '=' in word else following
        for word, following in zip(argv, [*argv[1:], ''], strict=True)
        if re.match(r'--?config(=|$)', word)
    ]
    overrides = [m[1] for a in argv if (m := re.match(r'--?(?:no)?config\.([^=]*)', a))]
    if not values:
        if overrides:
            raise UserError(
                f'--config.{overrides[0]} needs a config to change: add --config=CONFIG.py'
            )
        return
    known = flatten(load_config(values[0]))
    for key in overrides:
        check_key(key, known)


def load_config(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config file, with its variant, as --config does.

    Args:
      config: such as 'experiments/configs/cifar10.py:aug'.
      overrides: such as '--config.optim.lr=0.1'.

    Raises:
      UserError: the file does not load, or a value is invalid.
    """
    path = pathlib.Path(config.split(':')[0])
    if not path.is_file():
        there = [str(p) for p in sorted(CONFIGS.glob('[!_]*.py'))]
        raise UserError(f"no config '{path}'{did_you_mean(str(path), there)}")
    words = ['', f'--config={config}', *overrides]
    if overrides:
        check_config_keys(words)
    alone = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=alone, sys_argv=words)
    try:
        alone(words)
        if not isinstance(holder.value, ConfigDict):
            raise TypeError(f'get_config returns {holder.value!r}, not a ConfigDict')
        return holder.value
    except UserError:
        raise
    except flags.Error as e:
        raise UserError(' '.join(str(e).split())) from e
    except Exception as e:  # a broken file can raise anything
        reason = (str(e).strip() or repr(e)).splitlines()[-1]
        raise UserError(f"config '{path}' does not load: {reason}") from e
