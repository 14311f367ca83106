"""Starting from trained weights: a new last layer on what another run has learned to see.

--config.init.weights=runs/authors     a run's folder or a release's
--config.optim.backbone_lr=0.1         times lr, for the layers taken over; 0 freezes them
--config.optim.last_layer_lr=1.0       times lr, for the new layer

A frozen layer's batch normalisation still follows the new images in its running averages.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nin_jax.errors import ConfigError
from nin_jax.features import layer_names, leaf_name
from nin_jax.step import Setup, TrainState


def start(config: ConfigDict, setup: Setup, fresh: TrainState) -> TrainState:
    """A fresh state with the weights of `init.weights`, or the fresh state itself if that is ''.

    With `init.new_head`, the layer that puts out the class scores stays fresh.

    Raises:
      ConfigError: a layer of the network is not in that run or has another shape there.
      CheckpointError: there is no run or release, or it is damaged.
    """
    source, new_head = config.init.weights, config.init.new_head
    if not source:
        return fresh
    from nin_jax import release  # which can open runs, and so imports what imports this

    network = nnx.merge(setup.model, nnx.State(fresh.params))
    names = layer_names(network.blocks)
    trained = dict(jax.tree_util.tree_leaves_with_path(release.load(source).params))

    if not fresh.stats and any(path[-2].key == 'norm' for path in trained):
        raise ConfigError(
            f"init.weights={source!r} has batch normalisation: choose model.norm='batch' as well"
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
        return jax.device_put(jnp.asarray(trained[path]), leaf.sharding)

    params = jax.tree_util.tree_map_with_path(take, fresh.params)
    stats = jax.tree_util.tree_map_with_path(take, fresh.stats)
    return fresh.starting_from(params, stats)
