"""The report of a sweep."""

import csv
import math
import re
import shlex

import pytest
from optuna.trial import TrialState
from PIL import Image

from experiments import cli
from experiments.space import Sweep, choice, integer, log_uniform
from launch.sweep import __main__ as entry
from launch.sweep import attempts, flags, report, study
from tests.helpers import TINY_PAGE

TINY = str(TINY_PAGE)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A study of made-up results, lowest at the upper end of the learning rates; its folder."""
    folder = tmp_path_factory.mktemp('finished')
    fixed = {'model.blocks.mlpconv1.features': (8, 8)}
    space = {
        'optim.lr': log_uniform(0.001, 1.0),
        'model.class_bias': choice(0.0, 0.5, 1.0),
        'optim.schedule': choice('drops', 'plateau'),
    }
    made = Sweep(TINY, space, sampler='random', trials=20, prune_after=1, fixed=fixed)
    storage = flags.Storage(f'sqlite:///{folder}/study.db')
    database = study.connect(storage, study.RetryPolicy(storage, 10))
    queue = attempts.Attempts(study.begin(database, 's', made), database)
    while trial := queue.claim('w'):
        point = queue.suggest(trial)
        error = 0.5 - 0.1 * (3 + math.log10(point['optim.lr']))
        trial.report(error, 1)
        number = trial.user_attrs['point']
        if trial.number == 3:  # its worker is lost
            queue.end(trial, TrialState.FAIL)
        elif number == 7:
            queue.end(trial, TrialState.PRUNED)
        elif number == 9:
            queue.end(trial, TrialState.PRUNED, outcome='diverged')
        else:
            queue.end(trial, TrialState.COMPLETE, error, seconds={'train': 1.0})
    return queue, folder


def test_report_of_a_finished_study(finished, capsys):
    queue, folder = finished
    assert entry.main(['report', '--study=s', f'--workdir={folder}']) == 0
    out = capsys.readouterr().out
    assert '20 points: 18 complete, 1 pruned, 1 diverged; workers lost: 1, over 1 of' in out
    best = attempts.best(queue.by_point())
    number = best.user_attrs['point']
    assert f'best: point {number}, validation top-1 error {best.value:.2%}' in out
    assert 'Warning: the best has optim.lr=' in out and 'at the upper bound' in out
    command = next(line for line in out.splitlines() if line.startswith('python -m experiments'))
    config = cli.load_config(TINY, [w for w in shlex.split(command) if w.startswith('--config.')])
    assert config.optim.lr == best.params['optim.lr'] and config.data.eval == 'valid'
    assert config.model.blocks.mlpconv1.features == (8, 8)
    with open(folder / 'report' / 'trials.csv') as f:
        rows = list(csv.DictReader(f))
    assert [int(r['trial']) for r in rows] == list(range(20))
    assert float(rows[number]['optim.lr']) == best.params['optim.lr']
    assert [r['lost'] for r in rows] == ['0'] * 3 + ['1'] + ['0'] * 16
    page = (folder / 'report' / 'REPORT.md').read_text()
    shown = re.findall(r'!\[.*\]\((.*)\)', page)
    assert shown == ['best.png', 'axes.png', 'parallel.png', 'importance.png']
    for name in shown:
        assert Image.open(folder / 'report' / name).size > (600, 200)


def test_ends_of_axes():
    lr = log_uniform(0.001, 1.0)
    assert [report.edge(v, lr) for v in (0.00101, 0.03, 0.99)] == ['lower', '', 'upper']
    three = choice(1, 3, 2)
    assert [report.edge(v, three) for v in (1, 2, 3)] == ['lower', '', 'upper']
    assert report.edge('a', choice('a', 'b', 'c')) == ''
    assert report.edge(1, choice(1, 2)) == ''
    assert report.edge(4, integer(0, 4)) == 'upper'
