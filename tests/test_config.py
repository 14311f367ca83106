"""Config pages: they resolve, every key is read, mistakes are named, derived numbers move."""

import itertools
import re

import pytest
from ml_collections import ConfigDict

from nin_jax import commands
from nin_jax import config as config_module
from nin_jax.config import block, default_config, flatten, only_one, smoke, validate, variants
from nin_jax.data import augment
from nin_jax.errors import ConfigError
from nin_jax.models import nin
from nin_jax.plan import make_plan
from nin_jax.runs import summary, workdir
from tests.helpers import PAGES, ROOT, load_page, tiny_config

VARIANTS = {
    'quickstart': [],
    'mnist': ['modern', 'fast'],
    'svhn': ['modern'],
    'cifar10': ['aug', 'nodropout', 'modern', 'fast'],
    'cifar100': ['released', 'modern', 'fast'],
    'ablations': ['fc', 'fc_dropout', 'linear', 'maxout', 'dropout', 'plain', 'one_size', 'fast'],
    'hinton': ['fc', 'fc_dropout', 'gap'],
    'imagenet': [],
}
ONE_AT_A_TIME = ('ablations', 'hinton')
OF_FAST = {'dropout', 'plain', 'one_size'}
RECIPES = {'modern', 'fast'}  # replace what the others change
CHANGES = {'aug', 'nodropout', 'released'}
PAGE_ARGS = [
    (page, ','.join(arg))
    for page in PAGES
    for n in range(len(VARIANTS[page]) + 2)
    for arg in itertools.combinations([*VARIANTS[page], 'smoke'], n)
    if page not in ONE_AT_A_TIME or len({*arg} - {'smoke', 'fast'}) < 2
    if 'fast' in arg or not OF_FAST & {*arg}
    if not RECIPES & {*arg} or not ({*arg} >= RECIPES or CHANGES & {*arg})
]


@pytest.mark.parametrize('arm', sorted(OF_FAST))
def test_an_arm_that_would_be_the_papers_run_is_refused(arm):
    with pytest.raises(ConfigError, match=f':{arm},fast'):
        load_page('ablations', arm)


def test_choices_are_those_that_are_built():
    assert {*config_module.POOLS} == {*nin.POOLS}
    assert {*config_module.CHOICES['eval.tta']} == {*augment.VIEWS}


def test_blocks_are_named_in_their_order():
    config = tiny_config()
    config.model.blocks = ConfigDict({'stem': block((8,), 5), 'body': block((10,), 3)})
    with pytest.raises(ConfigError, match=r'model\.blocks=body, stem: '):
        validate(config)


@pytest.mark.parametrize(('page', 'arg'), PAGE_ARGS)
def test_every_page_with_every_variant_is_valid(page, arg):
    config = load_page(page, arg)
    validate(config)
    assert make_plan(config, 50_000, short_calls=True).total_steps == (
        4
        if 'smoke' in arg
        else 450_000
        if page == 'imagenet'
        else round(float(config.train.duration[:-2]) * 50_000 / config.train.batch_size)
    )


@pytest.mark.parametrize('page', PAGES)
def test_pages_have_the_keys_of_the_default_and_no_others(page):
    def keys(config):
        return {k for k in flatten(config) if not k.startswith('model.blocks')}

    assert keys(load_page(page)) == keys(default_config())


@pytest.mark.parametrize('page', PAGES)
def test_pages_say_command_error_and_cost(page):
    text = (ROOT / f'experiments/configs/{page}.py').read_text().split('"""')[1]
    assert re.search(rf'--config=experiments/configs/{page}\.py(:\w+)? --workdir=', text)
    assert 'error' in text and re.search(r'[Cc]ost|minutes', text)
    for variant in VARIANTS[page]:
        assert f':{variant} ' in text


class Recorder(ConfigDict):
    """A config that remembers which of its leaves were read, by its own paths."""

    @classmethod
    def of(cls, config: ConfigDict, seen: set, prefix: str = '') -> 'Recorder':
        recorder = cls(
            {
                k: cls.of(v, seen, f'{prefix}{k}.') if isinstance(v, ConfigDict) else v
                for k, v in config.items()
            }
        )
        object.__setattr__(recorder, '_seen', (seen, prefix))
        return recorder

    def __getitem__(self, key):
        value = super().__getitem__(key)
        seen = self.__dict__.get('_seen')
        if seen and not isinstance(value, ConfigDict):
            seen[0].add(seen[1] + key)
        return value

    def __getattr__(self, name):
        return object.__getattribute__(self, name) if name.startswith('_') else self[name]


def keys_read_by_a_run(config, folder, monkeypatch) -> set[str]:
    """Trains for real; checking values and writing them down do not count as reading."""
    seen: set[str] = set()
    recorder = Recorder.of(config, seen)
    monkeypatch.setattr(commands, 'validate', lambda _: None)
    for module in (workdir, summary):
        monkeypatch.setattr(module, 'flat_config', lambda _: {})
    commands.train(recorder, folder, command='')
    return seen


def test_every_key_is_read(tmp_path, tiny_run, monkeypatch):
    config = tiny_config()
    config.train.duration = '4steps'
    read = keys_read_by_a_run(config, tmp_path / 'run', monkeypatch)
    assert set(flatten(config)) - read == {'optim.plateau_patience', 'init.new_head'}
    plateau = tiny_config()
    plateau.optim.schedule, plateau.init.weights = 'plateau', str(tiny_run)
    plateau.train.duration = '4steps'
    read |= keys_read_by_a_run(plateau, tmp_path / 'plateau', monkeypatch)
    assert set(flatten(config)) == read


def test_the_recorder_notices_a_dead_key(tmp_path, monkeypatch):
    config = tiny_config()
    config.train.duration = '4steps'
    with config.unlocked():
        config.optim.nesterov = True
    assert 'optim.nesterov' not in keys_read_by_a_run(config, tmp_path, monkeypatch)


def test_batch_size_moves_everything_that_hangs_on_it():
    config = default_config()
    plan = make_plan(config, 50_000, short_calls=False)
    assert (plan.total_steps, plan.drops, plan.steps_per_call) == (101_562, (78_125, 89_844), 390)
    config.train.batch_size = 256
    plan = make_plan(config, 50_000, short_calls=False)
    assert (plan.total_steps, plan.drops, plan.steps_per_call) == (50_781, (39_062, 44_922), 195)


@pytest.mark.parametrize(
    ('duration', 'steps'),
    [
        ('3ep', 300),
        ('0.5ep', 50),
        ('1epoch', 100),
        ('2 epochs', 200),
        ('7steps', 7),
        ('1step', 1),
        ('0.001ep', 1),
    ],
)
def test_durations(duration, steps):
    config = default_config()
    config.train.batch_size, config.train.duration = 10, duration
    assert make_plan(config, 1000, short_calls=True).total_steps == steps


def test_percent_is_of_the_training_duration():
    config = default_config()
    config.train.batch_size, config.train.duration = 10, '200steps'
    config.optim.drops, config.eval.every = '50% 75%', '10%'
    plan = make_plan(config, 1000, short_calls=True)
    assert (plan.drops, plan.eval_every) == ((100, 150), 20)


@pytest.mark.parametrize('steps_per_call', [1, 3, 7, 10, 64])
def test_what_is_due_happens_once_a_period_and_at_the_end(steps_per_call):
    config = default_config()
    config.train.batch_size, config.train.duration = 10, '205steps'
    config.train.steps_per_call, config.eval.every = steps_per_call, '20steps'
    plan = make_plan(config, 1000, short_calls=True)
    ends = [*range(steps_per_call, 205, steps_per_call), 205]
    starts = [0, *ends]
    due = [e for s, e in zip(starts, ends, strict=False) if plan.is_due(s, e, plan.eval_every)]
    expected = sorted({next(e for e in ends if e >= m) for m in range(20, 205, 20)} | {205})
    assert due == expected


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('train.duration', '3 fortnights', "write a duration as '3ep' or '500steps'"),
        ('train.duration', '10%', "write a duration as '3ep' or '500steps'"),
        ('train.duration', '', "write a duration as '3ep' or '500steps'"),
        ('eval.every', '-1ep', "write a duration as '3ep' or '500steps' or '10%'"),
        ('optim.drops', '30ep 20ep', 'must grow from left to right'),
        (
            'train.freeze',
            '10% 20% 30%',
            'at least the last of the mlpconv layers must be trained to the end',
        ),
        ('train.freeze', '50% 40%', 'durations must grow from left to right'),
        ('train.freeze', 'early', "write a duration as '3ep' or '500steps' or '10%'"),
        (
            'train.batch_size',
            1001,
            'the training split holds only 1000 images, choose that or less',
        ),
        ('train.duration', '1e9ep', "write a duration as '3ep' or '500steps'"),
        ('train.duration', '99999999ep', 'is past 2**31 images, choose less'),
    ],
)
def test_durations_that_cannot_be(key, value, words):
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match='^' + re.escape(f'{key}={value!r}: ')) as e:
        make_plan(config, 1000, short_calls=True)
    assert str(e.value).endswith(words)


def test_variants():
    assert variants('aug,smoke', 'aug') == {'aug', 'smoke'}
    with pytest.raises(ConfigError, match=r"':agu'.*':aug'"):
        variants('agu', 'aug')
    assert variants('aug,big', 'aug', 'big') == {'aug', 'big'}
    assert only_one({'aug'}) == 'aug' and only_one(set()) == ''
    with pytest.raises(ConfigError, match=r':aug.*:big'):
        only_one({'big', 'aug'})


def test_smoke_leaves_the_network_alone():
    config = default_config()
    smoke(config)
    assert config.model == default_config().model
