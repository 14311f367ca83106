"""Reports a sweep: a table, a CSV file, plots, and the command that reproduces the best point.

    python -m launch.sweep report --study=digits
    python -m launch.sweep report --study=digits --storage=postgresql://USER@HOST/DB --out=FOLDER

REPORT.md, trials.csv and the plots are written to the folder --out (default: WORKDIR/report). A
report can be written at any time, including during the sweep.
"""

import csv
import math
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
import optuna.visualization.matplotlib as plots
from optuna.trial import FrozenTrial, TrialState

from experiments import cli
from experiments.space import Axis, Sweep
from launch.sweep import attempts, flags, points, study
from nin_jax.errors import UserError

EDGE = 0.05  # fraction of an axis next to a bound, for which the report warns
FEWEST = 10  # minimum number of complete trials to compute importances
ERROR = 'validation top-1 error (%)'
NOTE = """Error is the top-1 error on the validation images: at the end of training for a complete
point, at the last evaluation for a pruned one. *lost* counts the lost workers of a point. *resumed*
lists the steps at which another attempt resumed.
"""


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser('launch.sweep report', __doc__)
    flags.add_study_flags(parser)
    parser.add_argument('--out', help='folder to write; default: WORKDIR/report')
    args = parser.parse_args(argv)
    flags.settle_study_flags(args)
    file = args.storage.url.removeprefix('sqlite:///')
    if file != args.storage.url and not pathlib.Path(file).is_file():
        raise UserError(f"no study in '{file}': give the --storage or the --workdir of the sweep")
    retry = study.RetryPolicy(args.storage, study.STARTUP_S)
    database = study.connect(args.storage, retry)
    queue = retry(lambda: attempts.Attempts(study.join(database, args.study), database))
    retry(make, queue, args.workdir, pathlib.Path(args.out or args.workdir / 'report'))
    return 0


def make(queue: attempts.Attempts, workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the report's files and prints its text."""
    out.mkdir(parents=True, exist_ok=True)
    every = queue.by_point()
    rows = [row(number, tries) for number, tries in enumerate(every)]
    with open(out / 'trials.csv', 'w', newline='') as f:
        writer = csv.DictWriter(f, dict.fromkeys(key for r in rows for key in r))
        writer.writeheader()
        writer.writerows(rows)
    head = [f'# Sweep {queue.study.study_name}', attempts.account(every)]
    head.append(attempts.best_sentence(every))
    drawn = {}
    if best := attempts.best(every):
        head += edges(best.params, queue.axes)
        head += repeat(queue.study, best, workdir)
        drawn = draw(queue.study, out)
    print('\n\n'.join([*head, table(rows)]))
    shown = ''.join(f'\n## {title}\n\n![{title}]({name})\n' for name, title in drawn.items())
    text = '\n\n'.join(head) + f'\n{shown}\n## Trials\n\n{table(rows)}\n\n{NOTE}'
    (out / 'REPORT.md').write_text(text)
    print(f'\n{out}/REPORT.md, with {len(drawn)} plots and trials.csv')


def draw(shared: optuna.Study, out: pathlib.Path) -> dict[str, str]:
    """Saves Optuna's plots; returns {file name: title}."""
    matplotlib.use('Agg')
    error = dict(target=lambda trial: 100 * trial.value, target_name=ERROR)
    figures = {
        'best.png': ('Best so far', plots.plot_optimization_history, error),
        'axes.png': ('Error along each axis', plots.plot_slice, error),
        'parallel.png': ('All axes at once', plots.plot_parallel_coordinate, error),
    }
    if len(shared.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= FEWEST:
        evaluator = {'evaluator': optuna.importance.PedAnovaImportanceEvaluator()}
        figures['importance.png'] = ('Importance', plots.plot_param_importances, evaluator)
    for name, (_, plot, options) in figures.items():
        axes = plot(shared, **options)
        figure = (axes.flat[0] if isinstance(axes, np.ndarray) else axes).figure
        figure.set_size_inches(max(figure.get_figwidth(), 8), 5)
        figure.savefig(out / name, bbox_inches='tight', metadata={'Software': None})
        plt.close(figure)
    return {name: title for name, (title, *_) in figures.items()}


# ---- the table ------------------------------------------------------------------------------


def row(number: int, tries: list[FrozenTrial]) -> dict:
    """Returns a point as a flat record; the error is the final one, or the last evaluation's."""
    trial = attempts.successful(tries) or (tries[-1] if tries else None)
    params = max((t.params for t in tries), key=len, default={})
    seen = {k: v for t in tries for k, v in t.intermediate_values.items()}
    facts = trial.user_attrs if trial else {}
    ended = trial.datetime_complete if trial else None
    error = trial.value if trial and trial.value is not None else seen.get(max(seen, default=0))
    resumed = [t.user_attrs.get('resumed_at') for t in tries]
    return {
        'trial': number,
        'outcome': attempts.outcome(tries),
        'error': error,
        'epochs': max(seen, default=None),
        **params,
        'seconds': sum(facts['seconds'].values()) if 'seconds' in facts else None,
        'ended': ended and ended.isoformat(timespec='seconds'),
        'lost': attempts.lost(tries),
        'resumed': ' '.join(str(step) for step in resumed if step),
        'reason': facts.get('reason', ''),
    }


def table(rows: list[dict]) -> str:
    """Formats the points as a Markdown table, best first and those without a result last."""

    def rank(r: dict) -> tuple:
        error = math.inf if r['error'] is None else r['error']
        return attempts.OUTCOMES.index(r['outcome']), error, r['trial']

    hidden = {'ended', 'reason'} | {k for k in ('lost', 'resumed') if not any(r[k] for r in rows)}
    names = [key for key in dict.fromkeys(k for r in rows for k in r) if key not in hidden]
    lines = [[cell(name, r.get(name)) for name in names] for r in sorted(rows, key=rank)]
    lines = [names, ['-:'] * len(names), *lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


def cell(name: str, value: object) -> str:
    if value is None or value == '':
        return ''
    if name == 'error':
        return f'{value:.2%}'
    return f'{value:.0f}' if name == 'seconds' else attempts.shown(value)


# ---- the best point -------------------------------------------------------------------------


def edges(point: dict, axes: dict[str, Axis]) -> list[str]:
    """Returns a warning for each axis where the best point is at a bound."""
    return [
        f'Warning: the best has {key}={attempts.shown(value)}, at the {side} bound: '
        'the optimum may lie outside, widen the space'
        for key, value in point.items()
        if key in axes and (side := edge(value, axes[key]))
    ]


def edge(value: Any, axis: Axis) -> str:
    """Returns 'lower' or 'upper' if the value is near a bound of a numeric axis, else ''."""
    low: Any = axis.low
    high: Any = axis.high
    near = EDGE
    if axis.kind == 'choice':
        if isinstance(value, (bool, str)) or len(axis.values) < 3:
            return ''
        low, high = min(axis.values), max(axis.values)
    if axis.kind in ('choice', 'integer'):
        near = 0.0
    if axis.is_log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    place = (value - low) / (high - low)
    return 'lower' if place <= near else 'upper' if place >= 1 - near else ''


def repeat(shared: optuna.Study, best: FrozenTrial, workdir: pathlib.Path) -> list[str]:
    """Returns the commands that reproduce the best point, and that train it for the test."""
    record, name = shared.user_attrs['sweep'], shared.study_name
    base = Sweep(record['config'], fixed=record['fixed'])
    again = points.command(base, workdir / f'best-of-{name}', best.params)
    final = points.command(base, workdir / f'final-of-{name}', best.params, splits={})
    return [
        f'To reproduce it:\n\n```bash\n{shlex.join(again)}\n```',
        "On the config's own splits, to evaluate on the test images after all choices are made:\n\n"
        f'```bash\n{shlex.join(final)}\n```',
    ]
