"""Renders RESULTS.md: the paper's tables with our results."""

import json
import shlex
import statistics

from experiments.report.figure3 import caption
from experiments.report.groups import (
    Group,
    by_hardware,
    group,
    paired_difference,
    training_changes,
)
from experiments.report.paper import OTHERS, TABLES, Row, Table
from nin_jax.runs.display import duration

HEAD = """# Results

Made by `{made_by}`; do not edit.

Test error is the top-1 error on the test split at the end of training, in percent (never the best
of several evaluations): mean ± standard deviation over seeds. **short** marks runs with less than
the config's whole schedule; they show that the code works, not how accurate the network is.

Each run comes from one command, which can be interrupted and rerun. These commands start the runs
of a preset; with `--dry-run`, they only print the expected cost:

```bash
python -m launch.reproduce --preset=cpu
python -m launch.reproduce --preset=gpu
```
"""


def markdown(runs: list[dict], configs: dict[str, dict], made_by: str, figure: str) -> str:
    """Returns the text of RESULTS.md.

    Args:
      runs: records of the runs.
      configs: flat configs, by name and variant, of every row of the tables.
      made_by: the command that writes the file.
      figure: path of Figure 3's PNG, relative to the file.
    """
    groups = group(runs, configs)
    text = HEAD.format(made_by=made_by)
    noted: set[str] = set()
    for table in TABLES:
        text += table_text(table, groups, noted)
        if table.figure:
            text += f'\n![Figure 3 of the paper, and our runs]({figure})\n\n{caption(groups)}\n'
    others = [g for g in groups if g.config is None]
    if others:
        text += '\n## Other runs\n\n' + ''.join(details(g, '') for g in others)
    return text


def table_text(table: Table, groups: list[Group], noted: set[str]) -> str:
    """Returns a table and notes on the configs of its rows that are not yet in `noted`.

    Adds these configs to `noted`. Rows without any result are left out, and so is an empty table.
    """
    rows = notes = ''
    for row in table.rows:
        others = sorted((o for o in OTHERS if o.config == row.config), key=lambda o: o.error)
        ours = [g for g in groups if row.config and g.config == row.config]
        if row.config in noted:  # short runs are in the first table only
            ours = [g for g in ours if not g.is_short]
        cells = (
            f'**{row.network}**' if row.config else row.network,
            '' if row.error is None else f'{row.error:.2f} %',
            f'{others[0].error:.2f} %' if others else '',
            '<br>'.join(map(cell, ours)) + difference(row, table, groups),
        )
        if not any(cells[1:]):
            continue
        rows += '| ' + ' | '.join(cells) + ' |\n'
        if row.config in noted:
            continue
        noted |= {row.config} if row.config else set()
        notes += ''.join(
            f'- {row.network}, by others: {o.error:.2f} %, {o.who} ({o.source})\n' for o in others
        )
        notes += ''.join(details(g, row.network) for g in ours)
    if not rows:
        return ''
    head = '| network | paper | best listed reproduction | ours |\n|---|---|---|---|\n'
    return f'\n## {table.title}\n\n' + head + rows + ('\n' + notes if notes else '')


def difference(row: Row, table: Table, groups: list[Group]) -> str:
    """Returns the mean difference from the baseline, with its 95 % interval over common seeds."""
    if not table.baseline or row.config in ('', table.baseline):
        return ''
    errors = {
        name: {
            run['seed']: 100 * run['final_error']
            for g in groups
            if g.config == name and not g.is_short and not g.changes
            for run in g.runs
        }
        for name in (row.config, table.baseline)
    }
    text = paired_difference(errors[row.config], errors[table.baseline])
    return f'<br>{text} against the first row' if text else ''


def cell(g: Group) -> str:
    if g.is_short:
        changes = [f'{k}={json.dumps(v)}' for k, v in training_changes(g).items()]
        return f'**short**: {g.error} ({", ".join([g.seeds, g.length, *changes])})'
    return f'{g.error} ({g.seeds}{", changed" if training_changes(g) else ""})'


def details(g: Group, network: str) -> str:
    """Describes a group of our runs as a Markdown list item."""
    changes = ', '.join(f'{k}={json.dumps(v)}' for k, v in g.changes.items())
    more = ', '.join(str(run['seed']) for run in g.runs[1:])
    return (
        f'- {network + ", " if network else ""}ours: {"**short**, " if g.is_short else ""}{g.error}'
        f' ({g.seeds}), {g.length}'
        + (f', {changes}' if g.config and changes else '')
        + f'; {"; ".join(map(cost, by_hardware(g.runs)))}; `{command(g)}`'
        + (f' and the same with seed {more}' if more else '')
        + '\n'
    )


def command(g: Group) -> str:
    """Returns the first run's command, with flags for what the config's file has changed since."""
    words = g.runs[0]['command']
    changes = {f'--config.{key}': value for key, value in g.changes.items()} if g.config else {}
    flags = [f'{k}={v}' for k, v in changes.items() if f'{k}=' not in words]
    return shlex.join([*shlex.split(words), *flags])


def cost(runs: list[dict]) -> str:
    """'2 CPUs (...), 26:20 per run', of runs on the same hardware."""
    seconds = statistics.mean(sum(run['seconds'].values()) for run in runs)
    return f'{hardware(runs)}, {duration(seconds)} per run'


def hardware(runs: list[dict]) -> str:
    """'2 CPUs (x86_64, 188 GFLOP/s in float32)', or '1 x NVIDIA H100 (...)'."""
    device = runs[0]['device']
    peaks = [run['peak_flops'] for run in runs if run.get('peak_flops')]
    peak = f', {statistics.median(peaks) / 1e9:,.0f} GFLOP/s in float32' if peaks else ''
    if device['platform'] == 'cpu':
        count = f'{device["cpus"]} CPU' + 's' * (device['cpus'] != 1)
        return f'{count} ({device["machine"]}{peak})'
    return f'{device["count"]} x {device["kind"]}{peak and f" ({peak[2:]})"}'
