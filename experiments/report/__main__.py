"""Writes RESULTS.md from runs, or collects each run into one small JSON file.

    python -m experiments.report runs/cifar10/seed* --collect=results
    python -m experiments.report results --out=RESULTS.md --figure=results/figure3.png
    python -m experiments.report results --readme=README.md

Arguments: folders of runs, collected .json files, or folders of either. Figure 3 is written beside
RESULTS.md. A preempted run is reported at its last evaluation, marked as short; a run without an
evaluation is an error.
"""

import pathlib

from absl import flags

from experiments import cli
from nin_jax.errors import UserError

OUT = flags.DEFINE_string('out', None, 'The file to write, such as RESULTS.md.')
FIGURE = flags.DEFINE_string('figure', None, 'PNG file for Figure 3; default: beside --out.')
README = flags.DEFINE_string('readme', None, 'A Markdown file whose results table to update.')
COLLECT = flags.DEFINE_string('collect', None, 'Folder to write one JSON file per run to.')


def main(argv: list[str]) -> int:
    paths = argv[1:]
    if not paths:
        raise UserError('no run given: pass folders of runs, or results')
    if not (OUT.value or COLLECT.value or README.value):
        raise UserError(
            'no output given: add --out=RESULTS.md, --readme=README.md or --collect=...'
        )
    if FIGURE.value and not FIGURE.value.endswith('.png'):
        raise UserError(f'--figure={FIGURE.value}: must end in .png')
    if FIGURE.value and not OUT.value:
        raise UserError(f'--figure={FIGURE.value}: needs --out, the page that shows it')
    if OUT.value and pathlib.Path(OUT.value).is_dir():
        raise UserError(f'--out={OUT.value}: is a folder, name a file such as RESULTS.md')
    out, collected, figure = (cli.local(flag.value or '') for flag in (OUT, COLLECT, FIGURE))
    from experiments.report import document, readme, records  # slow imports, after the checks

    runs = [run for path in paths for run in records.load(pathlib.Path(path))]
    if COLLECT.value:
        for run in runs:
            print(records.collect(run, collected))
    if OUT.value:
        document.write(runs, paths, out, figure if FIGURE.value else None)
        print(f'{OUT.value}: {len(runs)} runs')
    if README.value:
        table = readme.readme_table(runs, document.known_configs())
        readme.fill_readme(pathlib.Path(README.value), table)
        print(f'{README.value}: updated the results table')
    return 0


if __name__ == '__main__':
    cli.run(main)
