"""The authors' optimiser as an optax chain (cuda-convnet NIN/*_params; include/layers/weights.cuh).

    v <- momentum * v - lr * m * (gradient + weight_decay * w)
    w <- w + v

The learning rate stands inside the momentum buffer, so after a drop the old velocity fades out
instead of shrinking at once. m is a multiplier: biases learn at twice the rate (and do not decay),
the last layer at a tenth.
"""

import jax
import optax
from ml_collections import ConfigDict


def make_optimiser(
    config: ConfigDict,
    params: dict,
    last_layer: tuple[str, ...],
    drops: tuple[int, ...],
    epoch: int,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser; its update takes the batch's top-1 error as `value`.

    Args:
      config: the `optim` part of a config.
      params: the parameter tree, for its structure.
      last_layer: path in it of the layer that puts out the class maps.
      drops: steps at which the learning rate is multiplied by `drop_factor`.
      epoch: steps an epoch, over which the 'plateau' schedule averages the training error.
    """

    def multiplier(path: tuple, _) -> float:
        names = tuple(key.key for key in path)
        return (config.last_layer_lr if names[:-1] == last_layer else config.backbone_lr) * (
            config.bias_lr if names[-1] == 'bias' else 1.0
        )

    multipliers = jax.tree_util.tree_map_with_path(multiplier, params)
    is_weight = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_weight),
        optax.stateless(lambda grads, _: jax.tree.map(lambda g, m: g * m, grads, multipliers)),
        _learning_rate(config, drops, epoch),
        optax.trace(config.momentum),
    )


def _learning_rate(
    config: ConfigDict, drops: tuple[int, ...], epoch: int
) -> optax.GradientTransformation:
    """Multiplies by -lr, which drops at given steps or once training error stops falling."""
    if config.schedule == 'plateau':  # section 4: "until the accuracy on the training set stops"
        return optax.chain(
            optax.contrib.reduce_on_plateau(
                config.drop_factor,
                config.plateau_patience,
                accumulation_size=epoch,
                min_scale=config.drop_factor ** len(drops),
            ),
            optax.scale_by_learning_rate(config.lr),
        )
    factors: dict[int, float] = {}
    for step in drops:  # two drops may fall on one step in a very short run
        factors[step] = factors.get(step, 1.0) * config.drop_factor
    return optax.scale_by_learning_rate(optax.piecewise_constant_schedule(config.lr, factors))
