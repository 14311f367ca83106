"""Entry points' shared manners: a user's mistake gets one sentence on stderr and exit status 2."""

import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nin_jax.config import flatten
from nin_jax.errors import UserError, did_you_mean, from_os_error

MISTAKE = 2
CONFIGS = pathlib.Path('experiments/configs')


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses flags, runs `main` and exits with what it returns."""

    def guarded(argv: list[str]) -> int | None:
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files may be any bytes
        logging.set_verbosity(logging.FATAL)  # Orbax tells every file it touches; errors are raised
        try:
            return main(argv)
        except UserError as e:
            return complain(str(e), e.exit_status)
        except KeyboardInterrupt:
            return complain('stopped', status=130)
        except BrokenPipeError:  # the reader of our output went away: head, less, ...
            sys.stdout = None
            return 141
        except OSError as e:  # a full disk, a folder that cannot be written, ...
            if e.errno is None:
                raise
            found = from_os_error(e)
            return complain(str(found), found.exit_status)

    app.run(guarded, flags_parser=parse)


def complain(message: str, status: int = MISTAKE) -> int:
    """Prints the sentence, unless it is another process's to tell; returns the exit status."""
    if message:
        print(f'error: {message}', file=sys.stderr)
    return status


def parse(argv: list[str]) -> list[str]:
    """Parses flags; exits with one sentence on a mistake."""
    try:
        if 'config' in flags.FLAGS:
            check_config_keys(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as e:
        sys.exit(complain(' '.join(str(e).split())))


def check_config_keys(argv: list[str]) -> None:
    """Raises UserError if --config names no page, or an override no key of it."""
    page = [
        a
        for pair in zip(argv, [*argv[1:], ''], strict=True)
        for a in pair
        if re.match(r'--?config(=|$)', pair[0])
    ]
    overrides = [m[1] for a in argv if (m := re.match(r'--?(?:no)?config\.([^=]*)', a))]
    if not page:
        if overrides:
            raise UserError(f'--config.{overrides[0]} needs a page to change: add --config=PAGE')
        return
    known = flatten(load_config(page[0].split('=', 1)[1] if '=' in page[0] else page[1]))
    for key in overrides:
        if key not in known:
            raise UserError(f"unknown key '{key}'" + did_you_mean(key, known))


def load_config(page: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """A page's config, with words such as --config.optim.lr=0.1 read as a run would read them.

    It is loaded apart from the process's own flags: those of a page's keys come into being as
    they are parsed, and an unknown one would be an AttributeError without the key's path.

    Raises:
      UserError: the page does not load, or a value cannot be read.
    """
    path = pathlib.Path(page.split(':')[0])
    if not path.is_file():
        there = [str(p) for p in sorted(CONFIGS.glob('[!_]*.py'))]
        raise UserError(f"no config page '{path}'{did_you_mean(str(path), there)}")
    words = ['', f'--config={page}', *overrides]
    alone = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=alone, sys_argv=words)
    try:
        alone(words)
        if not isinstance(holder.value, ConfigDict):
            raise TypeError(f'get_config returns {holder.value!r}, which is no ConfigDict')
        return holder.value
    except UserError:
        raise
    except flags.Error as e:
        raise UserError(' '.join(str(e).split())) from e
    except Exception as e:  # whatever a broken page may raise; its last line says what
        raise UserError(f"config page '{path}' does not load: {str(e).splitlines()[-1]}") from e
