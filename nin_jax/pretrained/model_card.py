"""The model card of a released network: its origin, its test error, and how to load it."""

import pathlib
import statistics

from ml_collections import ConfigDict

from nin_jax.config import flatten
from nin_jax.errors import CheckpointError
from nin_jax.files import read_json
from nin_jax.models.nin import count_parameters
from nin_jax.pretrained.trained import Trained
from nin_jax.runs.metrics import read_lines
from nin_jax.version import __version__

KEPT = (
    *('status', 'reason', 'epoch', 'seed', 'eval_images', 'seconds'),
    *('commit', 'versions', 'device'),
)


def provenance(workdir: pathlib.Path, step: int) -> dict:
    """Returns what the records of the run state about the network at `step`; computes nothing.

    Returns:
      From summary.json: the keys KEPT; status 'unfinished' if the run went on after it. Also
      'error', the run's own evaluation at that step (None if there is none), and 'other_errors',
      the final errors of runs in adjacent folders that differ only in their seed.

    Raises:
      CheckpointError: summary.json is damaged.
    """
    path = workdir / 'summary.json'
    summary: dict = read_json(path) if path.exists() else {'status': 'unfinished'}
    if step > summary.get('step', step):  # killed after it had been preempted and resumed
        summary = summary | {'status': 'unfinished', 'epoch': None, 'seconds': None}
    found = {key: summary.get(key) for key in KEPT}
    found['error'] = _error_at(workdir / 'metrics.jsonl', step, int(summary.get('attempt', 0)))
    is_last = step == summary.get('step')
    found['other_errors'] = _other_seeds(workdir, summary) if is_last else []
    return found


def _error_at(path: pathlib.Path, step: int, attempt: int) -> float | None:
    for line in read_lines(path):
        if (line['kind'], line['step'], line['attempt']) == ('eval', step, attempt):
            return line['error']
    return None


def _other_seeds(workdir: pathlib.Path, summary: dict) -> list[float]:
    def but_the_seed(run: dict) -> dict:
        config = run.get('config')
        flat = config if isinstance(config, dict) else {}
        return {k: v for k, v in flat.items() if k not in ('seed', 'data.dir')}

    errors: dict[int, float] = {}
    for path in sorted(workdir.absolute().parent.glob('*/summary.json')):
        try:
            other = read_json(path)
        except (CheckpointError, OSError):  # of another run, or of another program
            continue
        same = summary.get('config') and but_the_seed(other) == but_the_seed(summary)
        if same and other.get('status') == 'done':
            errors[other['config']['seed']] = other['final_error']
    return [error for seed, error in errors.items() if seed != summary['config']['seed']]


def published(config: ConfigDict) -> ConfigDict:
    """Returns a copy of the config without the paths and devices of this machine."""
    config = config.copy_and_resolve_references()
    config.data.dir, config.devices = '', 0
    config.init.weights = pathlib.PurePath(config.init.weights).name
    return config


def text(
    trained: Trained, found: dict, programs: tuple[str, ...] = (), dtype: str = 'float32'
) -> str:
    """Returns the card as Markdown.

    Args:
      trained: the network.
      found: the result of `provenance`. If the test images were evaluated, it also has
        'scored_error', their error, 'scored', their number, and 'scored_by', the program. With
        exported programs, it has 'largest_difference' of their logits from the network's.
      programs: names of the release's programs, 'model.stablehlo' or 'model.onnx'.
      dtype: dtype of the stored kernels.
    """
    config = published(trained.config)
    height, width, channels = trained.image_shape
    classes, parameters = len(trained.class_names), count_parameters(trained.params)
    return f"""# Network In Network, {config.data.name}

{len(config.model.blocks)} mlpconv layers with {_head(config)}, after Network In Network (Lin, Chen,
Yan 2013, [arXiv 1312.4400](https://arxiv.org/abs/1312.4400)): {parameters:,} parameters,
images of {height}x{width}x{channels}, {classes} classes: {_shorten(trained.class_names)}.

| | |
|---|---|
| data | `{config.data.name}`: trained on `{config.data.train}`, error on `{config.data.eval}` |
| test error | {_error(trained, found)} |
| recipe | {_recipe(trained)} |
| from | {_origin(trained, found)} |
| stored as | {dtype} kernels, read back as float32 |
| code | nin_jax {__version__}, commit `{found['commit'] or 'unknown'}` |
| license | {_license(config, found)} |

## Loading

With the package:

```python
import nin_jax

network = nin_jax.load('FOLDER')  # or a name of nin_jax.list_models()
logits_NK = network(images_NHWC)  # uint8 (N, {height}, {width}, {channels})
```

`nin_jax.load` checks the SHA-256 of `model.safetensors` against `config.json`; `.score` also
returns the class maps.
{_programs(programs)}
`model.safetensors` holds the weights for everything else: `conv1.kernel` is (height, width, in,
out), `conv1.bias` (out), then `cccp1`, ..., `conv2`, ... in the authors' names. Preprocess
pixels by the recipe `{trained.preprocess.recipe}` of `nin_jax/data/preprocess.py`; its arrays, if
it has any, are there too.{_activations(config)}

## Limits

* It always predicts one of its classes, even for images of something else, and its probabilities
  are not calibrated.
{_program_limits(trained, found, programs)}* Its error on images from sources other than its test
  images was not measured.

## Config

```
{_settings(config)}
```
"""


def _head(config: ConfigDict) -> str:
    return {'gap': 'global average pooling', 'fc': 'a fully connected layer'}[config.model.head]


def _activations(config: ConfigDict) -> str:
    """Describes the layers where they differ from the paper's."""
    lines = []
    if config.model.norm == 'batch':
        lines += [
            'Each layer but the last computes (convolution - `NAME.norm.mean`) /',
            'sqrt(`NAME.norm.var` + 1e-5), adds `NAME.bias`, and applies the ReLU.',
        ]
    if config.model.class_maps == 'linear':
        lines.append('The last layer has no ReLU.')
    blocks = config.model.blocks.values()
    if any(row.pieces > 1 for row in blocks):
        lines.append('Instead of a ReLU, each output is the maximum of adjacent channels (maxout).')
    if any(row.local for row in blocks):
        lines.append('A local layer has a kernel for each position: (height, width, patch, out).')
    if any(row.pool.endswith('_rnorm') for row in blocks):
        lines.append('Local response normalization follows the pooling.')
    if config.model.dropout_mode == 'convnet':
        lines.append('After dropout with rate p, activations are multiplied by 1 - p.')
    if config.model.head == 'fc':
        lines.append('`fc.kernel` takes the last maps flattened as (height, width, channels).')
    return '\n'.join(('\n', *lines)) if lines else ''


def _programs(programs: tuple[str, ...]) -> str:
    """Describes how to run each program without this package."""
    words = ''
    if 'model.stablehlo' in programs:
        words += """
Without it, on a CPU, a CUDA GPU or a TPU (`pip install jax flatbuffers`):

```python
import jax.export
program = jax.export.deserialize(open('model.stablehlo', 'rb').read())
logits_BK, maps_BHWK = program.call(images_BHWC)  # uint8; preprocessing is inside
```
"""
    if 'model.onnx' in programs:
        words += """
With ONNX Runtime (`pip install onnxruntime`), or any other ONNX runtime:

```python
import onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
logits_BK, maps_BHWK = session.run(['logits', 'maps'], {'images': images_BHWC})  # uint8
```
"""
    return words


def _program_limits(trained: Trained, found: dict, programs: tuple[str, ...]) -> str:
    if not programs:
        return ''
    height, width, _ = trained.image_shape
    model = trained.config.model
    fixed = model.head == 'fc' or any(row.local for row in model.blocks.values())
    other = '' if fixed else '; with the package, any size'
    size = (
        f'* `model.stablehlo` takes images of {height}x{width} only{other}.\n'
        if 'model.stablehlo' in programs
        else ''
    )
    return (
        f"{size}* The programs' logits differ from the network's by "
        f'{found["largest_difference"]:.1g} at most.\n'
    )


def _recipe(trained: Trained) -> str:
    config = trained.config
    parts = [f'preprocessing `{config.preprocess.recipe}`', f'`{config.optim.rule}`']
    parts += [f'`{config.optim.schedule}`', f'{config.train.duration}']
    if config.model.norm == 'batch':
        parts.append('batch normalization')
    return ', '.join(parts)


def _error(trained: Trained, found: dict) -> str:
    words, tta = [], trained.config.eval.tta
    if found['error'] is not None:
        others = [100 * e for e in (found['error'], *found['other_errors'])]
        views = '' if tta == 'none' else f', eval.tta={tta!r}'
        words.append(f'{found["error"]:.2%} (seed {trained.config.seed}, by the run itself{views})')
        if len(others) > 1:
            words.append(
                f'over {len(others)} seeds {statistics.mean(others):.2f} ± '
                f'{statistics.stdev(others):.2f} %'
            )
    if 'scored_error' in found:
        words.append(
            f'{found["scored_error"]:.2%} ({found["scored_by"]}, {found["scored"]:,} images)'
        )
    return '; '.join(words) or 'not measured'


def _origin(trained: Trained, found: dict) -> str:
    if found['status'] == 'imported':
        return found['reason']
    epochs = f', {found["epoch"]:.4g} epochs in all' if found['epoch'] else ''
    kind = (found['device'] or {}).get('kind', 'an unknown device')
    seconds = found.get('seconds') or {}
    minutes = f' in {sum(seconds.values()) / 60:.3g} minutes' if seconds else ''
    status = 'finished' if found['status'] == 'done' else found['status']
    return f'step {trained.step:,} of a run ({status}){epochs}, on {kind}{minutes}'


def _license(config: ConfigDict, found: dict) -> str:
    if found['status'] == 'imported':
        return "code Apache-2.0; the weights are the paper's authors'"
    if config.init.weights:
        source = config.init.weights
        return f"code Apache-2.0; the weights were fine-tuned from '{source}', whose terms apply"
    return "Apache-2.0 (code and weights; the training images have their own publishers' terms)"


def _shorten(names: tuple[str, ...], most: int = 10) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _settings(config: ConfigDict) -> str:
    where = ('data.dir', 'devices', 'checkpoint.every', 'checkpoint.keep')
    flat = flatten(config)
    return '\n'.join(f'{k} = {v!r}' for k, v in flat.items() if k not in where)
