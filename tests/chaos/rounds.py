"""The disturbances. Each takes (lab, rng, folder), disturbs, and sees the run to its end.

Moments are drawn uniformly over the time that the undisturbed command takes, so that imports,
compilation, training, saving and the end are all met. A round raises Trouble if anything is not as
it should be, and returns in a word or two what it met.
"""

import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

import numpy as np

from tests.chaos.lab import PATIENCE_S, ROOT, Ended, Lab, Trouble, mounted

CLOCK = ROOT / 'tests' / 'chaos' / 'clock'


def after_signal(lab: Lab, rng, process: subprocess.Popen, sign: int, seconds: float) -> Ended:
    """Sends a signal at a moment drawn from (0, seconds)."""
    time.sleep(rng.uniform(0, seconds))
    process.send_signal(sign)
    return lab.wait(process)


def say(status: int) -> str:
    words = {0: 'done first', os.EX_TEMPFAIL: 'saved', 2: 'one sentence', 130: 'stopped'}
    return words.get(status, 'killed')


def kill(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    ended = after_signal(lab, rng, lab.train(folder), signal.SIGKILL, lab.digits.seconds)
    ended.expect(0, -signal.SIGKILL)
    lab.finish(folder)
    return say(ended.status)


def term(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    ended = after_signal(lab, rng, lab.train(folder), signal.SIGTERM, lab.digits.seconds)
    ended.expect(0, os.EX_TEMPFAIL, -signal.SIGTERM)  # the last: before there was anything to save
    lab.finish(folder)
    return say(ended.status)


def interrupt(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    ended = after_signal(lab, rng, lab.train(folder), signal.SIGINT, lab.digits.seconds)
    if ended.status != -signal.SIGINT:  # Python's own words, before the program has begun
        ended.expect(0, os.EX_TEMPFAIL, 130)
    lab.finish(folder)
    return say(ended.status)


def stop_and_continue(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    process = lab.train(folder)
    time.sleep(rng.uniform(0, lab.digits.seconds))
    process.send_signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 1))
    process.send_signal(signal.SIGCONT)
    lab.wait(process).expect(0)
    lab.finish(folder)
    return 'went on'


def kill_in_save(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    """Some milliseconds after the temporary folder of a checkpoint appears."""
    process, deadline = lab.train(folder), time.monotonic() + PATIENCE_S
    which = rng.integers(1, 10)  # of the ten checkpoints
    seen: set[str] = set()
    while len(seen) < which and process.poll() is None and time.monotonic() < deadline:
        seen |= {p.name for p in folder.glob('checkpoints/*tmp*')}
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.04))
    process.kill()
    ended = lab.wait(process).expect(0, -signal.SIGKILL)
    left = [p.name for p in folder.glob('checkpoints/*tmp*')]
    lab.finish(folder)
    if list(folder.glob('checkpoints/*tmp*')):
        raise Trouble('a half-written checkpoint was left behind')
    return 'half a checkpoint' if left else say(ended.status)


def full_disk(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    """A disk that ends somewhere within what the run writes; then there is space again."""
    pages = int(rng.integers(2, 75))
    with mounted(folder / 'disk', '-t', 'tmpfs', '-o', f'size={pages * 4}k', 'tmpfs') as small:
        workdir = folder / 'disk' / 'run'
        limit = int(rng.integers(0, 16_000))

        def no_large_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        process = lab.train(workdir, preexec_fn=None if small else no_large_files)
        ended = lab.wait(process).expect(0, os.EX_TEMPFAIL)
        if small:
            remount = ['mount', '-o', 'remount,size=64m', folder / 'disk']
            subprocess.run(remount, check=True)
        lab.finish(workdir)
    return say(ended.status) + ('' if small else ' (RLIMIT_FSIZE)')


def read_only(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    """A workdir that cannot be written, new or with a run half done in it."""
    workdir, begun = folder / 'run', rng.random() < 0.7
    workdir.mkdir(parents=True)
    if begun:
        after_signal(lab, rng, lab.train(workdir), signal.SIGKILL, lab.digits.seconds)
    with mounted(folder / 'sealed', '--bind', folder) as may:
        if not may:
            return 'skipped: may not mount'
        subprocess.run(['mount', '-o', 'remount,bind,ro', folder / 'sealed'], check=True)
        ended = lab.wait(lab.train(folder / 'sealed' / 'run')).expect(2)
    lab.finish(workdir)
    return say(ended.status)


def clock_jumps(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    env = {'PYTHONPATH': str(CLOCK), 'CHAOS_CLOCK_SEED': str(rng.integers(1 << 30))}
    process = lab.train(folder, env=env)
    if rng.random() < 0.5:
        ended = after_signal(lab, rng, process, signal.SIGTERM, lab.digits.seconds)
        ended.expect(0, os.EX_TEMPFAIL, -signal.SIGTERM)
    else:
        ended = lab.wait(process).expect(0)
    lab.finish(folder, env=env if rng.random() < 0.5 else {})
    return say(ended.status)


def two_runs(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    """The second hears one sentence, whether the first runs, sleeps or is killed meanwhile."""
    first = lab.train(folder)
    time.sleep(rng.uniform(0, lab.digits.seconds))
    fate = rng.choice(['runs', 'sleeps', 'is killed'])
    if fate == 'sleeps':
        first.send_signal(signal.SIGSTOP)
    second = lab.train(folder)
    if fate == 'is killed':
        time.sleep(rng.uniform(0, lab.digits.seconds))
        first.kill()
    ended = lab.wait(second).expect(0, 2)
    first.send_signal(signal.SIGCONT)
    other = lab.wait(first).expect(0, 2, -signal.SIGKILL)
    for each in (ended, other):
        if each.status == 2 and 'another process is running in' not in each.err:
            raise Trouble(f'not the sentence about another process: {each.err}')
    if {ended.status, other.status} == {2}:
        raise Trouble('each of two runs gave way to the other')
    lab.finish(folder)
    return f'first {fate}'


def kill_in_prepare(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    sign = rng.choice([signal.SIGKILL, signal.SIGTERM])
    ended = after_signal(lab, rng, lab.prepare(folder / 'tfds'), sign, lab.prepare_s)
    ended.expect(0, -sign)
    finish_prepare(lab, folder)
    return say(ended.status)


def half_a_cache(lab: Lab, rng: np.random.Generator, folder: pathlib.Path) -> str:
    """Killed while it decodes; or a cache cut short by other hands, named and deleted as told."""
    shutil.copytree(lab.folder / 'tfds' / 'svhn_cropped', folder / 'tfds' / 'svhn_cropped')
    cache = folder / 'tfds' / 'nin_jax_cache' / 'svhn_cropped' / '3.1.0'
    env = {'TFDS_DATA_DIR': str(folder / 'tfds')}
    if rng.random() < 0.5:
        process, deadline = (
            lab.train(folder / 'run', 'svhn', env=env),
            time.monotonic() + PATIENCE_S,
        )
        while not list(cache.parent.glob('*')) and process.poll() is None:
            if time.monotonic() > deadline:
                raise Trouble(f'no cache after {PATIENCE_S} s')
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        lab.wait(process).expect(0, -signal.SIGKILL)
        met = 'killed, cache whole' if cache.exists() else 'killed, cache half'
    else:
        shutil.copytree(lab.folder / 'tfds' / 'nin_jax_cache', folder / 'tfds' / 'nin_jax_cache')
        chosen = rng.choice(sorted(cache.glob('t*.npy')))
        chosen.write_bytes(chosen.read_bytes()[: rng.integers(0, chosen.stat().st_size)])
        ended = lab.wait(lab.train(folder / 'run', 'svhn', env=env)).expect(2)
        if f'delete {cache}' not in ended.err:
            raise Trouble(f'the damaged cache is not named: {ended.err}')
        shutil.rmtree(cache)
        met = 'cut short'
    lab.finish(folder / 'run', 'svhn', env=env)
    return met


def finish_prepare(lab: Lab, folder: pathlib.Path) -> None:
    """Prepares again and trains on it; Trouble if anything half-made stays."""
    lab.wait(lab.prepare(folder / 'tfds')).expect(0)
    left = [p.name for p in folder.rglob('*incomplete*')]
    if left:
        raise Trouble(f'{left} left behind')
    lab.finish(folder / 'run', 'svhn', env={'TFDS_DATA_DIR': str(folder / 'tfds')})


KINDS = (
    kill,
    term,
    interrupt,
    stop_and_continue,
    kill_in_save,
    full_disk,
    read_only,
    clock_jumps,
    two_runs,
    kill_in_prepare,
    half_a_cache,
)
