"""Makes the results page from finished runs, or collects runs as small files for it.

    python -m experiments.report runs/cifar10/seed* --collect=results
    python -m experiments.report results --out=RESULTS.md --figure=results/figure3.png
    python -m experiments.report runs/seeds --out=runs/RESULTS.md

Arguments: folders of runs, collected .json files, or folders of either. Beside RESULTS.md goes the
picture of Figure 3 (--figure). A run that did not finish is refused.
"""

import importlib
import os
import pathlib

from absl import flags

from experiments import cli
from experiments.report.paper import TABLES
from nin_jax.config import flatten
from nin_jax.errors import UserError

OUT = flags.DEFINE_string('out', None, 'The page to write, such as RESULTS.md.')
FIGURE = flags.DEFINE_string('figure', None, "Figure 3's picture; default: beside --out.")
COLLECT = flags.DEFINE_string('collect', None, 'Folder to write one small file a run to.')


def main(argv: list[str]) -> int:
    if not argv[1:]:
        raise UserError('no run is named: give folders of runs, or results')
    if not OUT.value and not COLLECT.value:
        raise UserError('nothing to make: add --out=RESULTS.md, or --collect=results')
    from experiments.report import results

    runs = [run for path in argv[1:] for run in results.load(pathlib.Path(path))]
    if COLLECT.value:
        for run in runs:
            print(results.collect(run, pathlib.Path(COLLECT.value)))
    if OUT.value:
        out = pathlib.Path(OUT.value)
        figure = pathlib.Path(FIGURE.value) if FIGURE.value else out.with_name('figure3.png')
        text = make(runs, argv[1:], out, figure)
        results.draw_figure3(runs, pages(), figure)
        out.write_text(text)
        print(f'{out}: {len(runs)} runs, figure in {figure}')
    return 0


def make(runs: list[dict], paths: list[str], out: pathlib.Path, figure: pathlib.Path) -> str:
    """The text of the page."""
    from experiments.report import results

    link = pathlib.Path(os.path.relpath(figure.absolute(), out.absolute().parent)).as_posix()
    made_by = f'python -m experiments.report {" ".join(paths)} --out={out.name}'
    made_by += '' if link == 'figure3.png' else f' --figure={link}'
    return results.markdown(runs, pages(), made_by, link)


def pages() -> dict[str, dict]:
    """The flat config of every page, with variant, that the paper's tables name."""
    names = dict.fromkeys(row.page for table in TABLES for row in table.rows if row.page)
    return {name: flat_page(*name.partition(':')[::2]) for name in names}


def flat_page(name: str, variant: str) -> dict:
    from nin_jax.runs.workdir import jsonable

    config = importlib.import_module(f'experiments.configs.{name}').get_config(variant)
    return jsonable(flatten(config))


if __name__ == '__main__':
    cli.run(main)
