"""Fine-tuning: initializes a network with pretrained weights, except for a new last layer.

--config.init.weights=runs/authors     folder of a run or a release
--config.optim.backbone_lr=0.1         learning rate multiplier of the copied layers; 0 freezes them
--config.optim.last_layer_lr=1.0       learning rate multiplier of the new layer

The running averages of batch normalization are still updated in frozen layers.
"""

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nin_jax import distributed
from nin_jax.errors import ConfigError
from nin_jax.models.features import layer_names, leaf_name
from nin_jax.train.step import TrainState


def take_over(
    config: ConfigDict, model: nnx.GraphDef, fresh: TrainState, weights: dict
) -> TrainState:
    """Replaces the weights of a fresh state by pretrained weights.

    With `new_head`, the layer that computes the class scores keeps its initialization.

    Args:
      config: the `init` part of a config.
      model: structure of the network.
      fresh: a newly initialized state of the network.
      weights: pretrained parameters and running averages.

    Raises:
      ConfigError: a layer of the network is missing in `weights` or has a different shape.
    """
    source, new_head = config.weights, config.new_head
    network = nnx.merge(model, nnx.State(fresh.params))
    names = layer_names(network.blocks)
    trained = dict(jax.tree_util.tree_leaves_with_path(weights))

    if not fresh.stats and any(path[-2].key == 'norm' for path in trained):
        raise ConfigError(
            f"init.weights={source!r} has batch normalization: set model.norm='batch' as well"
        )

    def take(path: tuple, leaf: jax.Array) -> jax.Array:
        if new_head and tuple(key.key for key in path)[:-1] == network.last_layer:
            return leaf
        name = leaf_name(path, names)
        if path not in trained:
            raise ConfigError(
                f'init.weights={source!r} has no {name}, which this network has: repeat its '
                'model.blocks and model.norm'
            )
        if trained[path].shape != leaf.shape:
            raise ConfigError(
                f'init.weights={source!r} has {name} of shape {trained[path].shape}, this '
                f'network of {leaf.shape}: repeat its model.blocks, on images of as many channels'
            )
        return distributed.place(np.asarray(trained[path]), leaf.sharding)

    params = jax.tree_util.tree_map_with_path(take, fresh.params)
    stats = jax.tree_util.tree_map_with_path(take, fresh.stats)
    return fresh.starting_from(params, stats)
