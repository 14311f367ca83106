"""Writes RESULTS.md and its figure from records of runs."""

import importlib
import os
import pathlib
import shlex

from experiments.report.figure3 import draw_figure3
from experiments.report.markdown import markdown
from experiments.report.paper import TABLES
from nin_jax.files import write_text
from nin_jax.runs.workdir import flat_config


def write(
    runs: list[dict], made_from: list[str], out: pathlib.Path, figure: pathlib.Path | None = None
) -> None:
    """Writes the results of `runs` as Markdown, and Figure 3 as a PNG.

    Args:
      runs: records of the runs.
      made_from: the paths of the records, quoted in the file's header.
      out: the Markdown file to write.
      figure: the PNG to write; `figure3.png` beside `out` if None.
    """
    figure = figure or out.with_name('figure3.png')
    configs = known_configs()
    link = pathlib.Path(os.path.relpath(figure.absolute(), out.absolute().parent)).as_posix()
    other = [] if link == 'figure3.png' else [f'--figure={figure}']
    made_by = shlex.join(['python', '-m', 'experiments.report', *made_from, f'--out={out}', *other])
    text = markdown(runs, configs, made_by, link)
    draw_figure3(runs, configs, figure)
    write_text(out, text)


def known_configs() -> dict[str, dict]:
    """Returns the flat config of every row of the tables, keyed by name and variant."""
    names = dict.fromkeys(row.config for table in TABLES for row in table.rows if row.config)
    return {name: load(*name.partition(':')[::2]) for name in names}


def load(name: str, variant: str) -> dict:
    """Returns the flat config of experiments/configs/<name>.py with a variant."""
    return flat_config(importlib.import_module(f'experiments.configs.{name}').get_config(variant))
