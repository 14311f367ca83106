"""What goes wrong by itself is seen within an epoch; bfloat16 loses no gradient; bits repeat."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nin_jax import commands
from nin_jax.data import datasets
from nin_jax.devices import make_mesh
from nin_jax.plan import make_plan
from nin_jax.train import loop
from nin_jax.train.trainer import make_setup
from tests.helpers import load_page, metrics, run_main, summary, tiny_config

EPOCH = 8  # steps: 256 images in batches of 32
DEAD = (
    '--config.model.blocks.mlpconv2.init_std=(1e-30,1e-30,1e-30)',
    '--config.optim.lr=1e-30',
    '--config.train.dead_steps=4',
)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--config.optim.lr=900.',), 'lower optim.lr'),
        (DEAD, 'all logits of 95 %'),
        (
            (*DEAD, '--config.model.class_bias=0.2', '--config.eval.every=4steps'),
            'all images have the same logits',
        ),
    ],
    ids=['not finite', 'dead', 'dead hidden layer'],
)
def test_hopeless_runs_stop_within_an_epoch(tmp_path, flags, words):
    result = run_main(f'--workdir={tmp_path}', *flags, '--config.train.duration=50ep')
    assert result.returncode == 1 and result.stderr == ''
    assert summary(tmp_path)['status'] == 'diverged' and words in summary(tmp_path)['reason']
    assert summary(tmp_path)['step'] <= EPOCH
    assert words in result.stdout.splitlines()[-1]


@pytest.mark.heavy
@pytest.mark.parametrize('flags', [('--config.optim.lr=900.',), DEAD], ids=['not finite', 'dead'])
def test_hopeless_runs_start_over_as_the_config_says(tmp_path, flags):
    result = run_main(f'--workdir={tmp_path}', *flags, '--config.train.restarts=2')
    assert result.returncode == 1 and result.stderr == ''
    assert result.stdout.count('starting over with new weights') == 2
    assert summary(tmp_path)['attempt'] == 2
    first = [line['attempt'] for line in metrics(tmp_path, 'train') if line['step'] == 4]
    assert first == [0, 1, 2]  # no attempt's records are lost


def test_a_restarted_run_trains_to_its_end(tmp_path, monkeypatch):
    record, recorded = loop.record_metrics, []

    def diverge_once(recorder, health, step, found):
        recorded.append(step)
        if len(recorded) == 2:
            raise loop.DivergedError('made up', step)
        record(recorder, health, step, found)

    monkeypatch.setattr(loop, 'record_metrics', diverge_once)
    config = tiny_config()
    config.train.restarts = 1
    assert commands.train(config, tmp_path, command='') == 0
    assert recorded == [4, 8, *range(4, 25, 4)]
    assert (summary(tmp_path)['status'], summary(tmp_path)['attempt']) == ('done', 1)
    lines = metrics(tmp_path, 'train')
    assert [line['step'] for line in lines if line['attempt'] == 1] == [*range(4, 25, 4)]


@pytest.mark.heavy
def test_the_same_run_twice_is_the_same_bits(tmp_path):
    """The GPU's flag is in the second's environment: XLA would abort over one it does not know."""
    digests = []
    for name, xla_flags in (('one', ''), ('two', '--xla_gpu_deterministic_ops=true')):
        result = run_main(
            f'--workdir={tmp_path / name}',
            '--config.train.duration=16steps',
            env={'XLA_FLAGS': xla_flags},
        )
        assert result.returncode == 0, result.stderr
        meta = tmp_path / name / 'checkpoints' / '16' / 'meta' / 'metadata'
        digests.append(json.loads(meta.read_text())['digest'])
    assert digests[0] == digests[1]


# ---- bfloat16 -------------------------------------------------------------------------------


def gradients(page: str, dtype: str, scales: tuple[float, ...], images: int = 16) -> list[dict]:
    """Name -> gradient, float64, of a page's network on embedded digits, for each scale.

    The loss is multiplied by the scale, and its gradient divided by it again: loss scaling.
    """
    config = load_page(page)
    config.dtype, config.train.batch_size = dtype, images
    split = datasets.load_arrays('mnist_subset', 'train')
    x_BHWC = jnp.asarray(split.images[:images], jnp.float32) / 255
    if page == 'cifar10':
        x_BHWC = jnp.repeat(jnp.pad(x_BHWC, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, -1)
    labels_B = jnp.asarray(split.labels[:images])
    plan = make_plan(config, len(split.labels), short_calls=True)
    setup, init_state = make_setup(config, plan, make_mesh(1), x_BHWC.shape[1:], 10)
    keys_B = jax.random.split(jax.random.key(0), images)

    @jax.jit
    @jax.grad
    def gradient(params, scale):
        logits_BK, _ = nnx.merge(setup.model, nnx.State(params))(x_BHWC, keys_B)
        losses_B = optax.softmax_cross_entropy_with_integer_labels(
            logits_BK.astype(jnp.float32), labels_B
        )
        return scale * jnp.mean(losses_B)

    params = init_state(0).params
    return [
        {
            jax.tree_util.keystr(path): np.asarray(g, np.float64).ravel() / scale
            for path, g in jax.tree_util.tree_leaves_with_path(gradient(params, scale))
        }
        for scale in scales
    ]


@pytest.mark.heavy
@pytest.mark.parametrize('page', ['mnist', pytest.param('cifar10', marks=pytest.mark.slow)])
def test_bfloat16_needs_no_loss_scaling(page):
    """It has float32's exponents: scaling the loss brings no gradient back, for none underflows.

    The zeros that it has and float32 has not are of gradients that do not count, one part in
    100,000 of the norm. What float16 would make of the same gradient shows that this can tell.
    """
    (exact,) = gradients(page, 'float32', (1.0,))
    half, scaled = gradients(page, 'bfloat16', (1.0, 2.0**16))

    def join(tree: dict) -> np.ndarray:
        return np.concatenate([*tree.values()])

    there, norm = join(exact) != 0, np.linalg.norm(join(exact))
    vanished = (join(half) == 0) & there
    lost, lost_norm = vanished.sum() / there.sum(), np.linalg.norm(join(exact)[vanished]) / norm
    lost_in_float16 = np.mean((join(exact).astype(np.float16) == 0)[there])
    changed = np.mean(join(scaled) != join(half))
    cosines = {
        name: exact[name] @ half[name] / np.linalg.norm(exact[name]) / np.linalg.norm(half[name])
        for name in exact
    }
    ratio = np.linalg.norm(join(half)) / norm
    print(
        f'{page}: {there.size:,} gradients, lost {lost:.1e}, which is {lost_norm:.1e} of the '
        f'norm (lost in float16: {lost_in_float16:.1e}), '
        f'changed by scaling {changed:.1e}, cosine of the worst leaf {min(cosines.values()):.4f}, '
        f'ratio of the norms {ratio:.4f}'
    )
    assert changed < 1e-6
    assert lost < 0.01 < lost_in_float16 and lost_norm < 1e-5
    assert min(cosines.values()) > 0.95, cosines
    assert ratio == pytest.approx(1, abs=0.05)
