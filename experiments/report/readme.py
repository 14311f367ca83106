"""Writes the table of results in the README."""

import pathlib
import statistics

from experiments.report.groups import Group, by_hardware, group
from experiments.report.markdown import hardware
from experiments.report.paper import TABLES, Row
from experiments.report.records import RunError

MARKS = '<!-- figures -->', '<!-- /figures -->'


def readme_table(runs: list[dict], configs: dict[str, dict]) -> str:
    """Returns the README's table: one row for each config with unchanged, whole-schedule runs.

    Tables of differences from a baseline are in RESULTS.md only.
    """
    groups = [g for g in group(runs, configs) if g.config and not g.is_short and not g.changes]
    head = '| data, network | config | paper | ours | training | hardware |'
    text = head + '\n|---|---|---|---|---|---|\n'
    seen = set()
    for table in (t for t in TABLES if not t.baseline):
        for row in table.rows:
            for g in groups if row.config and row.config not in seen else []:
                if g.config == row.config:
                    text += readme_row(row, g)
            seen.add(row.config)
    return text


def readme_row(row: Row, g: Group) -> str:
    name, _, variant = row.config.partition(':')
    parts = by_hardware(g.runs)
    minutes = [statistics.mean(run['seconds']['train'] for run in part) / 60 for part in parts]
    dataset = g.runs[0]['config']['data.name']
    # A run that the paper does not have stands beside the paper's run without augmentation.
    papers = {r.config: r.error for table in TABLES for r in table.rows}
    error = papers.get(name) if row.error is None else row.error
    cells = (
        f'{DATA_NAMES.get(dataset, dataset)}: {RECIPES.get(variant, row.network)}',
        f'`{name}.py{":" + variant if variant else ""}`',
        '' if error is None else f'{error:.2f} %',
        f'{g.error} ({g.seeds})',
        '<br>'.join(f'{m:.1f} min' for m in minutes),
        '<br>'.join(map(hardware, parts)),
    )
    return '| ' + ' | '.join(cells) + ' |\n'


RECIPES = {'fast': 'the fast recipe', 'modern': 'the modern recipe'}
DATA_NAMES = {
    'cifar10': 'CIFAR-10',
    'cifar100': 'CIFAR-100',
    'mnist': 'MNIST',
    'svhn_cropped': 'SVHN',
    'mnist_subset': '5,000 digits of MNIST',
}


def fill_readme(path: pathlib.Path, table: str) -> None:
    """Replaces the text between MARKS in a Markdown file.

    Raises:
      RunError: the file has no marks.
    """
    text = path.read_text()
    start, end = (text.find(mark) for mark in MARKS)
    if not -1 < start < end:
        raise RunError(f"'{path}' has no lines {MARKS[0]} and {MARKS[1]}: add them")
    path.write_text(f'{text[: start + len(MARKS[0])]}\n{table}{text[end:]}')
