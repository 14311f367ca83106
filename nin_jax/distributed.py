"""Coordination of the processes of a run: they connect, agree and stop together.

Each process runs the same program on its own devices; the mesh spans all devices. Only process 0
writes the run's records and prints. What ends one process ends all: `together` shares an error with
all of them, and `joined` stops a process whose peers are gone.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nin_jax.errors import DataError, UserError, from_os_error, from_runtime_error, one_line

JOIN_S = 300  # for all processes to connect
HEARTBEAT_S = 60  # a process without a heartbeat for this long is dead
FORM = "--distributed takes 'auto', or HOST:PORT,COUNT,INDEX such as 10.0.0.1:1234,2,0"


class PeerError(UserError):
    """An error raised on all processes of a run; the text is empty on all but the first."""

    def __init__(self, text: str, exit_status: int):
        super().__init__(text)
        self.exit_status = exit_status


@contextlib.contextmanager
def joined(where: str | None) -> Iterator[None]:
    """Connects to the other processes of the run, if any, and stops with them.

    Args:
      where: 'auto' on a TPU pod, SLURM or Kubernetes; 'HOST:PORT,COUNT,INDEX' of process 0, the
        number of processes, and the index of this one; None for a single process.

    Raises:
      UserError: `where` cannot be read or used.
    """
    if where is None:
        yield
        return
    join(where)
    try:
        yield
    except PeerError:
        raise
    except BaseException as e:
        # An orderly exit would wait for processes that wait for this one.
        os._exit(explain(e))


def join(where: str, timeout_s: float = JOIN_S) -> None:
    """Connects to the other processes; exits with an error message if they do not come in time.

    Raises:
      UserError: `where` cannot be read or used.
    """
    address, count, index = parse(where)
    if index == 0 and address:
        check_port(address)
    # At its own time limit JAX would abort with a stack trace of its C++.
    missing = f'not all processes of --distributed={where} connected within {timeout_s:g} s: '
    advice = (
        'start them together, with the same HOST:PORT and COUNT and each INDEX once, and check '
    )
    alarm = threading.Timer(
        timeout_s, lambda: give_up(missing + advice + 'that they can reach process 0 there')
    )
    alarm.daemon = True
    alarm.start()
    jax.config.update('jax_enable_preemption_service', False)  # it handles SIGTERM, and so do we
    ctypes.CDLL(None).signal(signal.SIGABRT, abort_handler())
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=round(timeout_s) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as e:
        if where == 'auto':
            raise UserError(
                '--distributed=auto found no TPU pod, SLURM or Kubernetes job around it: '
                'name HOST:PORT,COUNT,INDEX, or leave the flag out'
            ) from None
        raise UserError(f'--distributed={where}: {one_line(e)}') from None
    finally:
        alarm.cancel()
    if not is_first():
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - for as long as the process lives


def parse(where: str) -> tuple[str | None, int | None, int | None]:
    """'auto' or 'HOST:PORT,COUNT,INDEX' as (address, count, index)."""
    if where == 'auto':
        return None, None, None
    match = re.fullmatch(r'([^,\s]+:(\d{1,5})),(\d{1,6}),(\d{1,6})', where)
    if not match or not 0 < int(match[2]) < 2**16 or not int(match[4]) < int(match[3]):
        raise UserError(f'--distributed={where!r}: {FORM}, COUNT 1 or more, INDEX from 0 below it')
    return match[1], int(match[3]), int(match[4])


def check_port(address: str) -> None:
    """Raises UserError if this machine cannot listen on the port; JAX would crash."""
    port = int(address.rpartition(':')[2])
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(('', port))
            return
        except OSError as e:
            if e.errno == errno.EAFNOSUPPORT and family == socket.AF_INET6:
                continue  # IPv6 is switched off
            raise UserError(
                f'--distributed={address},...: cannot listen there ({e.strerror})'
            ) from None


def several() -> bool:
    """Whether this process is one of several; a process alone initializes no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, by index; all must call this at the same point."""
    if not several():
        return [text]
    data = text.encode(errors='surrogateescape')  # a path need not be UTF-8
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    row = np.zeros(max(1, lengths.max()), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [rows[i, :n].tobytes().decode(errors='surrogateescape') for i, n in enumerate(lengths)]


def anyone(flag: bool) -> bool:
    """Whether the flag is true on any process; all must call this at the same point."""
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any()) if several() else flag


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises an error of one process on all processes. All must enter the block; it can nest.

    Raises:
      PeerError: with the message of the first process that failed; empty on all but process 0.
    """
    if not several():
        yield
        return
    failed = ''
    try:
        yield
    except PeerError:
        raise
    except (UserError, OSError) as e:
        error = from_os_error(e) if isinstance(e, OSError) else e
        failed = f'{error.exit_status} {error}'
    for index, answer in enumerate(gather(failed)):
        if answer:
            status, _, text = answer.partition(' ')
            where = f' (on process {index})' if index else ''
            raise PeerError(text + where if is_first() else '', int(status))


def check_same(what: str, digest: Callable[[], str]) -> None:
    """Compares a digest among processes; a single process computes none.

    Raises:
      DataError: they differ.
    """
    if several():
        digests = gather(digest())
        different = [i for i, d in enumerate(digests) if d != digests[0]]
        if different:
            raise DataError(
                f'process {different[0]} holds other {what} than process 0: prepare the same files '
                'for both'
            )


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Converts host arrays, equal on every process, to global arrays with a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(spread, tree)


def explain(e: BaseException) -> int:
    """Prints why this process stops before the others; returns its exit status."""
    if isinstance(e, UserError | OSError):
        error = from_os_error(e) if isinstance(e, OSError) else e
        say(str(error))
        return error.exit_status
    if isinstance(e, RuntimeError) and (found := from_runtime_error(e)):
        print(f'error: {found}', file=sys.stderr)
        return found.exit_status
    if isinstance(e, KeyboardInterrupt):
        return 130
    # JAX raises errors of its collectives as one or the other, depending on when they arrive.
    if isinstance(e, RuntimeError | ValueError) and LOST.search(str(e)):
        say(
            f'process {jax.process_index()} of {jax.process_count()} lost another one '
            f'({one_line(e)}): run the same command again to continue from the last checkpoint'
        )
        return os.EX_TEMPFAIL
    traceback.print_exception(e)
    return 1


LOST = re.compile('gloo|connection|heartbeat|coordination|barrier|deadline|unavailable|peer', re.I)


@functools.cache  # must live as long as the process
def abort_handler() -> Callable[[int], None]:
    """Returns a C signal handler that ends the process with an error message and status 75.

    JAX aborts from a thread of its C++ when another process misses its heartbeats or process 0 is
    gone. Python's own handlers would not run before the abort.
    """

    def handle(_signum: int) -> None:
        give_up(
            'the JAX runtime aborted this process, most likely because another one hangs or is '
            'lost: run the same command again to continue from the last checkpoint'
        )

    return ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)


def give_up(message: str) -> None:
    """Ends this process from another thread."""
    say(message)
    os._exit(os.EX_TEMPFAIL)


def say(message: str) -> None:
    """Prints an error; without effect if stderr is a file on a full disk."""
    with contextlib.suppress(OSError):
        print(f'error: {message}', file=sys.stderr, flush=True)
