"""The training step and the evaluation: pure functions, each one jit-compiled program.

The batch, its augmentation and its dropout are pure functions of (seed, attempt, step). They do not
depend on the number of devices, and the state is sufficient to resume a run.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from nin_jax.data.augment import Augment, views
from nin_jax.data.batches import Batch, Examples, example_order, random_streams
from nin_jax.data.preprocess import Preprocess
from nin_jax.models.factory import join
from nin_jax.models.nin import apply, forward


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run needs to resume.

    Attributes:
      step: int32, number of updates.
      attempt: int32, number of restarts with new weights.
      dead_steps: int32, number of consecutive steps on which the network is dead, see `is_dead`.
      params: parameter tree, float32.
      opt_state: state of the optimizer.
      stats: running averages of batch normalization, float32; empty without it.
      ema: moving averages of `params` and `stats`, in one tree; empty without them.
    """

    step: jax.Array
    attempt: jax.Array
    dead_steps: jax.Array
    params: dict
    opt_state: optax.OptState
    stats: dict = dataclasses.field(default_factory=dict)
    ema: dict = dataclasses.field(default_factory=dict)

    @property
    def weights(self) -> dict:
        """The weights to evaluate: the moving averages, or `params` joined with `stats`."""
        return self.ema or join(self.params, self.stats)

    def starting_from(self, params: dict, stats: dict | None = None) -> 'TrainState':
        """Replaces the parameters, the `stats` if given, and the moving averages by both."""
        stats = self.stats if stats is None else stats
        ema = join(params, stats) if self.ema else {}
        return dataclasses.replace(self, params=params, stats=stats, ema=ema)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The static argument of the compiled programs, which must be hashable.

    Attributes:
      model: the network without weights.
      optimizer: the result of `optimizer.make_optimizer`.
      mesh: the devices, along one axis 'data'.
      seed: seed of initialization, batch order, augmentation and dropout.
      batch_size: images per update.
      microbatch: images per gradient, and per batch of batch normalization.
      eval_batch_size: images per evaluation batch.
      augment: augmentation of training images.
      ema: decay of the moving averages of the weights; 0 for none.
      tta: the views whose logits are averaged in evaluation.
      frozen: number of mlpconv layers, from the first, that are not trained in the current stage.
    """

    model: nnx.GraphDef
    optimizer: optax.GradientTransformationExtraArgs
    mesh: jax.sharding.Mesh
    seed: int
    batch_size: int
    microbatch: int
    eval_batch_size: int
    augment: Augment = dataclasses.field(default_factory=Augment)
    ema: float = 0.0
    tta: str = 'none'
    frozen: int = 0


@partial(jax.jit, static_argnames=('setup', 'num_steps'), donate_argnames='state')
def train_steps(
    state: TrainState,
    inputs: Examples | Batch,
    preprocess: Preprocess,
    *,
    setup: Setup,
    num_steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs `num_steps` updates in one dispatch.

    Args:
      state: donated; do not use it afterwards.
      inputs: a split on the device, from which batches are taken, or the batches of all steps.
      preprocess: applied to uint8 images.
      setup: the static argument.
      num_steps: number of updates.

    Returns:
      The new state, and metrics over the call: 'loss' (mean cross-entropy in nats, against mixed
      and smoothed labels), 'error' (mean top-1 error against the images' own labels, with
      augmentation and dropout) and 'dead_steps' (see `TrainState`).
    """
    order_key, augment_key, dropout_key = random_streams(setup.seed, state.attempt)
    selected: Any = inputs  # the batch of each step, or the indices of its examples
    if isinstance(inputs, Examples):
        selected = example_order(order_key, state.step, num_steps, setup.batch_size, len(inputs))

    def one_step(state: TrainState, selected: Any) -> tuple[TrainState, tuple]:
        selected = split_over(setup.mesh, selected)
        batch = inputs.take(selected) if isinstance(inputs, Examples) else selected
        x_BHWC, targets_B = setup.augment(
            augment_key,
            state.step,
            preprocessed(batch.images, preprocess),
            batch.labels,
            batch.indices,
        )
        keys_B = jax.random.split(jax.random.fold_in(dropout_key, state.step), setup.batch_size)
        loss, logits_BK, grads, stats = loss_and_gradient(
            state.params, x_BHWC, targets_B, keys_B, setup, state.stats
        )
        error = jnp.mean(jnp.argmax(logits_BK, axis=-1) != batch.labels)
        updates, opt_state = setup.optimizer.update(
            grads, state.opt_state, state.params, value=error
        )
        updates = without_frozen(updates, setup.frozen)
        dead_steps = jnp.where(is_dead(logits_BK), state.dead_steps + 1, 0)
        params: Any = optax.apply_updates(state.params, updates)
        state = TrainState(
            state.step + 1,
            state.attempt,
            dead_steps,
            params,
            opt_state,
            stats,
            moving_average(state, join(params, stats), setup.ema) if setup.ema else {},
        )
        return state, (loss, error)

    state, (losses, errors) = jax.lax.scan(one_step, state, selected)
    return state, {
        'loss': jnp.mean(losses),
        'error': jnp.mean(errors),
        'dead_steps': state.dead_steps,
    }


def is_dead(logits_BK: jax.Array) -> jax.Array:
    """Returns whether all logits are zero for 95 % of the images or more, as a bool scalar.

    The class maps' ReLU is then zero almost everywhere, and almost no gradient flows. Dropout can
    still make the logits of a few images positive.
    """
    return jnp.mean(jnp.any(logits_BK != 0, axis=-1)) <= 0.05


def without_frozen(updates: Any, frozen: int) -> Any:
    """Sets the updates of the first `frozen` mlpconv layers to 0.

    Their gradient is 0, but an optimizer would still apply momentum and weight decay.
    """
    names = {f'mlpconv{i}' for i in range(1, frozen + 1)}
    return jax.tree_util.tree_map_with_path(
        lambda path, update: jnp.zeros_like(update) if path[1].key in names else update, updates
    )


def moving_average(state: TrainState, weights: dict, decay: float) -> dict:
    """Returns decay * average + (1 - decay) * weights.

    At step t, the decay is at most (1 + t) / (10 + t), which reduces the influence of the initial
    weights in short runs.
    """
    capped = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(weights, state.ema, 1 - capped)  # pyright: ignore


def loss_and_gradient(
    params: dict,
    x_BHWC: jax.Array,
    targets_B: jax.Array,
    keys_B: jax.Array,
    setup: Setup,
    stats: dict | None = None,
) -> tuple[jax.Array, jax.Array, dict, dict]:
    """Returns mean cross-entropy (nats), logits_BK, gradient and new `stats`.

    Gradients are accumulated over microbatches. The sum equals the gradient of the whole batch,
    except that batch normalization uses the statistics of each microbatch. The targets are labels
    or class probabilities.
    """

    def loss_fn(
        params: dict, x_bHWC: jax.Array, targets_b: jax.Array, keys_b: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, dict]]:
        model = nnx.merge(setup.model, nnx.State(join(params, stats or {})))
        logits_bK, _ = forward(model, x_bHWC, keys_b, training=True, frozen=setup.frozen)
        loss = jnp.sum(cross_entropy(logits_bK, targets_b)) / setup.batch_size
        return loss, (logits_bK, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def add_piece(total: Any, piece: Any) -> tuple[Any, Any]:
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *piece)
        return jax.tree.map(jnp.add, total, (loss, grads)), aux

    pieces = jax.tree.map(
        lambda a: a.reshape(-1, setup.microbatch, *a.shape[1:]), (x_BHWC, targets_B, keys_B)
    )
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), (logits_PbK, stats_P) = jax.lax.scan(add_piece, zero, pieces)
    new_stats = jax.tree.map(lambda s_P: jnp.mean(s_P, axis=0), stats_P)  # one update per step
    return loss, logits_PbK.reshape(setup.batch_size, -1), grads, new_stats


def cross_entropy(logits_BK: jax.Array, targets_B: jax.Array) -> jax.Array:
    """Returns losses_B in nats, for labels_B or class probabilities targets_BK."""
    if targets_B.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits_BK, targets_B)
    return optax.softmax_cross_entropy(logits_BK, targets_B)


@partial(jax.jit, static_argnames='setup')
def evaluate(
    weights: dict, examples: Examples, preprocess: Preprocess, *, setup: Setup
) -> dict[str, jax.Array]:
    """Evaluates every example once: 'loss' (mean, nats), 'errors' (a count), 'low_K', 'high_K'.

    'low_K' and 'high_K' are the lowest and highest logit of each class. `weights` are
    `TrainState.weights`; the logits are means over the views of `setup.tta`.
    """
    n, devices = len(examples), setup.mesh.size
    batch_size = min(setup.eval_batch_size, -(-n // devices) * devices)
    positions = jnp.arange(-(-n // batch_size) * batch_size).reshape(-1, batch_size)

    def one_batch(sums: tuple, positions_B: jax.Array) -> tuple[tuple, tuple]:
        batch = examples.take(split_over(setup.mesh, jnp.minimum(positions_B, n - 1)))
        logits_BK = predict_logits(setup, weights, preprocessed(batch.images, preprocess))
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, batch.labels)
        real_B = positions_B < n  # masks the padding of the last batch
        wrong_B = real_B & (jnp.argmax(logits_BK, axis=-1) != batch.labels)
        sums = sums[0] + jnp.sum(losses_B * real_B), sums[1] + jnp.sum(wrong_B)
        return sums, (jnp.min(logits_BK, axis=0), jnp.max(logits_BK, axis=0))

    (loss, errors), (low_NK, high_NK) = jax.lax.scan(
        one_batch, (jnp.float32(0), jnp.int32(0)), positions
    )
    low_K, high_K = jnp.min(low_NK, axis=0), jnp.max(high_NK, axis=0)
    return {'loss': loss / n, 'errors': errors, 'low_K': low_K, 'high_K': high_K}


def predict_logits(setup: Setup, weights: dict, x_BHWC: jax.Array) -> jax.Array:
    """Returns logits_BK, averaged over the views of `setup.tta`."""
    if setup.tta == 'none':
        return apply(setup.model, weights, x_BHWC)[0]
    logits_VBK = jax.lax.map(
        lambda view_BHWC: apply(setup.model, weights, view_BHWC)[0], views(x_BHWC, setup.tta)
    )
    return jnp.mean(logits_VBK, axis=0)


def split_over(mesh: jax.sharding.Mesh, batch: Any) -> Any:
    """Splits the first axis of all arrays over the mesh."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec('data')))


def preprocessed(images_BHWC: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Preprocesses uint8 images; others are preprocessed already."""
    return preprocess(images_BHWC) if images_BHWC.dtype == jnp.uint8 else images_BHWC
