"""Measures how the time of a training step scales, and the overhead of the training loop."""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.environment import gpu
from nin_jax.runs.environment import usable_cpus

ROOT = pathlib.Path(__file__).parents[1]


def measure(network: str, repeats: int, limit: float) -> dict[str, list[dict]]:
    """Measures by batch size, number of images and number of devices, and the loop's overhead.

    A measurement that takes more than `limit` seconds fails.
    """
    run = functools.partial(child, limit)
    return {
        'by_batch': [
            run('step', network, batch, 1024, repeats) for batch in (16, 32, 64, 128, 256)
        ],
        'by_images': [
            run('step', network, 128, images, repeats) for images in (1024, 10_000, 50_000)
        ],
        'by_devices': by_devices(network, repeats, limit),
        'loop': [
            run('loop', network, 128, 2048, repeats),
            run('loop', 'tiny', 32, 2048, repeats),
        ],
    }


def by_devices(network: str, repeats: int, limit: float) -> list[dict]:
    """Measures one program on 1, 2, 4, ... GPUs, or CPU devices with one core each."""
    gpus = gpu().count(';') + 1 if gpu() else 0
    flag = '--xla_force_host_platform_device_count='
    return [
        child(
            limit,
            *('step', network, 128, 1024, repeats),
            devices=n,
            env={} if gpus else {'XLA_FLAGS': f'{flag}{n}'},
        )
        for n in (1, 2, 4, 8)
        if n <= (gpus or usable_cpus())
    ]


def child(limit: float, what: str, *arguments, devices: int = 1, env: dict | None = None) -> dict:
    """Runs a measurement in a separate process; a failure becomes a row with the reason."""
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.scaling', what, *map(str, (*arguments, devices))],
            cwd=ROOT,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        error = f'no answer in {limit:.0f} s'
        return {'arguments': arguments, 'devices': devices, 'failed': error}
    if done.returncode:
        error = (done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]
        return {'arguments': arguments, 'devices': devices, 'failed': error}
    return json.loads(done.stdout.splitlines()[-1])


def synthetic_run(network: str, batch_size: int, images: int, devices: int, **overrides):
    """Returns a trainer on random images on the device; 'tiny' is one small layer."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from benchmarks import backends
    from nin_jax.config import block
    from nin_jax.data.batches import Examples, Resident
    from nin_jax.data.preprocess import Preprocess
    from nin_jax.devices import make_mesh
    from nin_jax.plan import make_plan
    from nin_jax.train.trainer import Trainer, make_setup

    config = backends.config('mnist' if network == 'tiny' else network)
    size, channels, classes = backends.NETWORKS['mnist' if network == 'tiny' else network]
    if network == 'tiny':
        config.model.blocks = type(config)(dict(mlpconv1=block((classes,), 3, init_std=())))
        size = 8
    config.train.batch_size = batch_size
    config.update_from_flattened_dict(overrides)
    mesh = make_mesh(devices)
    plan = make_plan(config, images, jax.default_backend() == 'cpu')
    setup, init_state = make_setup(config, plan, mesh, (size, size, channels), classes)
    rng = np.random.default_rng(0)
    here = NamedSharding(mesh, PartitionSpec())
    examples = jax.device_put(
        Examples.of(
            rng.normal(size=(images, size, size, channels)).astype(np.float32),
            rng.integers(0, classes, images).astype(np.int32),
        ),
        here,
    )
    preprocess = jax.device_put(Preprocess('scale'), here)  # not applied: the images are floats
    names = tuple(map(str, range(classes)))
    split = Resident(examples)
    return Trainer(config, plan, setup, preprocess, lambda side: split, split, names, init_state)


def step(network: str, batch_size: int, images: int, repeats: int, devices: int) -> dict:
    """Measures a training step, with the steps per call of a run on this machine."""
    import jax

    from nin_jax.train.step import train_steps

    run = synthetic_run(network, batch_size, images, devices)
    state, steps, seconds = run.init_state(0), run.plan.steps_per_call, []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=steps
        )
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:]) / steps
    return {
        'network': network,
        'batch_size': batch_size,
        'images': images,
        'devices': devices,
        'compile_and_first_s': seconds[0],
        'step_s': median,
        'images_per_s': batch_size / median,
    }


def loop(network: str, batch_size: int, images: int, repeats: int, devices: int) -> dict:
    """Compares the training loop (metrics, a checkpoint every 50 steps) with the bare program.

    Both alternate and use the same compiled program, without evaluations.
    """
    import jax
    import numpy as np

    from nin_jax.data.pipeline import Data
    from nin_jax.data.preprocess import Preprocess
    from nin_jax.data.sources import Arrays
    from nin_jax.runs.metrics import Stopwatch
    from nin_jax.runs.recorder import Recorder
    from nin_jax.runs.workdir import RunDir, flat_config
    from nin_jax.train import loop as training

    calls = 5 if network == 'tiny' else 1
    run = synthetic_run(
        network,
        batch_size,
        images,
        devices,
        **{
            'train.duration': f'{50 * calls}steps',
            'eval.every': f'{10**6}steps',
            'checkpoint.every': '50steps',
        },
    )
    total, steps = run.plan.total_steps, run.plan.steps_per_call
    compiled = training.Calls(run, 0, Stopwatch()).program(steps, run.plan.stage(0))

    def bare() -> float:
        state = run.init_state(0)
        start = time.perf_counter()
        for _ in range(total // steps):
            state, metrics = compiled(state, run.train(0).examples, run.preprocess)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    image = Arrays(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32), run.class_names)
    data = Data(image, image)  # only recorded

    def whole() -> float:
        clock = Stopwatch()
        with tempfile.TemporaryDirectory() as name:
            folder = RunDir(pathlib.Path(name), flat_config(run.config), is_done=False)
            with Recorder(
                folder, run.config, run.plan, Preprocess('scale'), data, clock
            ) as recorder:
                state = recorder.resume(run.state_shapes(), lambda: run.init_state(0))
                start = time.perf_counter()
                training.fit(run, state, recorder)
                seconds = time.perf_counter() - start
            return seconds - clock.seconds['eval'] - clock.seconds['compile']

    pairs = [(bare(), whole()) for _ in range(repeats + 1)][1:]
    extra = statistics.median(b - a for a, b in pairs)
    alone = statistics.median(a for a, _ in pairs)
    return {
        'network': network,
        'batch_size': batch_size,
        'steps': total,
        'steps_per_call': steps,
        'bare_s': alone,
        'loop_s': alone + extra,
        'extra_share': extra / alone,
        'extra_ms_per_call': 1e3 * extra / (total / steps),
    }


if __name__ == '__main__':
    what, network, *numbers = sys.argv[1:]
    result = {'step': step, 'loop': loop}[what](network, *map(int, numbers))
    print(json.dumps(result))
