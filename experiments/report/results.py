"""RESULTS.md and Figure 3 from the records of finished runs.

Which row of which table a run belongs to follows from its config alone: a run is of a page when
data, preprocessing, augmentation and network are the page's; what else differs from the page is
said beside the figure.
"""

import dataclasses
import json
import pathlib
import re
import shlex
import statistics

from experiments.report.paper import FIGURE3, FIGURE3_EPOCHS, OTHERS, TABLES, Row, Table
from nin_jax.config import default_config, flatten
from nin_jax.errors import UserError
from nin_jax.files import file_sha256, read_json
from nin_jax.runs.metrics import duration

COLUMNS = ('epoch', 'train_loss', 'train_error', 'test_loss', 'test_error')
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


class RunError(UserError):
    """A run that cannot be reported."""


# ---- records --------------------------------------------------------------------------------


def load(path: pathlib.Path) -> list[dict]:
    """The finished runs at a path: a run's folder, a collected .json, or a folder of either.

    Raises:
      RunError: for a run that did not finish, or a path that holds none.
    """
    if path.suffix == '.json' and path.is_file():
        return [check(read_json(path), path)]
    if (path / 'config.json').exists():
        return [from_workdir(path)]
    folders = sorted(config.parent for config in path.glob('*/config.json'))
    found = sorted(path.glob('*.json'))
    if not folders and not found:
        raise RunError(f"'{path}' holds no run: name a run's --workdir, or a folder of results")
    return [from_workdir(f) for f in folders] + [check(read_json(p), p) for p in found]


def check(run: dict, path: pathlib.Path) -> dict:
    """The run itself; RunError unless it is done."""
    if not {'status', 'config', 'final_error', 'epoch'} <= set(run):
        raise RunError(f"'{path}' is not the record of a run: leave it out")
    if run['status'] != 'done':
        raise RunError(
            f"the run in '{path}' did not finish ({run['status']} at epoch {run['epoch']:.4g}): "
            'only finished runs are reported, run its command again or leave it out'
        )
    return run


def from_workdir(folder: pathlib.Path) -> dict:
    """A run's summary, and its metrics at every evaluation."""
    if not (folder / 'summary.json').exists():
        raise RunError(
            f"the run in '{folder}' did not finish (it has no summary.json): only finished runs "
            'are reported, run its command again or leave it out'
        )
    run = check(read_json(folder / 'summary.json'), folder)
    run['name'] = run_name(folder)
    run['config']['data.dir'] = ''  # where this machine keeps things is no one else's concern
    run['command'] = shlex.join(
        re.sub('^--workdir=/.*', f'--workdir=runs/{run["name"]}', word)
        for word in shlex.split(run['command'])
        if not word.startswith('--config.data.dir=')
    )
    path = folder / 'metrics.jsonl'
    try:
        if run.pop('metrics_sha256', None) not in (None, file_sha256(path)):
            raise ValueError('it does not match its SHA-256')
        lines = [json.loads(line) for line in path.open()]
    except (OSError, ValueError) as e:
        raise RunError(f"'{path}' is damaged ({e}): leave the run out") from None
    lines = [line for line in lines if line['attempt'] == run['attempt']]
    return run | {'columns': COLUMNS, 'epochs': epochs(lines)}


def run_name(folder: pathlib.Path) -> str:
    """'cifar10-seed0' for runs/cifar10/seed0; 'aug' for runs/aug."""
    parts = folder.resolve().parts
    return '-'.join(parts[-2:] if re.fullmatch(r'seed\d+', parts[-1]) else parts[-1:])


def epochs(lines: list[dict]) -> list[list[float]]:
    """One row of COLUMNS an evaluation, the training columns means since the one before."""
    rows, since, last = [], [], 0
    for line in lines:
        if line['kind'] == 'train':
            since.append((line['step'] - last, line['loss'], line['error']))
            last = line['step']
        elif since:
            steps = sum(n for n, _, _ in since)
            loss, error = (sum(s[0] * s[i] for s in since) / steps for i in (1, 2))
            values = (line['epoch'], loss, error, line['loss'], line['error'])
            rows.append([round(v, 7) for v in values])
            since = []
    return rows


def collect(run: dict, folder: pathlib.Path) -> pathlib.Path:
    """Writes a run as one small file, a key a line; RunError if another run has its name."""
    path = folder / f'{run["name"]}.json'
    if path.exists() and read_json(path)['config'] != run['config']:
        raise RunError(f"'{path}' is of a run with another config: rename either")
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f'{json.dumps(k)}: {json.dumps(v)}' for k, v in run.items())
    path.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    return path


# ---- which row ------------------------------------------------------------------------------


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


# ---- the page -------------------------------------------------------------------------------

HEAD = """# Results

Made by `{made_by}`; do not edit.

Test error is top-1 error on the test split when training ended, in percent (never the best of
several evaluations): mean ± standard deviation over seeds. **short** marks runs that saw less than
the page's whole schedule; they say that the code works, not what the network is worth.

## Commands

Each runs five seeds, one after another; repeat it to resume. Append `,smoke` to a page's variants
(`:smoke` where it has none) to try it in four steps.

"""


def markdown(runs: list[dict], pages: dict[str, dict], made_by: str, figure: str) -> str:
    """RESULTS.md.

    Args:
      runs: records of finished runs.
      pages: flat config of every page and variant that a table names.
      made_by: the command that makes the file.
      figure: path of Figure 3's picture, from where the file will lie.
    """
    groups = group(runs, pages)
    text = HEAD.format(made_by=made_by) + '```bash\n'
    for table in TABLES:
        text += f'# {table.title}\n' + ''.join(command(row) for row in table.rows if row.page)
    text += '```\n'
    noted: set[str] = set()
    for table in TABLES:
        text += table_text(table, groups, noted)
        if table.figure:
            text += f'\n![Figure 3 of the paper, and our runs]({figure})\n\n{caption(groups)}\n'
    others = [g for g in groups if g.page is None]
    if others:
        text += '\n## Other runs\n\n' + ''.join(details(g, '') for g in others)
    return text


def command(row: Row) -> str:
    page, _, variant = row.page.partition(':')
    name = page + (f'_{variant}' if variant else '')
    config = f'experiments/configs/{page}.py' + (f':{variant}' if variant else '')
    return f'python -m launch.seeds --config={config} --workdir=runs/{name} --seeds=5\n'


def table_text(table: Table, groups: list[Group], noted: set[str]) -> str:
    """A table and notes on its rows; pages in `noted` have theirs already, and are added to it."""
    text = f'\n## {table.title}\n\n'
    text += '| network | paper | best by others | ours |\n|---|---|---|---|\n'
    notes = ''
    for row in table.rows:
        others = sorted((o for o in OTHERS if o.page == row.page), key=lambda o: o.error)
        ours = [g for g in groups if row.page and g.page == row.page]
        cells = (
            f'**{row.network}**' if row.page else row.network,
            '' if row.error is None else f'{row.error:.2f} %',
            f'{others[0].error:.2f} %' if others else '',
            '<br>'.join(map(cell, ours)) or ('not measured yet' if row.page else ''),
        )
        text += '| ' + ' | '.join(cells) + ' |\n'
        if row.page in noted:
            continue
        noted |= {row.page} if row.page else set()
        notes += ''.join(
            f'- {row.network}, by others: {o.error:.2f} %, {o.who} ({o.source})\n' for o in others
        )
        notes += ''.join(details(g, row.network) for g in ours)
    return text + ('\n' + notes if notes else '')


def cell(g: Group) -> str:
    if g.is_short:
        changes = [f'{k}={json.dumps(v)}' for k, v in training_changes(g).items()]
        return f'**short**: {g.error} ({", ".join([g.seeds, g.length, *changes])})'
    return f'{g.error} ({g.seeds}{", changed" if training_changes(g) else ""})'


def training_changes(g: Group) -> dict[str, object]:
    """What was set otherwise, the length of a short run aside."""
    length = ('train.duration', 'optim.drops', 'data.limit') if g.is_short else ()
    return {k: v for k, v in g.changes.items() if k not in length}


def details(g: Group, network: str) -> str:
    """Everything about our runs of one kind, as an item of a list."""
    first, device = g.runs[0], g.runs[0]['device']
    seconds = statistics.mean(sum(run['seconds'].values()) for run in g.runs)
    changes = ', '.join(f'{k}={json.dumps(v)}' for k, v in g.changes.items())
    more = ', '.join(str(run['seed']) for run in g.runs[1:])
    return (
        f'- {network + ", " if network else ""}ours: {"**short**, " if g.is_short else ""}{g.error}'
        f' ({g.seeds}), {g.length}'
        + (f', {changes}' if g.page and changes else '')
        + f'; {device["count"]} x {device["kind"]} ({device["cpus"]} CPUs, {device["machine"]}), '
        f'{duration(seconds)} a run; `{first["command"]}`'
        + (f' and the same with seed {more}' if more else '')
        + '\n'
    )


# ---- Figure 3 -------------------------------------------------------------------------------

FIGURE3_PAGES = {'cifar10': 'dropout', 'cifar10:nodropout': 'no dropout'}


def in_figure3(groups: list[Group]) -> list[Group]:
    """Those on all of CIFAR-10, with or without dropout."""
    return [
        g
        for g in groups
        if g.page in FIGURE3_PAGES
        and not g.changes.get('data.limit')
        and len(g.runs[0]['epochs']) > 1  # one evaluation makes no line
    ]


def caption(groups: list[Group]) -> str:
    """What Figure 3's lines are."""
    lines = [
        f'{run["name"]} ({FIGURE3_PAGES[g.page]}, {g.length}'
        + ''.join(f', {k}={json.dumps(v)}' for k, v in training_changes(g).items())
        + ')'
        for g in in_figure3(groups)
        for run in g.runs
    ]
    return f"Dots: the paper's figure 3. Lines: {', '.join(lines) or 'no run of ours yet'}."


def draw_figure3(runs: list[dict], pages: dict[str, dict], path: pathlib.Path) -> None:
    """Draws the paper's 26 points and our curves, all 200 epochs and the first few, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained', dpi=110)
    FigureCanvasAgg(figure)
    colours = dict(zip(FIGURE3, ('tab:orange', 'tab:blue', 'tab:red', 'tab:green'), strict=True))
    ours = [(run, FIGURE3_PAGES[g.page]) for g in in_figure3(group(runs, pages)) for run in g.runs]
    longest = max((run['epoch'] for run, _ in ours), default=0)
    views = ((200, 0.4), (max(24, min(longest, 40)), 0.92))  # epochs and error shown
    for axes, (last, top) in zip(figure.subplots(1, 2), views, strict=True):
        for name, errors in FIGURE3.items():
            axes.plot(FIGURE3_EPOCHS, errors, 'o', ms=3.5, color=colours[name], label=name)
        for run, kind in ours:
            for part, column in (('training', 2), ('test', 4)):
                points = [(row[0], row[column]) for row in run['epochs']]
                axes.plot(*zip(*points, strict=True), lw=1, color=colours[f'{part}, {kind}'])
        axes.set(xlim=(0, last), ylim=(0, top), xlabel='epoch', ylabel='error')
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="the paper's figure 3 (dots)\nours (lines)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={'Software': None})
