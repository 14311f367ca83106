"""Assigns runs to rows of the tables, by their configs alone.

A run belongs to a row when data, preprocessing, augmentation and network match the row's config.
Other differences are listed beside its result.
"""

import dataclasses
import json
import statistics

from experiments.report.records import RunError
from nin_jax.runs import workdir

# Keys that identify the experiment, except those in TRAINING and the initialization.
IDENTITY = ('data.', 'preprocess.', 'augment.', 'model.', 'init.')


TRAINING = (
    'data.limit',
    'model.class_bias',
    'model.dropout_mode',
    'model.norm',  # switches of later recipes from here on
    'model.class_maps',
    'augment.alternate_flips',
    'augment.cutout',
    'augment.mixup',
    'augment.cutmix',
    'augment.label_smoothing',
)


# Keys besides FREE_TO_CHANGE that do not change the result, or that the report states separately.
IRRELEVANT = ('seed', 'eval.every', 'train.steps_per_call', 'train.microbatch')


def differences(config: dict, reference: dict) -> dict[str, object]:
    """Returns the relevant keys and values of `config` that differ from `reference`, sorted.

    A key that `config` lacks, because the run is older than the key, has its default value.
    """
    found = workdir.differences(config, reference)
    return {key: found[key][0] for key in sorted(found) if not is_irrelevant(key, config)}


def is_irrelevant(key: str, config: dict) -> bool:
    """Whether a key is irrelevant; with batch normalization the microbatch size is relevant."""
    if key == 'train.microbatch' and config.get('model.norm') == 'batch':
        return False
    return key.startswith(IRRELEVANT)


def is_identity(key: str) -> bool:
    return key.startswith(IDENTITY) and not key.startswith(TRAINING) and 'init_std' not in key


def config_of(config: dict, configs: dict[str, dict]) -> str | None:
    """Returns the name of the matching config with the fewest differences; None if none match."""
    fits = {name: differences(config, reference) for name, reference in configs.items()}
    fits = {name: diff for name, diff in fits.items() if not any(map(is_identity, diff))}
    return min(fits, key=lambda name: len(fits[name]), default=None)


@dataclasses.dataclass
class Group:
    """Runs that differ only in their seed, and possibly in their hardware.

    Attributes:
      config: name of the config that the runs belong to; None if they match none.
      changes: keys whose values differ from that config.
      full_epochs: length of that config's schedule.
      runs: records, sorted by seed.
    """

    config: str | None
    changes: dict[str, object]
    full_epochs: float
    runs: list[dict]

    @property
    def is_short(self) -> bool:
        """Whether the runs used less than the config's whole schedule or data so far."""
        few_images = bool(self.changes.get('data.limit'))
        return few_images or bool(self.preempted) or self.runs[0]['epoch'] < 0.99 * self.full_epochs

    @property
    def preempted(self) -> float:
        """The epoch of a preempted run's last evaluation; 0 for a finished run."""
        return preempted(self.runs[0])

    @property
    def error(self) -> str:
        return mean_and_std([100 * run['final_error'] for run in self.runs]) + ' %'

    @property
    def seeds(self) -> str:
        return count_of_seeds(len(self.runs))

    @property
    def length(self) -> str:
        """'260 epochs', '4 of 260 epochs', or '4 of 260 epochs, preempted'."""
        epoch = f'{self.runs[0]["epoch"]:.3g}'
        whole = f' of {self.full_epochs:g}' if self.is_short and self.config else ''
        return f'{epoch}{whole} epochs' + (', preempted' if self.preempted else '')


def preempted(run: dict) -> float:
    """Returns the epoch of a preempted run's last evaluation; 0 for a finished run."""
    return run['epoch'] if run['status'] == 'preempted' else 0.0


def by_hardware(runs: list[dict]) -> list[list[dict]]:
    """Returns the runs of each kind of hardware."""
    parts: dict[str, list[dict]] = {}
    for run in runs:
        parts.setdefault(json.dumps(run['device'], sort_keys=True), []).append(run)
    return list(parts.values())


def count_of_seeds(count: int) -> str:
    """'1 seed', '5 seeds'."""
    return f'{count} seed' + 's' * (count > 1)


def mean_and_std(values: list[float]) -> str:
    """Formats as '10.41 ± 0.12'; a single value has no deviation."""
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{deviation}'


def paired_difference(errors: dict[int, float], baseline: dict[int, float]) -> str:
    """Formats the mean difference over common seeds and its 95 % interval, as '+0.70 ± 0.58'.

    Args:
      errors: top-1 error in percent by seed.
      baseline: the same, of the runs to compare with.

    Returns:
      The difference alone with one or two common seeds; '' with none.
    """
    differences = [errors[seed] - baseline[seed] for seed in errors.keys() & baseline.keys()]
    if not differences:
        return ''
    text = f'{statistics.mean(differences):+.2f}'
    if (n := len(differences)) < 3:  # with two, the interval says next to nothing
        return text
    from scipy import stats  # takes half a second to import

    quantile = float(stats.t.ppf(0.975, n - 1))
    return f'{text} ± {quantile * statistics.stdev(differences) / n**0.5:.2f}'


def group(runs: list[dict], configs: dict[str, dict]) -> list[Group]:
    """Groups runs of the same experiment; seeds run again on other hardware are another group.

    Raises:
      RunError: two runs have the same seed and the same hardware.
    """
    parts: dict[str, Group] = {}  # one for each kind of hardware
    for run in sorted(runs, key=lambda r: (r['name'].rstrip('0123456789'), r['seed'])):
        name = config_of(run['config'], configs)
        changes = differences(run['config'], configs[name] if name else {})
        full = float(configs[name]['train.duration'].removesuffix('ep')) if name else run['epoch']
        key = json.dumps([name, changes, run['device'], preempted(run)], sort_keys=True)
        part = parts.setdefault(key, Group(name, changes, full, []))
        if twin := next((r for r in part.runs if r['seed'] == run['seed']), None):
            raise RunError(f'{twin["name"]}, {run["name"]} are the same run twice: leave one out')
        part.runs.append(run)
    return merge(list(parts.values()))


def merge(parts: list[Group]) -> list[Group]:
    """Joins groups of the same experiment on different hardware that have no seed in common."""
    merged: list[Group] = []
    for part in parts:
        whole = next((g for g in merged if can_join(g, part)), None)
        if whole is None:
            merged.append(part)
        else:
            whole.runs = sorted(whole.runs + part.runs, key=lambda run: run['seed'])
    return merged


def can_join(a: Group, b: Group) -> bool:
    seeds = {run['seed'] for run in a.runs}
    same_experiment = (a.config, a.changes, a.preempted) == (b.config, b.changes, b.preempted)
    return same_experiment and seeds.isdisjoint(run['seed'] for run in b.runs)


def training_changes(g: Group) -> dict[str, object]:
    """Returns the changes, without those that only shorten a short run."""
    length = ('train.duration', 'optim.drops', 'data.limit') if g.is_short else ()
    return {k: v for k, v in g.changes.items() if k not in length}
