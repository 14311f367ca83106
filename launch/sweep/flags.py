"""Flags of `python -m launch.sweep` and its report, and the URL of the database."""

import argparse
import dataclasses
import os
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

from experiments import cli
from nin_jax.errors import UserError

STORAGE = 'NIN_STORAGE'  # environment variable with the database's URL
USER = r'((?:://|^(?!.*://))[^:/?]*)'  # of a URL, also of one without a scheme
QUERY = r'([?&])password=([^&]*)'
SECRETS = (STORAGE, 'PGPASSWORD')  # not passed to the runs


@dataclasses.dataclass(frozen=True)
class Storage:
    """A database's URL, which may contain a password."""

    url: str = dataclasses.field(repr=False)

    @property
    def secret(self) -> str:
        """The password in the URL; '' if there is none."""
        found = re.search(USER + r':(.*)@', self.url) or re.search(QUERY, self.url)
        return found[2] if found else ''

    @property
    def shown(self) -> str:
        """The URL without its password."""
        url = re.sub(USER + r':.*@', r'\1@', self.url)
        return re.sub(QUERY + '&?', r'\1', url).rstrip('?&')

    def scrub(self, text: str) -> str:
        """Replaces every part of the password by ***, however a database driver splits it."""
        words = {self.secret, urllib.parse.unquote(self.secret)}
        parts = {part for word in words for part in re.split(r'[@:/?#]', word) if len(part) > 2}
        for word in sorted(words | parts, key=len, reverse=True):
            text = text.replace(word, '***') if word else text
        return text


def parse(argv: Sequence[str], description: str | None) -> tuple[argparse.Namespace, dict]:
    """Parses the sweep's flags, and the config overrides that apply to all trials."""
    parser = cli.Parser('launch.sweep', description)
    parser.add_argument('--sweep', required=True, help='a sweep config of experiments/sweeps/')
    add_study_flags(parser)
    parser.add_argument('--workers', type=int, help='parallel trials; default: one per device')
    parser.add_argument('--devices', help="accelerators, such as 0,1; default: all, or 'cpu'")
    parser.add_argument(
        *('--devices_per_trial', '--devices-per-trial'), type=int, default=1, help='default: 1'
    )
    parser.add_argument(
        '--grace', type=int, default=60, help='seconds without heartbeat until a trial is lost'
    )
    parser.add_argument(
        '--retries', type=int, default=3, help='restarts of a point that fails without progress'
    )
    parser.add_argument(
        '--patience', type=int, default=600, help='seconds to wait for an unreachable database'
    )
    parser.add_argument(
        '--dry-run', '--dry_run', action='store_true', help='print the trials and stop'
    )
    args, others = parser.parse_known_args(argv)
    settle_study_flags(args)
    for name, least in dict(grace=2, retries=0, workers=1, devices_per_trial=1, patience=0).items():
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f'--{name}={value}: must be {least} or more')
    words = [word.removeprefix('--config.') for word in cli.flags_of_runs(others)]
    return args, dict(word.split('=', 1) for word in words)


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--study', required=True, help='name of the study in the database')
    parser.add_argument('--workdir', help='folder of the trials; default: runs/sweeps/STUDY')
    parser.add_argument('--storage', help='URL of the database; default: SQLite, WORKDIR/study.db')
    parser.add_argument(
        '--storage_file', '--storage-file', help=f'file that contains the URL; or set {STORAGE}'
    )


def settle_study_flags(args: argparse.Namespace) -> None:
    """Resolves --workdir to a path and --storage to a Storage; sets `where` to their flags."""
    workdir = args.workdir or f'runs/sweeps/{args.study}'
    cli.local(workdir)
    url, known = args.storage, os.environ.get(STORAGE, '')
    if not url or url == Storage(known).shown:  # the variable may add the password
        url = known or f'sqlite:///{workdir}/study.db'
    if args.storage_file:
        try:
            url = pathlib.Path(args.storage_file).read_text().strip()
        except OSError as e:
            raise UserError(f"--storage_file='{args.storage_file}': {e.strerror}") from None
    given = {'study': args.study, 'workdir': args.workdir, 'storage_file': args.storage_file}
    if args.storage and not args.storage_file:
        given['storage'] = Storage(url).shown
    args.where = [f'--{name}={value}' for name, value in given.items() if value]
    args.workdir, args.storage = pathlib.Path(workdir), Storage(url)
