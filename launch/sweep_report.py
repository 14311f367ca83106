"""What came out of a sweep: a table, a CSV file, a page with plots, and how to repeat the best.

    python -m launch.sweep report --study=digits
    python -m launch.sweep report --study=digits --storage=postgresql://user@host/db --out=page

The folder --out (default: WORKDIR/report) gets REPORT.md, trials.csv and the pictures it shows. It
may be made at any time, also while the sweep runs.
"""

import argparse
import csv
import pathlib
import shlex
import sys

import optuna

from experiments import cli
from experiments.space import Axis, Sweep
from launch import study, sweep, sweep_plots, trials
from nin_jax.runs.metrics import duration

EDGE = 0.05  # of an axis: so near to an end, the best may lie beyond it
FEWEST = 10  # complete trials that an importance can be computed from


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog='launch.sweep report', allow_abbrev=False)
    parser.error = lambda message: sys.exit(cli.complain(message))
    sweep.add_study_flags(parser)
    parser.add_argument('--out', help='folder to write; default: WORKDIR/report')
    args = parser.parse_args(argv)
    sweep.settle_study_flags(args)
    sweep.check_file_is_there(args.storage)
    with study.database_errors():
        shared = study.join(args.study, args.storage)
        out = pathlib.Path(args.out or args.workdir / 'report')
        make(shared, args.workdir, out)
        return 0


def make(shared: optuna.Study, workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the report's files and prints its text without the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [row(trial) for trial in trials.every(shared)]
    write_csv(rows, out / 'trials.csv')
    axes = study.space(shared)
    weights, why_not = importance(shared)
    pictures = sweep_plots.draw(rows, axes, weights, out)
    head = [f'# Sweep {shared.study_name}', trials.account(shared), trials.best(shared)]
    if best := trials.best_trial(shared):
        head += edges(best.params, axes)
        head += repeat(shared, best, workdir)
    else:
        head += ['No plots yet.']
    head += [why_not] if why_not else []
    console = '\n\n'.join([*head, table(rows)])
    print(console)
    shown = ''.join(f'\n## {title}\n\n![{title}]({name})\n' for name, title in pictures.items())
    page = '\n\n'.join(head) + f'\n{shown}\n## Trials\n\n{table(rows)}\n\n{NOTE}'
    (out / 'REPORT.md').write_text(page)
    print(f'\n{out}/REPORT.md, with {len(pictures)} plots and trials.csv')


NOTE = """Error is top-1 error on the validation images: of a complete trial when training ended, of
a pruned one when it was last evaluated. *lost* counts the workers that died over a trial, *resumed*
says at which steps another went on. In the plots, trials with one choice are drawn a little apart.
"""


# ---- rows -----------------------------------------------------------------------------------


def row(trial: optuna.trial.FrozenTrial) -> dict:
    """A trial as one flat record; its error is that of the last evaluation if it has no other."""
    facts, ended = trial.user_attrs, trial.datetime_complete
    last = max(trial.intermediate_values, default=None)
    error = trial.value
    if error is None and last is not None:
        error = trial.intermediate_values[last]
    return {
        'trial': trial.number,
        'outcome': trials.outcome(trial),
        'error': error,
        'epochs': last,
        **trial.params,
        'seconds': sum(facts['seconds'].values()) if 'seconds' in facts else None,
        'ended': ended and ended.isoformat(timespec='seconds'),
        'lost': len(facts.get('losses', [])),
        'resumed': ' '.join(map(str, facts.get('resumed_at', []))),
        'reason': facts.get('reason', ''),
    }


def write_csv(rows: list[dict], path: pathlib.Path) -> None:
    """Every trial with every value in full."""
    names = dict.fromkeys(key for r in rows for key in r)
    with open(path, 'w', newline='') as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict]) -> str:
    """The trials as Markdown, best first, then those without a result."""
    order = {name: i for i, name in enumerate(trials.OUTCOMES)}
    rows = sorted(
        rows,
        key=lambda r: (order[r['outcome']], 9 if r['error'] is None else r['error'], r['trial']),
    )
    hidden = {'ended', 'reason'} | {k for k in ('lost', 'resumed') if not any(r[k] for r in rows)}
    names = [key for key in dict.fromkeys(k for r in rows for k in r) if key not in hidden]
    lines = [names] + [[cell(name, r.get(name)) for name in names] for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    lines.insert(1, ['-' * (w - 1) + ':' for w in widths])
    return '\n'.join(
        '| ' + ' | '.join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + ' |'
        for line in lines
    )


def cell(name: str, value: object) -> str:
    if value is None or value == '':
        return ''
    if name == 'error':
        return f'{value:.2%}'
    if name == 'seconds':
        return duration(value)
    return trials.shown(value)


# ---- what is said of the best ---------------------------------------------------------------


def edges(point: dict, axes: dict[str, Axis]) -> list[str]:
    """A warning for each axis at whose end the best trial lies."""
    warnings = []
    for key, value in point.items():
        if key in axes and (side := edge(value, axes[key])):
            warnings.append(
                f'Warning: the best has {key}={trials.shown(value)}, at the {side} end: '
                'the optimum may lie beyond it, widen the space'
            )
    return warnings


def edge(value: object, axis: Axis) -> str:
    """'lower' or 'upper' if the value lies at an end of a numeric axis; '' otherwise."""
    if axis.kind == 'choice':
        if isinstance(value, (bool, str)) or len(axis.values) < 3:
            return ''
        ends = min(axis.values), max(axis.values)
        return 'lower' if value == ends[0] else 'upper' if value == ends[1] else ''
    place = sweep_plots.place(value, axis)
    if axis.kind == 'integer':
        return 'lower' if value == axis.low else 'upper' if value == axis.high else ''
    return 'lower' if place < EDGE else 'upper' if place > 1 - EDGE else ''


def repeat(
    shared: optuna.Study, best: optuna.trial.FrozenTrial, workdir: pathlib.Path
) -> list[str]:
    """The commands that repeat the best trial, and that train it for the test images."""
    record = shared.user_attrs['sweep']
    page = Sweep(record['config'], fixed=record['fixed'])
    again = sweep.command(page, workdir / f'best-of-{shared.study_name}', best.params)
    final = sweep.command(page, workdir / f'final-of-{shared.study_name}', best.params, splits={})
    return [
        f'To repeat it:\n\n```bash\n{shlex.join(again)}\n```',
        "On the page's own splits, to be scored on the test images once all choices are made:\n\n"
        f'```bash\n{shlex.join(final)}\n```',
    ]


def importance(shared: optuna.Study) -> tuple[dict[str, float], str]:
    """PED-ANOVA's share of each key in being among the best tenth, and why there is none."""
    done = [t for t in trials.every(shared) if t.state == optuna.trial.TrialState.COMPLETE]
    if len(done) < FEWEST:
        return {}, f'No importance: it takes {FEWEST} complete trials, there are {len(done)}.'
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    weights = optuna.importance.get_param_importances(shared, evaluator=evaluator)
    if not sum(weights.values()) > 0:
        return {}, 'No importance: the errors do not tell the trials apart.'
    return weights, ''
