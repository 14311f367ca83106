"""Baselines and ablations: exact sizes, layers against their definition, each of them learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from nin_jax.config import block
from nin_jax.errors import ConfigError
from nin_jax.models.baselines import FullyConnected, LocalConv, maxout, response_norm
from nin_jax.models.factory import layer_blocks
from nin_jax.models.nin import NIN, Block, Conv
from nin_jax.models.summary import format_table, layer_table
from nin_jax.train import optimizer
from nin_jax.train.step import evaluate, train_steps
from tests.helpers import assemble, load_page, plan_of, tiny_config


def conv(kernel: int, inputs: int, outputs: int) -> int:
    """Weights and biases of a convolution, counted by hand."""
    return kernel * kernel * inputs * outputs + outputs


MLPCONVS = (
    (conv(5, 3, 192) + conv(1, 192, 160) + conv(1, 160, 96))
    + (conv(5, 96, 192) + conv(1, 192, 192) + conv(1, 192, 192))
    + (conv(3, 192, 192) + conv(1, 192, 192) + conv(1, 192, 10))
)
HINTON = conv(5, 3, 64) + 2 * conv(5, 64, 64)
PARAMETERS = {
    ('cifar10', ''): MLPCONVS,
    ('ablations', 'fc'): MLPCONVS + (10 * 8 * 8) * 10 + 10,
    ('ablations', 'fc_dropout'): MLPCONVS + (10 * 8 * 8) * 10 + 10,
    ('ablations', 'linear'): conv(5, 3, 96) + conv(5, 96, 192) + conv(3, 192, 10),
    ('ablations', 'maxout'): conv(5, 3, 2 * 96) + conv(5, 96, 2 * 192) + conv(3, 192, 2 * 10),
    ('hinton', 'fc'): HINTON + 4 * 4 * conv(3, 64, 16) + (16 * 4 * 4) * 10 + 10,
    ('hinton', 'fc_dropout'): HINTON + 4 * 4 * conv(3, 64, 16) + (16 * 4 * 4) * 10 + 10,
    ('hinton', 'gap'): HINTON + 4 * 4 * conv(3, 64, 10),
}


def build(config: ConfigDict, classes: int = 10, size: int = 32, channels: int = 3) -> NIN:
    return NIN(
        layer_blocks(config, classes),
        channels,
        fc_classes=classes if config.model.head == 'fc' else 0,
        fc_dropout=config.model.head_dropout,
        image_size=(size, size),
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(('page', 'variant'), PARAMETERS)
def test_parameter_counts(page, variant):
    config = load_page(page, variant)
    model = nnx.eval_shape(lambda: build(config))
    count = PARAMETERS[page, variant]
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
    rows = layer_table(
        layer_blocks(config, 10), (32, 32, 3), 10 if config.model.head == 'fc' else 0
    )
    assert f'\n{count:,} parameters;' in format_table(rows)
    assert ('GAP' in format_table(rows)) == (config.model.head == 'gap')


def test_maxout_takes_the_maximum_of_each_pair():
    y = jnp.array([[[[1.0, -2.0, -5.0, -3.0, 0.0, 7.0]]]])
    np.testing.assert_array_equal(maxout(y, 2), [[[[1, -3, 7]]]])
    np.testing.assert_array_equal(maxout(y, 3), [[[[1, 7]]]])


def test_maxout_block_is_the_maximum_of_its_convolutions_without_relu():
    config = load_page('ablations', 'maxout')
    block1 = build(config).mlpconvs['mlpconv1']
    x_BHWC = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
    y_BHWC = block1.layers['conv'](x_BHWC)
    expected = np.maximum(y_BHWC[..., 0::2], y_BHWC[..., 1::2])
    np.testing.assert_array_equal(block1(x_BHWC), expected)
    assert expected.shape[-1] == 96 and (expected < 0).any()


def test_response_normalisation_by_its_formula():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 12)).astype(np.float32) * 30
    expected = np.empty_like(x)
    for c in range(12):
        near = x[..., max(c - 4, 0) : c + 5]
        expected[..., c] = x[..., c] / (1 + 0.001 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(response_norm(jnp.array(x)), expected, rtol=1e-5)


def test_local_layer_with_equal_filters_everywhere_is_a_convolution():
    shared = Conv(3, 5, 3, init_std=None, rngs=nnx.Rngs(0))
    local = LocalConv(3, 5, 3, size=(6, 7), init_std=None, rngs=nnx.Rngs(1))
    local.kernel[...] = jnp.broadcast_to(shared.kernel[...].reshape(27, 5), (6, 7, 27, 5))
    x_BHWC = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    np.testing.assert_allclose(local(x_BHWC), shared(x_BHWC), rtol=1e-5, atol=1e-6)


def test_local_layer_has_filters_of_its_own_at_each_position():
    local = LocalConv(3, 5, 3, size=(6, 7), init_std=None, rngs=nnx.Rngs(1))
    x_BHWC = jax.random.normal(jax.random.key(0), (1, 6, 7, 3))
    before = local(x_BHWC)
    local.kernel[...] = local.kernel[...].at[2, 3].set(0)
    local.bias[...] = local.bias[...].at[2, 3].set(7)
    after = np.array(local(x_BHWC))
    assert (after[0, 2, 3] == 7).all()
    after[0, 2, 3] = before[0, 2, 3]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize('layer', ['local', 'fc'])
def test_initial_spread(layer):
    def make(init_std):
        if layer == 'local':
            return LocalConv(8, 40, 3, size=(4, 4), init_std=init_std, rngs=nnx.Rngs(0))
        return FullyConnected((4, 4, 50), 40, init_std=init_std, rngs=nnx.Rngs(0))

    fan_in = 72 if layer == 'local' else 800
    assert np.std(make(0.05).kernel[...]) == pytest.approx(0.05, rel=0.03)
    assert np.std(make(None).kernel[...]) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    assert not make(0.05).bias[...].any()


def fc_model(dropout: float = 0.0) -> NIN:
    blocks = (Block((6, 4), 3, 'max', init_std=()), Block((4, 3), 3, init_std=()))
    return NIN(blocks, 2, fc_classes=5, fc_dropout=dropout, image_size=(8, 8), rngs=nnx.Rngs(0))


def test_fully_connected_head_is_linear_in_the_last_maps():
    model = fc_model()
    logits_BK, maps_BHWC = model(jax.random.normal(jax.random.key(0), (3, 8, 8, 2)))
    assert maps_BHWC.shape == (3, 4, 4, 3) and logits_BK.dtype == jnp.float32
    expected = np.asarray(maps_BHWC).reshape(3, 48) @ model.fc.kernel[...] + model.fc.bias[...]
    np.testing.assert_allclose(logits_BK, expected, rtol=1e-5)


def test_head_dropout_drops_inputs_of_the_head_in_training_only():
    x_BHWC = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    keys_B = jax.random.split(jax.random.key(1), 3)
    plain, dropping = fc_model(), fc_model(dropout=0.5)
    np.testing.assert_array_equal(plain(x_BHWC, keys_B)[0], plain(x_BHWC)[0])
    np.testing.assert_array_equal(dropping(x_BHWC)[0], plain(x_BHWC)[0])
    trained, maps_BHWC = dropping(x_BHWC, keys_B)
    np.testing.assert_array_equal(maps_BHWC, plain(x_BHWC)[1])
    assert (trained != plain(x_BHWC)[0]).any()


@pytest.mark.parametrize(
    ('page', 'words'),
    [
        (('ablations', 'fc'), 'a fully connected head requires maps of 8x8, got 10x8'),
        (('hinton', 'gap'), 'a locally connected layer requires maps of 4x4, got 5x4'),
    ],
)
def test_another_image_size_is_one_sentence(page, words):
    model = nnx.eval_shape(lambda: build(load_page(*page)))
    with pytest.raises(ConfigError, match=f'^{words}: use images of the size'):
        nnx.eval_shape(lambda m: m(jnp.zeros((1, 40, 32, 3))), model)


def test_with_a_fully_connected_head_that_layer_learns_at_a_tenth():
    config = load_page('ablations', 'fc')
    model = nnx.eval_shape(lambda: build(config))
    assert model.last_layer == ('fc',)
    params = jax.tree.map(
        lambda x: jnp.zeros(x.shape), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )
    optimiser = optimizer.make_optimizer(config.optim, params, model.last_layer, plan_of())
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimiser.update(ones, optimiser.init(params), params, value=1.0)
    rates = {
        'fc': updates['fc'],
        'cccp6': updates['mlpconvs']['mlpconv3']['layers']['cccp2'],
    }
    for (name, part), rate in zip(
        itertools.product(rates, ('kernel', 'bias')), (0.01, 0.02, 0.1, 0.2), strict=True
    ):
        np.testing.assert_allclose(rates[name][part], -rate, rtol=1e-6)


def tiny(kind: str) -> ConfigDict:
    """A few thousand weights of each kind, on 256 embedded digits of 28x28."""
    config = tiny_config()
    config.model.class_bias, config.train.microbatch = 0.5, 32
    config.optim.last_layer_lr, config.optim.drops, config.train.duration = 1.0, '', '96steps'

    def rows(*rows: ConfigDict) -> ConfigDict:
        return ConfigDict({f'mlpconv{i}': row for i, row in enumerate(rows, start=1)})

    if kind == 'fc_dropout':
        config.optim.lr, config.model.class_bias = 0.01, 0.1
        config.model.head, config.model.head_dropout = 'fc', 0.5
        widths = (16, 16, 16)
        config.model.blocks = rows(
            block(widths, 5, pool='max', init_std=()), block(widths, 3, pool='max', init_std=())
        )
    elif kind == 'hinton':
        config.optim.lr = 0.05
        config.model.blocks = rows(
            block((8,), 5, pool='max_rnorm', init_std=()),
            block((8,), 5, pool='avg_rnorm', init_std=()),
            block((8,), 5, pool='avg', init_std=()),
            block((10,), 3, init_std=(), local=True),
        )
    else:
        pieces = 2 if kind == 'maxout' else 1
        config.optim.lr = 0.1
        config.model.blocks = rows(
            block((8,), 5, pool='max', init_std=(), pieces=pieces),
            block((10,), 3, init_std=(), pieces=pieces),
        )
    return config


def losses_of(config: ConfigDict, calls: int, steps: int) -> tuple[list[float], float]:
    """Training loss of each call, and test loss at the end."""
    run = assemble(config)
    state, losses = run.init_state(0), []
    for _ in range(calls):
        state, metrics = train_steps(
            state, run.train(0).examples, run.preprocess, setup=run.setup, num_steps=steps
        )
        losses.append(float(metrics['loss']))
    scores = evaluate(state.params, run.eval.examples, run.preprocess, setup=run.setup)
    return losses, float(scores['loss'])


@pytest.mark.parametrize('kind', ['fc_dropout', 'hinton', 'linear', 'maxout'])
@pytest.mark.heavy
def test_each_learns_in_miniature(kind):
    losses, test_loss = losses_of(tiny(kind), calls=12, steps=8)
    target = 2.2 if kind == 'linear' else 1.7  # from ln(10) = 2.30
    assert losses[0] > 2.2 and losses[-1] < target and test_loss < target + 0.2


@pytest.mark.slow
@pytest.mark.parametrize(('page', 'variant'), [key for key in PARAMETERS if key[1]])
def test_each_learns_on_cifar10(page, variant, data_dir):
    """The whole network on 1,500 images for 240 steps, without dropout between the blocks.

    The fully connected heads on NIN start from He initialization and live maps, for the paper's
    initial weights begin with a plateau of epochs.
    """
    config = load_page(page, variant)
    config.data.dir, config.data.limit, config.train.batch_size = data_dir, 1500, 32
    for row in config.model.blocks.values():
        row.dropout = 0.0
    if variant in ('fc', 'fc_dropout') and page == 'ablations':
        for row in config.model.blocks.values():
            row.init_std = ()
        config.model.class_bias = 0.1
        config.optim.lr, config.optim.last_layer_lr = 0.002, 1.0
    config.optim.drops, config.train.duration = '', '240steps'
    losses, _ = losses_of(config, calls=6, steps=40)
    assert losses[-1] < min(losses[0], 2.29)  # ln(10) = 2.3026 is what knowing nothing costs
