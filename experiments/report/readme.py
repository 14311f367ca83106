"""Writes the table of results in the README."""

import pathlib
import statistics

from experiments.report.groups import Group, by_hardware, group
from experiments.report.markdown import hardware
from experiments.report.paper import TABLES, Row
from experiments.report.records import RunError
from nin_jax.files import write_text

MARKS = '<!-- figures -->', '<!-- /figures -->'


def readme_table(runs: list[dict], configs: dict[str, dict]) -> str:
    """Returns the README's table: one row for each config with unchanged, whole-schedule runs.

    Rows are sorted by dataset. Tables of differences from a baseline are in RESULTS.md only.
    """
    groups = [g for g in group(runs, configs) if g.config and not g.is_short and not g.changes]
    papers = {r.config: r.error for t in TABLES for r in t.rows}
    listed: dict[str, Row] = {}  # the first row of each config
    for row in (r for t in TABLES if not t.baseline for r in t.rows):
        listed.setdefault(row.config, row)
    pairs = [(row, g) for row in listed.values() for g in groups if g.config == row.config]
    datasets = list(DATA_NAMES)
    pairs.sort(key=lambda pair: datasets.index(pair[1].runs[0]['config']['data.name']))
    head = '| data, network | config | paper | ours | training | hardware |'
    rows = [readme_row(row, g, papers) for row, g in pairs]
    return '\n'.join([head, '|---|---|---|---|---|---|', *rows, ''])


def readme_row(row: Row, g: Group, papers: dict[str, float | None]) -> str:
    name, _, variant = row.config.partition(':')
    parts = by_hardware(g.runs)
    minutes = [statistics.mean(run['seconds']['train'] for run in part) / 60 for part in parts]
    config = g.runs[0]['config']
    # A recipe that the paper does not have stands beside the paper's runs on the same data.
    paper = [(papers.get(name) if row.error is None else row.error, '')]
    if variant in RECIPES and config['augment.crop_pad']:
        paper.append((papers.get(f'{name}:aug'), ' with augmentation'))
    cells = (
        f'{DATA_NAMES[config["data.name"]]}: {RECIPES.get(variant, row.network)}',
        f'`{name}.py{":" + variant if variant else ""}`',
        '<br>'.join(f'{error:.2f} %{how}' for error, how in paper if error is not None),
        f'{g.error} ({g.seeds})',
        '<br>'.join(f'{m:.1f} min' for m in minutes),
        '<br>'.join(map(hardware, parts)),
    )
    return '| ' + ' | '.join(cells) + ' |'


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
    write_text(path, f'{text[: start + len(MARKS[0])]}\n{table}{text[end:]}')
