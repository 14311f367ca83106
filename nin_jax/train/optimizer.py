"""The optimizer as an Optax chain. The authors' update (cuda-convnet NIN/*_params, weights.cuh) is

    v <- momentum * v - lr * m * (gradient + weight_decay * w)
    w <- w + v

The momentum buffer contains the learning rate, so after a drop the old velocity decays instead of
shrinking immediately. m is a multiplier: biases have twice the learning rate and no weight decay,
and the last layer has a tenth of the learning rate. Nesterov momentum and Muon are alternatives.
"""

import jax
import optax
from ml_collections import ConfigDict

from nin_jax.plan import Plan
from nin_jax.train.schedules import learning_rate


def make_optimizer(
    config: ConfigDict, params: dict, last_layer: tuple[str, ...], plan: Plan
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer; its update requires the top-1 error of the batch as `value`.

    Args:
      config: the `optim` part of a config.
      params: the parameter tree, for its structure.
      last_layer: path in `params` of the layer that computes the class maps.
      plan: the run's plan, for the schedule.
    """

    def multiplier(path: tuple, _: jax.Array) -> float:
        names = tuple(key.key for key in path)
        return (config.last_layer_lr if names[:-1] == last_layer else config.backbone_lr) * (
            config.bias_lr if names[-1] == 'bias' else 1.0
        )

    multipliers = jax.tree_util.tree_map_with_path(multiplier, params)
    is_weight = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
    multiply = optax.stateless(
        lambda grads, _: jax.tree.map(lambda g, m: g * m, grads, multipliers)
    )
    rate = learning_rate(config, plan)
    if config.rule == 'muon':
        return optax.chain(muon(config, params), multiply, rate)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_weight),
        multiply,
        rate,
        optax.trace(config.momentum, nesterov=config.rule == 'nesterov'),
    )


def muon(config: ConfigDict, params: dict) -> optax.GradientTransformation:
    """Muon (Jordan 2024): the update of a weight matrix is its momentum, orthogonalized.

    A kernel is treated as a matrix from the inputs of its window to its outputs. Weight decay is
    decoupled: lr * weight_decay * w. Biases use Adam, also with Nesterov momentum.
    """

    def as_matrix(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != 'kernel':
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return optax.contrib.muon(
        -1.0,  # the learning rate and the sign are applied later in the chain
        beta=config.momentum,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=jax.tree_util.tree_map_with_path(as_matrix, params),
    )
