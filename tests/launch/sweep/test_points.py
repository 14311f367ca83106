"""Sweep configs, their checks, their points, and the devices and commands of the trials."""

import re
import shlex

import pytest

from experiments import cli
from experiments.space import Sweep, choice, integer, log_uniform, text, uniform
from launch import devices
from launch.sweep import __main__ as entry
from launch.sweep import points
from nin_jax.config import flatten
from nin_jax.data import cache
from nin_jax.errors import UserError
from nin_jax.train.trainer import state_shapes
from tests.helpers import ROOT, TINY_PAGE

TINY = str(TINY_PAGE)
CONFIGS = sorted((ROOT / 'experiments' / 'sweeps').glob('[!_]*.py'))
LR = {'optim.lr': choice(0.1, 0.2)}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_sweep_configs_are_valid_and_never_use_the_test_images(path, monkeypatch):
    monkeypatch.setattr(cache, 'ready', lambda *_: None)  # the data need not be here
    made = points.load(path, {})
    points.check(made)
    for point in points.points(made):
        config = cli.load_config(made.config, points.flags(made, point))
        assert (config.data.train, config.data.eval) == ('train', 'valid')


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        (dict(space={'optim.lrr': choice(0.1)}), "'optim.lrr', did you mean 'optim.lr'"),
        (dict(space=LR, fixed={'sed': 1}), "'sed', did you mean 'seed'?"),
        (dict(space=LR, sampler='gird'), "'gird', did you mean 'grid'?"),
        (dict(space=LR, sampler='tpe'), 'trials=None'),
        (dict(space=LR, sampler='tpe', trials='5'), "trials='5'"),
        (dict(space={'optim.lr': (0.01, 0.1)}), "'optim.lr' is (0.01, 0.1)"),
        (dict(space=LR, points=({'seed': 1},)), 'either a space or points'),
        (dict(space={'data.eval': choice('test')}), "'data.eval'"),
        (dict(space=LR, fixed={'data.train': 'train+valid'}), "'data.train'"),
        (dict(space=LR, fixed={'optim.lr': 1.0}), "'optim.lr' is both fixed and searched"),
        (dict(space={'optim.lr': uniform(0.1, 1)}), "'optim.lr' is uniform"),
        (dict(space={'optim.lr': choice(0.1, -0.1)}), 'optim.lr=-0.1'),
        (
            dict(space={'optim.momentum': uniform(0.5, 1.0)}, sampler='random', trials=3),
            'optim.momentum=1.0',
        ),
        (
            dict(space={'train.batch_size': uniform(16, 64)}, sampler='tpe', trials=3),
            "'16.0'",
        ),
        (dict(points=({'model.head': 'gep'},)), "model.head='gep', did you mean 'gap'?"),
        (dict(points=({'train.duration': '3parsecs'},)), '3parsecs'),
        (dict(points=({'model.blocks.mlpconv2.features': (8, 8, 9)},)), 'mlpconv2'),
        (dict(points=({'seed': 0},), config='tests/tiny.py'), "'tests/tiny.py'"),
    ],
)
def test_a_mistake_in_a_sweep_config_gets_one_sentence(wrong, words):
    default = {'config': TINY} | ({'sampler': 'grid'} if 'space' in wrong else {})
    with pytest.raises(UserError, match=re.escape(words)):
        points.check(Sweep(**(default | wrong)))


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('assert 1 == 2', 'does not load'),
        ('def get_sweep():\n    3', 'it must be a Sweep'),
    ],
)
def test_a_broken_sweep_file_gets_one_sentence(tmp_path, text, words):
    (tmp_path / 'sweep.py').write_text(text)
    with pytest.raises(UserError, match=words):
        points.load(str(tmp_path / 'sweep.py'), {})


def test_a_warmup_is_checked_with_the_images_that_a_trial_trains_on(monkeypatch):
    """40,000 of the 60,000 images of CIFAR-10: 938 steps, of 1,000."""
    monkeypatch.setattr(cache, 'ready', lambda *_: None)
    keys = {
        'train.duration': '1000steps',
        'optim.schedule': 'one_cycle',
        'optim.warmup': '3ep',
        'optim.drops': '',
    }
    sweep = Sweep(config='experiments/configs/cifar10.py', points=(keys,))
    points.check(sweep)
    config = cli.load_config(sweep.config, points.flags(sweep, keys))
    state_shapes(config)  # as in opening the finished run


@pytest.mark.parametrize(
    'make',
    [
        lambda: choice(),
        lambda: choice(1, 1),
        lambda: uniform(1, 1),
        lambda: uniform(0, float('nan')),
        lambda: log_uniform(0, 1),
        lambda: integer(1, 2.5),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(make):
    with pytest.raises(UserError):
        make()


def test_random_points_are_a_function_of_the_seed():
    space = {'optim.lr': log_uniform(0.01, 1), 'seed': integer(1, 3), 'model.head': choice('gap')}
    made = Sweep(TINY, space, sampler='random', trials=200)
    drawn = points.points(made)
    assert drawn == points.points(made)
    assert drawn != points.points(Sweep(TINY, space, sampler='random', trials=200, seed=1))
    assert all(0.01 <= p['optim.lr'] <= 1 for p in drawn)
    assert 80 < sum(p['optim.lr'] < 0.1 for p in drawn) < 120  # half of them: it is log-uniform
    assert {p['seed'] for p in drawn} == {1, 2, 3}
    tpe = points.points(Sweep(TINY, space, sampler='tpe', trials=12))
    assert tpe[: points.TPE_STARTUP] == drawn[: points.TPE_STARTUP] and tpe[10:] == [{}, {}]


def test_a_grid_has_every_combination_and_a_list_fills_in_the_config():
    made = Sweep(TINY, {'seed': integer(1, 2), 'optim.lr': choice(0.1, 0.2)}, sampler='grid')
    assert [tuple(p.values()) for p in points.points(made)] == [
        (1, 0.1),
        (1, 0.2),
        (2, 0.1),
        (2, 0.2),
    ]
    listed = Sweep(TINY, points=({}, {'optim.lr': 0.5}, {'augment.flip': True}))
    assert points.points(listed) == [
        {'optim.lr': 0.1, 'augment.flip': False},
        {'optim.lr': 0.5, 'augment.flip': False},
        {'optim.lr': 0.1, 'augment.flip': True},
    ]
    assert points.axes_of(listed)['optim.lr'] == choice(0.1, 0.5)


def test_a_command_means_its_point():
    fixed = {'model.blocks.mlpconv1.features': (8, 9, 10), 'train.duration': '3ep'}
    point = {'optim.lr': 1e-5, 'augment.flip': True, 'seed': 3, 'model.head': 'fc'}
    words = shlex.split(shlex.join(points.command(Sweep(TINY, fixed=fixed), 'runs/x', point)))
    assert words[:3] == ['python', '-m', 'experiments.main'] and '--workdir=runs/x' in words
    config = flatten(cli.load_config(TINY, [w for w in words if w.startswith('--config.')]))
    assert {k: config[k] for k in {**fixed, **point}} == {**fixed, **point}
    assert text((1,)) == '(1,)'


def test_accelerators_are_handed_out(monkeypatch):
    monkeypatch.setattr(devices, 'found', lambda: ('cuda', ['0', '1', '2', '3']))
    assert [e['CUDA_VISIBLE_DEVICES'] for e in devices.environments(None, None)] == list('0123')
    shared = devices.environments(4, '1')
    assert shared == [{'CUDA_VISIBLE_DEVICES': '1', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.225'}] * 4
    assert devices.environments(2, 'cpu') == [{'JAX_PLATFORMS': 'cpu'}] * 2
    with pytest.raises(UserError, match="no accelerator '7' here, there are: 0, 1"):
        devices.environments(1, '7')
    monkeypatch.setattr(devices, 'found', lambda: ('tpu', ['0', '1']))
    assert [e['TPU_VISIBLE_CHIPS'] for e in devices.environments(2, None)] == ['0', '1']
    with pytest.raises(UserError, match='a TPU chip serves one process'):
        devices.environments(3, None)


@pytest.mark.parametrize(
    ('visible', 'cards'), [('2,3', ['2', '3']), ('-1', []), ('', []), ('1, 0,-1,2', ['1', '0'])]
)
def test_hidden_accelerators_are_not_there(monkeypatch, visible, cards):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    assert devices.found()[1] == cards


def test_a_trial_gets_several_accelerators(monkeypatch):
    monkeypatch.setattr(devices, 'found', lambda: ('cuda', ['0', '1', '2', '3', '4']))
    pairs = devices.environments(None, None, 2)
    assert pairs == [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
    with pytest.raises(UserError, match='--devices_per_trial=6'):
        devices.environments(None, None, 6)
    monkeypatch.setattr(devices, 'found', lambda: ('tpu', [str(i) for i in range(8)]))
    assert devices.environments(None, None, 4)[1] == {
        'TPU_VISIBLE_CHIPS': '4,5,6,7',
        'TPU_CHIPS_PER_PROCESS_BOUNDS': '2,2,1',
        'TPU_PROCESS_BOUNDS': '1,1,1',
    }
    with pytest.raises(UserError, match='--devices_per_trial=3'):
        devices.environments(None, None, 3)
    assert devices.environments(1, 'cpu', 2) == [
        {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'}
    ]


def test_commands_of_the_readme(capsys):
    readme = (ROOT / 'README.md').read_text()
    commands = re.findall(r'^python -m launch\.sweep (.*)$', readme, re.M)
    run, report = map(shlex.split, commands)
    assert entry.main([*run, '--dry-run']) == 0
    assert capsys.readouterr().out.count('\n') == 24
    assert report == ['report', '--study=digits'] and '--study=digits' in run
