"""A run folder in a bucket, gs://BUCKET/PATH or s3://BUCKET/PATH.

Object stores cannot append, rename or lock. So the run works in a local folder, and `push` copies
what has changed to the bucket after every checkpoint, in whole objects. `bucket.json` lists the
complete checkpoints. It is written after their files and before others are deleted, so a process
that is killed at any time leaves a valid run.

There is no lock: a process stops at its next `push` if another one has changed `bucket.json`. What
both may have written until then is covered by the SHA-256 of every checkpoint.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec

from nin_jax.errors import RetryError, UserError, one_line
from nin_jax.files import is_url

PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
STATE = 'bucket.json'
FETCHED = ('config.json', 'preprocess.npz', 'metrics.jsonl', 'summary.json')
# Words in the errors of the stores' clients that no rerun cures.
MISTAKES = re.compile(
    r'credential|denied|forbidden|\b40[13]\b|permission|not ?found|no ?such', re.IGNORECASE
)


def check_url(workdir: str) -> None:
    """Raises UserError unless `workdir` is in a bucket that can be used."""
    if not re.fullmatch(f'({"|".join(PACKAGES)})://[^/?#]+(/[^/?#]+)+/*', workdir):
        raise UserError(
            f"--workdir='{workdir}': must be a folder, gs://BUCKET/PATH or s3://BUCKET/PATH; mount "
            'any other store as a folder'
        )


@contextlib.contextmanager
def opened(
    workdir: str | os.PathLike,
) -> Iterator[tuple[pathlib.Path, Callable[[], None] | None]]:
    """Yields the local folder of a run, and a function that copies it to its bucket, if any.

    Raises:
      UserError: the bucket cannot be used.
      RetryError: it does not answer.
    """
    if not is_url(workdir):
        yield pathlib.Path(workdir), None
        return
    check_url(os.fspath(workdir))
    bucket = Bucket(os.fspath(workdir))
    with tempfile.TemporaryDirectory(prefix='nin_jax-') as temporary:
        folder = pathlib.Path(temporary)
        bucket.fetch(folder)
        try:
            yield folder, lambda: bucket.push(folder)
        except UserError as e:  # name the bucket instead of the local folder
            e.args = tuple(str(a).replace(temporary, bucket.url) for a in e.args)
            raise


class Bucket:
    """The copy of a run's folder in a bucket.

    Args:
      url: the URL of the run.

    Raises:
      UserError: the client of the store is not installed.
    """

    def __init__(self, url: str):
        self.url = url.rstrip('/')
        package = PACKAGES.get(url.partition(':')[0], 'fsspec')
        logging.getLogger(package).setLevel(logging.CRITICAL)  # it raises what it logs
        try:
            self._files, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as e:
            raise UserError(f"'{url}' needs {package}: pip install {package} ({e})") from None
        self._root: str = str(root).rstrip('/')
        self._state: dict | None = None  # content of bucket.json when last read or written
        self._copied: dict[str, tuple[int, int]] = {}  # name -> time and size

    def fetch(self, folder: pathlib.Path) -> None:
        """Copies the run to a local folder, without incomplete checkpoints.

        Raises:
          UserError: the bucket cannot be used.
          RetryError: it does not answer.
        """
        with self._reported():
            self._state = self._read_state()  # None for a new run, or a copy of a local folder
            names = self._names('')
            steps = steps_of(names) if self._state is None else self._state['steps']
            for name in names:
                if name in FETCHED or any(name.startswith(f'checkpoints/{s}/') for s in steps):
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(f'{self._root}/{name}', str(path))
                    self._copied[name] = stamp(path)

    def push(self, folder: pathlib.Path) -> None:
        """Copies what has changed in the local folder since the last time.

        Raises:
          RetryError: another process has written there, or the bucket does not answer.
          UserError: the bucket cannot be used.
        """
        paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if p.is_file()}
        local = {n: stamp(p) for n, p in paths.items() if not n.endswith(('.lock', '.tmp'))}
        changed = [name for name, value in local.items() if self._copied.get(name) != value]
        with self._reported():
            self._check_unchanged()
            for name in sorted(changed, key=lambda name: name == 'summary.json'):  # the last
                self._files.put_file(str(paths[name]), f'{self._root}/{name}')
                self._copied[name] = local[name]
            self._check_unchanged()
            self._write_state(steps_of(local))
            for name in self._names('checkpoints'):
                if name not in local:
                    with contextlib.suppress(FileNotFoundError):
                        self._files.rm_file(f'{self._root}/{name}')

    def _names(self, folder: str) -> list[str]:
        """Returns the names of all objects in `folder`, relative to the run."""
        found: Any = self._files.find(f'{self._root}/{folder}'.rstrip('/'))
        root = self._root.strip('/') + '/'
        names = (path.lstrip('/').removeprefix(root) for path in found)
        return [name for name in names if name and not name.endswith('/')]

    def _read_state(self) -> dict | None:
        try:
            return json.loads(self._files.cat_file(f'{self._root}/{STATE}'))
        except FileNotFoundError:
            return None

    def _write_state(self, steps: list[str]) -> None:
        place = f'{socket.gethostname()}, process {os.getpid()}'
        self._state = {'writer': place, 'write': uuid.uuid4().hex, 'steps': steps}
        self._files.pipe_file(f'{self._root}/{STATE}', json.dumps(self._state).encode())

    def _check_unchanged(self) -> None:
        if (state := self._read_state()) != self._state:
            other = state['writer'] if state else 'which has deleted it'
            raise RetryError(
                f"another process uses '{self.url}' ({other}): end one of them, then run the same "
                'command again'
            )

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Raises the clients' errors, which are of many types, as one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as e:
            text = f'{type(e).__name__}: {one_line(e)}'
            # A name may contain such a word by chance.
            if MISTAKES.search(re.sub(rf'\S*{re.escape(self._root)}\S*|\w+://\S+', '', text)):
                raise UserError(
                    f"'{self.url}' cannot be used ({text}): check the bucket's name, and your "
                    'credentials and permissions'
                ) from e
            raise RetryError(
                f"'{self.url}' does not answer ({text}): run the same command again"
            ) from e


def steps_of(names: Iterable[str]) -> list[str]:
    """Returns the sorted names of the checkpoints that the files belong to."""
    return sorted({name.split('/')[1] for name in names if name.startswith('checkpoints/')})


def stamp(path: pathlib.Path) -> tuple[int, int]:
    """Returns what changes with the content of a file."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
