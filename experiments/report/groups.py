"""Which row of which table a run belongs to. This follows from its config alone.

A run belongs to a config when data, preprocessing, augmentation and network are the same; what else
differs is stated beside its figure.
"""

import dataclasses
import json
import re
import statistics

from experiments.report.records import RunError
from nin_jax.config import default_config, flatten

# These say which experiment a run is, all but how the weights start ...
IDENTITY = ('data.', 'preprocess.', 'augment.', 'model.', 'init.')


TRAINING = (
    'data.limit',
    'model.class_bias',
    'model.dropout_mode',
    'model.norm',  # the modern recipe's switches from here on
    'model.class_maps',
    'augment.cutout',
    'augment.mixup',
    'augment.cutmix',
    'augment.label_smoothing',
)


# ... and these change nothing of what it computes, or are told otherwise.
IRRELEVANT = (
    'seed',
    'devices',
    'data.dir',
    'data.residency',
    'checkpoint.',
    'eval.every',
    'eval.batch_size',
    'train.steps_per_call',
    'train.microbatch',
)


def differences(config: dict, page: dict) -> dict[str, object]:
    """Keys of a run whose values are not the page's, irrelevant ones aside.

    A run from before a key was there has the key's default.
    """
    defaults = flatten(default_config())
    config = {k: defaults.get(re.sub(r'mlpconv\d+', 'mlpconv1', k)) for k in page} | config
    return {
        k: config.get(k)
        for k in sorted({*config, *page})
        if config.get(k) != page.get(k) and not is_irrelevant(k, config)
    }


def is_irrelevant(key: str, config: dict) -> bool:
    """A piece of a batch is what batch normalisation standardises, so its size matters there."""
    if key == 'train.microbatch' and config.get('model.norm') == 'batch':
        return False
    return key.startswith(IRRELEVANT)


def is_identity(key: str) -> bool:
    return key.startswith(IDENTITY) and not key.startswith(TRAINING) and 'init_std' not in key


def page_of(config: dict, pages: dict[str, dict]) -> str | None:
    """The page whose experiment a config is; of several, the one it differs least from."""
    fits = {name: differences(config, page) for name, page in pages.items()}
    fits = {name: diff for name, diff in fits.items() if not any(map(is_identity, diff))}
    return min(fits, key=lambda name: len(fits[name]), default=None)


@dataclasses.dataclass
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      page: whose experiment it is; None if it is no page's.
      changes: keys set otherwise than in the page.
      full_epochs: of the page's schedule.
      runs: records, by seed.
    """

    page: str | None
    changes: dict[str, object]
    full_epochs: float
    runs: list[dict]

    @property
    def is_short(self) -> bool:
        """Whether it saw less than the page's schedule or data."""
        few_images = bool(self.changes.get('data.limit'))
        return few_images or self.runs[0]['epoch'] < 0.99 * self.full_epochs

    @property
    def error(self) -> str:
        return mean_and_std([100 * run['final_error'] for run in self.runs])

    @property
    def seeds(self) -> str:
        return f'{len(self.runs)} seed' + 's' * (len(self.runs) > 1)

    @property
    def length(self) -> str:
        """'260 epochs', or '4 of 260 epochs'."""
        epoch = f'{self.runs[0]["epoch"]:.3g}'
        return epoch + (f' of {self.full_epochs:g}' if self.is_short else '') + ' epochs'


def mean_and_std(percents: list[float]) -> str:
    """'10.41 ± 0.12 %'; no deviation of a single value."""
    deviation = f' ± {statistics.stdev(percents):.2f}' if len(percents) > 1 else ''
    return f'{statistics.mean(percents):.2f}{deviation} %'


def group(runs: list[dict], pages: dict[str, dict]) -> list[Group]:
    """Puts runs of one experiment, of one kind of hardware, together."""
    groups: dict[str, Group] = {}
    for run in sorted(runs, key=lambda r: (r['name'].rstrip('0123456789'), r['seed'])):
        page = page_of(run['config'], pages)
        changes = differences(run['config'], pages[page] if page else {})
        full = float(pages[page]['train.duration'].removesuffix('ep')) if page else run['epoch']
        key = json.dumps([page, changes, run['device']])
        groups.setdefault(key, Group(page, changes, full, [])).runs.append(run)
    for g in groups.values():
        seeds = [run['seed'] for run in g.runs]
        if len(set(seeds)) < len(seeds):
            names = ', '.join(run['name'] for run in g.runs)
            raise RunError(f'{names} are the same run twice: leave one out')
    return list(groups.values())


def training_changes(g: Group) -> dict[str, object]:
    """What was set otherwise, the length of a short run aside."""
    length = ('train.duration', 'optim.drops', 'data.limit') if g.is_short else ()
    return {k: v for k, v in g.changes.items() if k not in length}
