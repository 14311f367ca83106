"""Converts docs/guide.md to docs/guide.ipynb, so that there is one source.

    python -m experiments.notebook

Run it after a change of the guide; a test compares the two. Commands become cells, and pictures are
embedded. The first cell works in Jupyter, from the project's folder, and in Colab once REPOSITORY
is set.
"""

import base64
import json
import pathlib
import re

from experiments import cli
from nin_jax.errors import UserError

GUIDE = pathlib.Path('docs/guide.md')

SETUP = """\
import os

REPOSITORY = ''  # in Colab: where this project is hosted, to clone it from
if not os.path.isdir('experiments'):
    if REPOSITORY:
        !git clone -q {REPOSITORY} nin_jax_project
        os.chdir('nin_jax_project')
    else:
        os.chdir('..')  # from docs/ to the project's folder
%pip install -q -e '.[export]'"""


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    if not GUIDE.is_file():
        raise UserError(f"'{GUIDE}' is missing: run this from the project's folder")
    out = GUIDE.with_suffix('.ipynb')
    out.write_text(notebook(GUIDE.read_text(encoding='utf-8'), GUIDE.parent), encoding='utf-8')
    print(out)
    return 0


def notebook(markdown: str, folder: pathlib.Path) -> str:
    """Returns the notebook's JSON, format 4.5; `folder` contains the pictures of the Markdown."""
    cells = [cell('code', SETUP, 'setup')]
    # Alternately text, and kind and content of a fenced block.
    for i, part in enumerate(re.split(r'^(```\w+\n.*?^```)$', markdown, flags=re.S | re.M)):
        if not part.strip():
            continue
        fence = re.fullmatch(r'```(\w+)\n(.*)\n```', part, re.S)
        if fence is None:
            cells.append(cell('markdown', embed(part.strip(), folder), f'text-{i}'))
        elif fence[1] == 'python':
            cells.append(cell('code', fence[2], f'code-{i}'))
        else:
            commands = '\n'.join(f'!{line}' for line in fence[2].splitlines())
            cells.append(cell('code', commands, f'command-{i}'))
    python = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    content = {
        'cells': cells,
        'metadata': {'kernelspec': python, 'language_info': {'name': 'python'}},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def cell(kind: str, source: str, name: str) -> dict:
    """Returns a cell; `name` identifies it within the notebook."""
    code = {'execution_count': None, 'outputs': []} if kind == 'code' else {}
    lines = source.splitlines(keepends=True)
    return {'cell_type': kind, 'id': name, 'metadata': {}, 'source': lines} | code


def embed(text: str, folder: pathlib.Path) -> str:
    """Embeds the pictures of the text, because Colab does not see the files beside it."""

    def picture(found: re.Match) -> str:
        data = base64.b64encode((folder / found[2]).read_bytes()).decode()
        return f'![{found[1]}](data:image/png;base64,{data})'

    return re.sub(r'!\[([^]]*)\]\((?!https?:)([^)]+\.png)\)', picture, text)


if __name__ == '__main__':
    cli.run(main)
