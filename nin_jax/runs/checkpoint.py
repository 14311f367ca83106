"""Checkpoints: written by Orbax, verified by a SHA-256 of our own.

Orbax restores an array with a flipped bit silently, and takes an empty folder for the latest step.
So every checkpoint carries a SHA-256 of its arrays and one of its metadata, and restoring walks
from the newest to the oldest until one matches. Several processes save together, read separately,
and agree on which checkpoint to use.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from nin_jax import distributed
from nin_jax.devices import shapes
from nin_jax.errors import CheckpointError, SaveError, one_line
from nin_jax.files import verify_checksum, with_checksum

PAUSES_S = (0.5, 2)  # between attempts to write a checkpoint


def digest(tree: Any) -> str:
    """Returns the SHA-256 of the paths, dtypes, shapes and bytes of a tree of arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n'.encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def filled(state: Any) -> dict:
    """Returns the fields with arrays; older checkpoints lack `stats` and remain readable."""
    fields = ((f.name, getattr(state, f.name)) for f in dataclasses.fields(state))
    return {name: value for name, value in fields if jax.tree.leaves(value)}


class Checkpoints:
    """The checkpoints of one run: the newest `keep` and the one with the lowest test error.

    Args:
      folder: created if it does not exist.
      keep: number of newest checkpoints to keep.
      warn: called with a message for every skipped damaged checkpoint.
      read_only: for evaluation; no file is changed.

    Raises:
      CheckpointError: `read_only`, and there is no such folder.
    """

    def __init__(
        self, folder: pathlib.Path, keep: int, warn: Callable[[str], None], read_only: bool = False
    ):
        if read_only and not folder.is_dir():
            raise CheckpointError(
                f"no checkpoints in '{folder}': train a run there first, or name another --workdir"
            )
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics['error'],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        latest = checkpoint_managers.LatestN(keep)
        self._several = distributed.several()
        self._folder, self._warn, self._read_only = folder.absolute(), warn, read_only
        # Not needed for reading, for which Orbax would fail on a damaged checkpoint.
        self._options = ocp.CheckpointManagerOptions(
            read_only=True,
            create=False,
            cleanup_tmp_directories=False,
            lightweight_initialize=True,
        )
        if not read_only:
            self._options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
                best_fn=lambda metrics: metrics['error'],
                best_mode='min',
                cleanup_tmp_directories=True,
            )
            with distributed.together():
                self._set_aside_unreadable_errors()
        self._manager = ocp.CheckpointManager(self._folder, options=self._options)
        # Step and content of a checkpoint that may not be on disk yet.
        self._unsure: tuple[int, dict[str, Any]] | None = None

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        # Closing waits for the other processes, which do not know about an error of this process.
        if error is None or isinstance(error, distributed.PeerError) or not self._several:
            try:
                self._manager.close()
            except Exception:
                self._manager.close()  # the first call raises a pending error and closes nothing
                if error is None:  # otherwise the original error is more informative
                    raise

    def save(self, step: int, state: Any, meta: dict, error: float | None) -> None:
        """Starts to write a checkpoint in the background, unless the step already exists.

        Args:
          step: step of the state.
          meta: JSON metadata.
          error: top-1 error at this step, to select the best; None if not evaluated.

        Raises:
          SaveError: this or the previous checkpoint cannot be written.
        """
        exists = json.dumps(step in self._manager.all_steps())
        if json.loads(distributed.gather(exists)[0]):  # process 0 decides for all
            return
        self.wait()
        # A copy, because the next step reuses the state's buffers.
        state = jax.tree.map(jnp.copy, state)
        content: dict[str, Any] = dict(
            metrics=None if error is None else {'error': error},
            force=True,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(filled(state)),
                meta=ocp.args.JsonSave(with_checksum(meta | {'digest': digest(state)})),
            ),
        )
        self._unsure = step, content
        try:
            self._manager.save(step, **content)
        except Exception as e:  # Orbax raises many types
            self._save_again(e)

    def _save_again(self, reason: Exception) -> None:
        """Retries with a new manager: Orbax fails, for example, after the clock was changed.

        Several attempts, because threads of the failed save may still be writing to the same place.
        """
        assert self._unsure is not None
        step, content = self._unsure
        self._unsure = None
        with contextlib.suppress(Exception):
            self._manager.close()
        for pause in () if self._several else (0, *PAUSES_S):  # the others do not retry
            time.sleep(pause)
            try:
                self._manager = ocp.CheckpointManager(self._folder, options=self._options)
                self._manager.save(step, **content)
                self._manager.wait_until_finished()
                return
            except Exception as e:
                reason = e
                with contextlib.suppress(Exception):
                    self._manager.close()
        raise SaveError(
            f"checkpoint {step} cannot be written to '{self._folder}' ({one_line(reason)}): check "
            'the space left on its disk, then run the same command again'
        ) from reason

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict] | None:
        """Restores (state, meta) of the newest valid checkpoint, or of `step`; None if none exists.

        Args:
          template: shapes, dtypes and shardings of the state, as from `jax.eval_shape`.
          step: an exact step to restore; None for the newest.

        Raises:
          CheckpointError: if there are checkpoints and none can be read, or that at `step` cannot.
        """
        # Uses process 0's list, because other processes may see the files later.
        steps = sorted(self._manager.all_steps(), reverse=True)
        steps = json.loads(distributed.gather(json.dumps(steps))[0])
        if step is not None and step not in steps:
            raise CheckpointError(
                f'no checkpoint at step {step}: there are '
                + (', '.join(map(str, reversed(steps))) or 'none')
            )
        sys.unraisablehook = drop_abandoned_read
        damaged: list[int] = []  # stay in place if none can be read, which may have other reasons
        for candidate in steps if step is None else [step]:
            reason = ''
            try:
                state, meta = self._read(candidate, template)
            except Exception as e:  # Orbax raises many types on a damaged file
                reason = one_line(e)
            reason = next(filter(None, distributed.gather(reason)), '')
            if not reason:
                with distributed.together():
                    for bad in damaged:
                        self._set_aside(bad)
                if damaged and not self._read_only:
                    self._manager.reload()
                return jax.tree.map(
                    lambda x, like: distributed.place(x, like.sharding), state, template
                ), meta
            if step is not None:
                raise CheckpointError(f'checkpoint {step} is damaged ({reason})')
            self._warn(f'checkpoint {candidate} is damaged ({reason}); trying the previous one')
            damaged.append(candidate)
        if steps:
            raise CheckpointError(
                f"no checkpoint in '{self._folder}' can be read: restore the folder from a copy, "
                'or delete it to train from the start'
            )
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, dict]:
        """Reads a checkpoint to one device of this process, without waiting for other processes."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = shapes(template, here)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        with ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            ),
            multiprocessing_options=alone,
        ) as reader:
            read = functools.partial(reader.restore, self._folder / str(step))
            meta = verify_checksum(read(args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta)
            restore = ocp.args.StandardRestore(filled(template))
            state = dataclasses.replace(
                template, **read(args=ocp.args.Composite(state=restore)).state
            )
        if digest(state) != meta['digest']:
            raise ValueError('its arrays do not match their SHA-256')
        if int(state.step) != step:
            raise ValueError(f'it holds step {int(state.step)}')
        return state, meta

    def _set_aside(self, step: int | str) -> None:
        """Moves a damaged checkpoint to another folder, so that its step can be saved again."""
        if self._read_only or not distributed.is_first():
            return
        aside = self._folder.parent / 'damaged'
        aside.mkdir(exist_ok=True)
        target = aside / str(step)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(self._folder / str(step), target)

    def _set_aside_unreadable_errors(self) -> None:
        """Orbax reads every checkpoint's error when it starts, and fails on a damaged one."""
        for path in self._folder.glob('*/metrics/metrics') if distributed.is_first() else []:
            try:
                float(json.loads(path.read_text())['error'])
            except (OSError, ValueError, KeyError, TypeError) as e:
                self._warn(f'checkpoint {path.parts[-3]} is damaged ({one_line(e)}): left out')
                self._set_aside(path.parts[-3])

    def clear(self) -> None:
        """Deletes all checkpoints, for a restart."""
        self.wait()
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def wait(self) -> None:
        """Blocks until everything is on the disk; CheckpointError if it cannot be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            if self._unsure is None:
                raise
            self._save_again(e)
        self._unsure = None


def drop_abandoned_read(news: Any) -> None:
    """Drops the message of a read that Orbax abandons when another one finds a damaged file.

    The first damaged array's error is the one that `_read` reports; the other reads are coroutines
    that fail while they are collected, or futures that find no event loop.
    """
    from_orbax = inspect.iscoroutine(news.object) and 'orbax' in news.object.cr_code.co_filename
    if not from_orbax and str(news.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(news)
