"""Compares replicas of a run in one vmapped program with the same replicas in sequence.

    python -m benchmarks.replicas --replicas=4

For each network, the same replicas take the same steps both ways, in alternation. Prints the median
rate of each in replica-steps per second, and their ratio. The network 'tiny' has 8 channels per
layer, 'quickstart' is the paper's for MNIST. Images are random, 28x28, in batches of 64.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.environment import positive
from experiments.configs import quickstart
from nin_jax.config import block
from nin_jax.data.batches import Examples
from nin_jax.data.preprocess import Preprocess
from nin_jax.devices import make_mesh
from nin_jax.plan import make_plan
from nin_jax.train.step import train_steps
from nin_jax.train.trainer import make_setup


def network(name: str):
    """Returns (setup, init_state) of a run."""
    config = quickstart.get_config('')
    config.dtype = 'bfloat16' if jax.default_backend() == 'gpu' else 'float32'
    if name == 'tiny':
        config.model.blocks.mlpconv1 = block((8, 8, 8), kernel=5, pool='max', init_std=())
        config.model.blocks.mlpconv2 = block((8, 8, 8), kernel=5, pool='max', init_std=())
        config.model.blocks.mlpconv3 = block((8, 8, 10), kernel=5, init_std=())
    plan = make_plan(config, 5000, short_calls=jax.default_backend() == 'cpu')
    return make_setup(config, plan, make_mesh(1), (28, 28, 1), 10)


def measure(name: str, replicas: int, steps: int, rounds: int) -> tuple[float, float]:
    """Returns median replica-steps per second: (sequential, vmapped)."""
    setup, init_state = network(name)
    rng = np.random.default_rng(0)
    examples = Examples.of(
        jnp.asarray(rng.normal(size=(steps * 64, 28, 28, 1)), jnp.float32),
        jnp.asarray(rng.integers(0, 10, steps * 64), jnp.int32),
    )
    prepared = Preprocess('scale')  # not applied: the images are floats
    states = [init_state(attempt) for attempt in range(replicas)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    one = jax.jit(
        lambda state: train_steps(state, examples, prepared, setup=setup, num_steps=steps)[0]
    )
    together = jax.jit(jax.vmap(one))

    def one_after_another():
        return [one(state) for state in states]

    ways = {'sequential': one_after_another, 'vmapped': lambda: together(stacked)}
    ends = {way: jax.block_until_ready(train()) for way, train in ways.items()}  # compiles
    for i, end in enumerate(ends['sequential']):  # both ways must do the same work
        for a, b in zip(*map(jax.tree.leaves, (end.params, ends['vmapped'].params)), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=2e-2, atol=2e-3)
    seconds = {way: [] for way in ways}
    for _ in range(rounds):
        for way, train in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(train())
            seconds[way].append(time.perf_counter() - start)
    rates = [replicas * steps / statistics.median(s) for s in seconds.values()]
    return rates[0], rates[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--replicas', type=positive, default=4)
    parser.add_argument('--steps', type=positive, default=4, help='steps per dispatch')
    parser.add_argument('--rounds', type=positive, default=3)
    known = ['tiny', 'quickstart']
    parser.add_argument('--networks', nargs='+', choices=known, default=known)
    args = parser.parse_args()
    print(f'{jax.devices()[0].device_kind}, {args.replicas} replicas, replica-steps per second')
    print(f'{"network":12} {"sequential":>18} {"vmapped":>10} {"ratio":>7}')
    for name in args.networks:
        sequential, together = measure(name, args.replicas, args.steps, args.rounds)
        ratio = together / sequential
        print(f'{name:12} {sequential:18.2f} {together:10.2f} {ratio:7.2f}', flush=True)


if __name__ == '__main__':
    main()
