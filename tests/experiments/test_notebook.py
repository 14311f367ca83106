"""docs/guide.ipynb: made of the guide, and of nothing else."""

import json
import re

from experiments.notebook import notebook
from tests.helpers import ROOT

GUIDE = (ROOT / 'docs/guide.md').read_text()


def test_the_notebook_is_that_of_the_guide():
    expected = notebook(GUIDE, ROOT / 'docs')
    assert (ROOT / 'docs/guide.ipynb').read_text() == expected, 'python -m experiments.notebook'


def test_every_block_is_a_cell():
    cells = json.loads(notebook(GUIDE, ROOT / 'docs'))['cells']
    assert len({cell['id'] for cell in cells}) == len(cells)
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code'][1:]
    blocks = re.findall(r'```(\w+)\n(.*?)\n```', GUIDE, re.S)
    assert len(code) == len(blocks) > 5
    for (kind, block), source in zip(blocks, code, strict=True):
        assert source == (block if kind == 'python' else '!' + block.replace('\n', '\n!'))
    text = ''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    assert '```' not in text and text.count('data:image/png;base64,') == GUIDE.count('![')


def test_a_picture_is_embedded_and_a_link_is_not(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'\x89PNG')
    cells = json.loads(notebook('![A](a.png) [b](a.png) ![c](https://x/y.png)', tmp_path))['cells']
    assert ''.join(cells[1]['source']) == (
        '![A](data:image/png;base64,iVBORw==) [b](a.png) ![c](https://x/y.png)'
    )
