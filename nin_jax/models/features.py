"""Returns the activations of each layer of a network, by the authors' layer names.

    conv1 cccp1 cccp2 pool1 drop1   conv2 cccp3 cccp4 pool2 drop2   conv3 cccp5 cccp6   gap

The activations of a convolution are those after its ReLU (or maxout), as in Caffe, where ReLU is
in-place. `drop1` is the input of the next block: in evaluation it equals `pool1`, or half of it
with dropout_mode 'convnet'. `gap` (or `fc`) are the logits.
"""

import jax
from flax import nnx

from nin_jax.config import Block
from nin_jax.errors import ConfigError, did_you_mean


def layer_names(blocks: tuple[Block, ...]) -> dict[tuple[str, str], str]:
    """Returns {(block, layer) of the parameter tree: the authors' name}, in forward order."""
    names, cccp = {}, 0
    for i, block in enumerate(blocks, start=1):
        names[f'mlpconv{i}', 'conv'] = f'conv{i}'
        for j in range(1, len(block.features)):
            cccp += 1
            names[f'mlpconv{i}', f'cccp{j}'] = f'cccp{cccp}'
        if block.pool != 'none':
            names[f'mlpconv{i}', 'pool'] = f'pool{i}'
        if block.dropout:
            names[f'mlpconv{i}', 'drop'] = f'drop{i}'
    return names


def leaf_name(path: tuple, names: dict[tuple[str, str], str]) -> str:
    """Returns the name of a leaf, such as 'conv2.kernel'; `names` are from `layer_names`."""
    words = [str(key.key) for key in path]
    if words[0] == 'mlpconvs':  # mlpconvs, block, layers, layer, kernel or bias
        words = [names[words[1], words[3]], *words[4:]]
    return '.'.join(words)


def features(
    model: nnx.GraphDef, params: dict, x_BHWC: jax.Array, layers: tuple[str, ...] = ()
) -> dict[str, jax.Array]:
    """Returns the activations of some or all layers; a pure function for jit and grad.

    Args:
      model, params: the arguments `model` and `weights` of `nin_jax.models.nin.apply`.
      x_BHWC: preprocessed images, float, of any size that the network accepts.
      layers: names as above; () for all.

    Returns:
      {name: activations (B, H, W, C)}, in the order asked for; the logits are (B, K).

    Raises:
      ConfigError: the network has no such layer.
    """
    network = nnx.merge(model, nnx.State(params))
    (logits_BK, _), sown = nnx.capture(network, nnx.Intermediate)(x_BHWC)
    sown = nnx.to_pure_dict(sown)['mlpconvs']
    found = {
        name: sown[block][layer][0] for (block, layer), name in layer_names(network.blocks).items()
    }
    found['gap' if network.fc is None else 'fc'] = logits_BK
    for name in layers:
        if name not in found:
            raise ConfigError(f'no layer {name!r} in the network{did_you_mean(name, found)}')
    return {name: found[name] for name in layers or found}
