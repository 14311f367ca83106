"""Finds or downloads the official archives of a dataset, and checks them."""

import gzip
import os
import tarfile
import time
from pathlib import Path

from nin_jax.console import track
from nin_jax.errors import DataError
from nin_jax.files import file_sha256

TRIES = 3  # without a network, all of them fail within 10 seconds
MAX_UNPACKED_BYTES = 2 << 30  # ten times the largest, CIFAR-10 with 184 MB
_CHUNK = 1 << 20


def find(folder: str, names: list[str]) -> dict[str, Path]:
    """Searches `folder` recursively for files called `names`; returns {name: path}.

    Raises:
      DataError: the folder does not exist, or does not contain each name exactly once.
    """
    root = Path(os.path.expanduser(folder))  # an unknown ~user stays
    if not root.is_dir():
        raise DataError(f'--archives={folder} is not a folder')
    found = {name: sorted(p for p in root.rglob(name) if p.is_file()) for name in names}
    missing = [name for name in names if not found[name]]
    if missing:
        raise DataError(f'{root} holds no {", no ".join(missing)}: put the official files there')
    for name, paths in found.items():
        if len(paths) > 1:
            raise DataError(f'{root} holds {name} twice, as {paths[0]} and {paths[1]}: keep one')
    return {name: paths[0] for name, paths in found.items()}


def check(path: Path) -> None:
    """Reads a whole archive, to report a damaged or unsafe one before TFDS opens it.

    Raises:
      DataError: it is damaged, too large when unpacked, or a tar with members outside its folder.
    """
    try:
        if path.name.endswith('.gz'):
            _check_gzip(path)
        if path.name.endswith('.tar.gz'):
            _check_tar(path)
        if path.name.endswith('.mat'):
            _check_mat(path)
    except (DataError, PermissionError):
        raise
    except Exception as error:  # readers raise many types for damaged files
        raise DataError(
            f'{path} is damaged ({type(error).__name__}: {error}): fetch it again'
        ) from error


def _check_gzip(path: Path) -> None:
    total = 0
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK):
            total += len(chunk)
            if total > MAX_UNPACKED_BYTES:
                raise DataError(f'{path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes')
    if not total:
        raise EOFError('empty')


def _check_tar(path: Path) -> None:
    total = 0
    with tarfile.open(path, 'r:gz') as tar:
        for member in tar:
            total += member.size
            if member.issparse() or total > MAX_UNPACKED_BYTES:
                raise DataError(f'{path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes')
            unsafe = os.path.isabs(member.name) or '..' in member.name.split('/')
            if unsafe or not (member.isfile() or member.isdir()):
                raise DataError(
                    f'{path} is unsafe: it holds {member.name!r}, which is a link, a device or '
                    'outside its own folder'
                )


def _check_mat(path: Path) -> None:
    import scipy.io

    # Check the header first: reading allocates whatever size it states.
    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    count = shapes['X'][-1]
    if shapes['X'] != (32, 32, 3, count) or shapes['y'] != (count, 1) or count > 1_000_000:
        raise DataError(f'{path} holds arrays {shapes}, expected X (32, 32, 3, N) and y (N, 1)')
    scipy.io.loadmat(path)


def fetch(
    url: str,
    path: Path,
    sha256: str,
    size: int,
    *,
    read_s: float = 20.0,
    pause_s: float = 0.5,
) -> None:
    """Downloads a file and verifies it; `path` exists only if that succeeds.

    Broken connections and server errors are retried, with at most `TRIES` attempts.

    Args:
      url: address of the file.
      path: file to write.
      sha256: SHA-256 of the official file, in hex.
      size: bytes of the official file.
      read_s: timeout for each answer, in seconds.
      pause_s: seconds before the second attempt.

    Raises:
      DataError: the file cannot be downloaded, or is not the official one.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.incomplete')
    try:
        for attempt in range(1, TRIES + 1):
            try:  # urllib3's Retry would not cover a connection that breaks in the middle of a file
                _stream(url, temporary, size, (2.5, read_s))  # seconds to connect, to answer
                break
            except requests.RequestException as error:
                status = getattr(error.response, 'status_code', None)
                if attempt == TRIES or (status is not None and status < 500):
                    reason = f'HTTP status {status}' if status else type(error).__name__
                    raise DataError(f'cannot download {url} ({reason})') from error
                time.sleep(pause_s * attempt)
        got = file_sha256(temporary)
        if got != sha256:
            raise DataError(f'{url} is not the official file: sha256 {got}, expected {sha256}')
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _stream(url: str, path: Path, size: int, timeout: tuple[float, float]) -> None:
    import requests

    with requests.get(url, stream=True, timeout=timeout) as response, path.open('wb') as file:
        response.raise_for_status()
        chunks = response.iter_content(_CHUNK)
        for chunk in track(chunks, url.rsplit('/', 1)[-1], total=-(-size // _CHUNK)):
            file.write(chunk)
            if file.tell() > size:
                raise DataError(f'{url} is not the official file: over {size:,} bytes')
