"""index.html of a run: everything inside one file, and the learning rate that the config says."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from nin_jax.visualize import html
from tests.helpers import load_page, tiny_config

LINES = [
    {'kind': 'train', 'attempt': 0, 'step': 4, 'epoch': 0.5, 'loss': 2.0, 'error': 0.9}
    | {'images_per_s': 100.0},
    {'kind': 'eval', 'attempt': 0, 'step': 4, 'epoch': 0.5, 'loss': 1.5, 'error': 0.5},
]


def test_the_page_holds_everything(tmp_path):
    lines = '\n'.join(map(json.dumps, LINES))
    (tmp_path / 'metrics.jsonl').write_text(lines + '\n{"kind": "train", "st')  # as after a kill
    picture = tmp_path / 'a.png'
    Image.new('RGB', (4, 4)).save(picture)
    config = tiny_config()
    config.eval.tta = 'shift'
    summary = {'final_error': 0.1234, 'command': 'python -m experiments.main --config="<a>"'}
    page = html.run_page(
        tmp_path, config, 24, 0.25, summary, {'cat': 0.25, '<dog>': 0.5}, {'A & B': picture}
    )
    assert 'mnist_subset: 25.00% error at step 24' in page
    assert '12.34% at its end' in page and 'eval.tta=shift' in page
    assert '&lt;a&gt;' in page and 'A &amp; B' in page
    assert page.index('>&lt;dog&gt;<') < page.index('>cat<')  # the worst class first
    assert len(re.findall('src="data:image/png;base64,', page)) == 2  # curves and the picture
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing is loaded from elsewhere


def test_a_run_without_metrics_has_no_curves(tmp_path):
    page = html.run_page(tmp_path, tiny_config(), 0, 0.5, {}, {}, {})
    assert 'Curves' not in page and 'recorded' not in page


@pytest.mark.parametrize(
    ('arg', 'epoch', 'rate'),
    [
        ('', 100, 0.1),
        ('', 215, 0.01),
        ('', 250, 0.001),
        ('modern', 4, 0.065),
        ('modern', 12, 0.0325),
    ],
)
def test_learning_rates_are_the_configs(arg, epoch, rate):
    epochs, rates = html.learning_rates(load_page('cifar10', arg))
    assert np.interp(epoch, epochs, rates) == pytest.approx(rate, rel=0.02)
