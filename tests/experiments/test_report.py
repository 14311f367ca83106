"""Tests of RESULTS.md, of runs it refuses, and of several seeds in one command."""

import copy
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments.report import document, figure3, groups, markdown, readme, records
from experiments.report.paper import FIGURE3, FIGURE3_EPOCHS, OTHERS, TABLES
from launch import reproduce
from nin_jax.files import file_sha256
from tests.helpers import (
    PAGES,
    ROOT,
    TINY_PAGE,
    Result,
    assert_refused,
    has_metrics,
    run_main,
    run_module,
    run_process,
    summary,
    wait_until,
)

RESULTS = ROOT / 'results'


def run_report(*words) -> Result:
    return run_module('experiments.report', *words)


@pytest.fixture(scope='module')
def configs() -> dict[str, dict]:
    return document.known_configs()


def record(
    configs, name: str, seed: int, error: float, epoch: float | None = None, **changes
) -> dict:
    """Returns a synthetic finished run of a config, with other values for some keys."""
    config = copy.deepcopy(configs[name]) | {'seed': seed, 'devices': 1, 'eval.batch_size': 500}
    config |= {k.replace('__', '.'): v for k, v in changes.items()}
    full = float(configs[name]['train.duration'].removesuffix('ep'))
    return {
        'status': 'done',
        'name': f'{name.replace(":", "-")}-seed{seed}',
        'final_error': error,
        'epoch': full if epoch is None else epoch,
        'seed': seed,
        'seconds': {'train': 3600.0, 'eval': 60.0},
        'config': config,
        'command': f'python -m experiments.main --config={name}',
        'device': {'kind': 'cpu', 'platform': 'cpu', 'count': 1, 'cpus': 2, 'machine': 'x86_64'},
        'columns': list(records.COLUMNS),
        'epochs': [[1.0, 2.0, 0.8, 1.9, 0.7], [2.0, 1.5, 0.5, 1.4, 0.4]],
    }


def results_text(runs, configs) -> str:
    return markdown.markdown(runs, configs, 'python -m experiments.report results', 'figure3.png')


# ---- the paper's figures --------------------------------------------------------------------


def test_the_papers_tables():
    """Spot checks against the paper; every row of ours names an existing config."""
    errors = {t.title.split(':')[0]: [r.error for r in t.rows] for t in TABLES}
    assert errors['Table 1'] == [15.13, 14.98, 11.68, 10.41, 9.50, 9.38, 9.32, 8.81]
    assert errors['Table 2'] == [43.71, 42.51, 38.57, 36.85, 35.68, 35.68]
    assert errors['Table 3'] == [2.80, 2.78, 2.68, 2.47, 2.35, 2.16, 1.94]
    assert errors['Table 4'] == [0.53, 0.47, 0.47, 0.45]
    assert errors['Table 5'] == [11.59, 10.88, 10.41]
    assert errors['Section 4.6'] == [17.56, 15.99, 16.46]
    named = {row.config for table in TABLES for row in table.rows if row.config}
    not_the_papers = {'imagenet'}
    assert {name.partition(':')[0] for name in named} == set(PAGES) - not_the_papers
    assert {other.config for other in OTHERS} <= named


def test_pages_quote_the_same_errors():
    """A config's header and the tables state the same errors."""
    for table in TABLES:
        for row in table.rows:
            if row.config and row.error is not None:
                name = row.config.partition(':')[0]
                text = (ROOT / f'experiments/configs/{name}.py').read_text().split('"""')[1]
                assert f'{row.error:.2f} %' in text, row


def test_figure3_has_26_points_a_curve():
    assert list(FIGURE3_EPOCHS) == [8 * i for i in range(26)]
    assert all(len(errors) == 26 and errors[0] == 0.9 for errors in FIGURE3.values())
    assert [errors[-1] for errors in FIGURE3.values()] == [0.028, 0.059, 0.181, 0.146]


# ---- which row ------------------------------------------------------------------------------


def test_every_page_is_recognised_by_its_config_alone(configs):
    for name in configs:
        assert groups.config_of(configs[name], configs) == name


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ({'seed': 3, 'devices': 8, 'optim.lr': 0.05, 'model.class_bias': 1.0}, 'cifar10'),
        ({'model.blocks.mlpconv1.init_std': []}, 'cifar10'),
        ({'augment.crop_pad': 4, 'augment.flip': True}, 'cifar10:aug'),
        ({'model.head': 'fc'}, 'ablations:fc'),
        ({'model.head': 'fc', 'model.head_dropout': 0.5}, 'ablations:fc_dropout'),
        ({'augment.flip': True}, None),
        ({'data.eval': 'valid'}, None),
        ({'model.blocks.mlpconv3.kernel': 5}, None),
    ],
)
def test_what_a_run_is_of(configs, changes, name):
    assert groups.config_of(configs['cifar10'] | changes, configs) == name


def test_a_run_from_before_a_key_was_there_has_its_default(configs):
    old = {k: v for k, v in configs['cifar10'].items() if 'head' not in k and 'pieces' not in k}
    assert groups.config_of(old, configs) == 'cifar10'
    assert groups.differences(old, configs['cifar10']) == {}


# ---- RESULTS.md -------------------------------------------------------------------------------


def test_mean_and_deviation_over_seeds_stand_beside_the_paper(configs):
    runs = [record(configs, 'cifar10', seed, e) for seed, e in enumerate((0.104, 0.106, 0.102))]
    text = results_text(runs, configs)
    assert '| **NIN + Dropout** | 10.41 % | 10.03 % | 10.40 ± 0.20 % (3 seeds) |' in text
    assert (
        '- NIN + Dropout, ours: 10.40 ± 0.20 % (3 seeds), 260 epochs; 2 CPUs (x86_64), '
        '1:01:00 per run; `python -m experiments.main --config=cifar10` '
        'and the same with seed 1, 2\n'
    ) in text
    # The same runs stand in the tables of heads, dropout, mlpconv and the modern recipe.
    assert text.count('| 10.40 ± 0.20 % (3 seeds) |') == 5
    assert 'short**:' not in text


def test_short_runs_are_marked_and_do_not_mix_with_whole_ones(configs):
    runs = [
        record(configs, 'mnist', 0, 0.005),
        record(configs, 'mnist', 1, 0.03, epoch=2.0, train__duration='2ep'),
        record(configs, 'mnist', 2, 0.2, data__limit=512),
    ]
    text = results_text(runs, configs)
    assert (
        '| 0.50 % (1 seed)<br>**short**: 3.00 % (1 seed, 2 of 60 epochs)'
        '<br>**short**: 20.00 % (1 seed, 60 of 60 epochs) |'
    ) in text
    assert 'ours: **short**, 3.00 % (1 seed), 2 of 60 epochs, train.duration="2ep"; ' in text
    assert 'data.limit=512; ' in text


def test_changed_training_is_said(configs):
    text = results_text([record(configs, 'cifar100', 0, 0.4, optim__lr=0.05)], configs)
    assert '| 40.00 % (1 seed, changed) |' in text and '260 epochs, optim.lr=0.05; ' in text


def test_a_run_of_no_page_is_listed_apart(configs):
    text = results_text([record(configs, 'svhn', 0, 0.05, data__eval='valid')], configs)
    assert '## Other runs\n\n- ours: 5.00 % (1 seed)' in text
    assert '| **NIN + Dropout** | 2.35 % |  |  |' in text


def test_seeds_on_other_hardware_are_one_row_with_the_minutes_of_each(configs):
    one, two = record(configs, 'mnist', 0, 0.004), record(configs, 'mnist', 1, 0.006)
    two['device'] = two['device'] | {'cpus': 64}
    two['seconds'] = {'train': 180.0}
    (g,) = groups.group([one, two], configs)
    assert g.error == '0.50 ± 0.14 %'
    text = results_text([one, two], configs)
    assert '; 64 CPUs (x86_64), 3:00 per run; `' in text and '; 2 CPUs (x86_64), ' in text
    table = readme.readme_table([one, two], configs)
    assert '<br>3.0 min | 2 CPUs (x86_64)<br>64 CPUs (x86_64) |' in table


def test_the_readme_leaves_out_the_arms_of_a_comparison(configs):
    runs = [record(configs, name, 0, 0.1) for name in ('cifar10:fast', 'ablations:linear,fast')]
    table = readme.readme_table(runs, configs)
    assert '`cifar10.py:fast`' in table and 'ablations' not in table
    assert '| **a linear convolution for each mlpconv** |  |  | 10.00 %' in results_text(
        runs, configs
    )


def test_a_seed_again_on_other_hardware_is_a_row_of_its_own(configs):
    run = record(configs, 'mnist', 0, 0.005)
    other = run | {'name': 'copy', 'device': run['device'] | {'cpus': 64}}
    assert [len(g.runs) for g in groups.group([run, other], configs)] == [1, 1]
    others = [other | {'name': f'other-seed{seed}', 'seed': seed} for seed in (0, 1)]
    first, second = groups.group([run, *others], configs)
    assert first.runs == [run] and second.runs == others


def test_the_same_seed_twice_is_refused(configs):
    run, other = (record(configs, 'mnist', seed, 0.005) for seed in (0, 1))
    copy = run | {'name': 'copy'}
    with pytest.raises(records.RunError, match=f'^copy, {run["name"]} are the same run twice'):
        results_text([run, other, copy], configs)


def test_every_experiment_of_reproduce_is_a_row_of_a_table(configs):
    for experiment in itertools.chain(*reproduce.PRESETS.values()):
        assert experiment.config in configs, experiment
    commands = [
        line for line in results_text([], configs).splitlines() if line.startswith('python -m')
    ]
    assert [f'python -m launch.reproduce --preset={p}' for p in reproduce.PRESETS] == commands
    flags: dict[str, set] = {}  # by name, because both presets have the same default folder
    for experiment in itertools.chain(*reproduce.PRESETS.values()):
        flags.setdefault(experiment.name, set()).add((experiment.config, experiment.flags))
    assert all(len(found) == 1 for found in flags.values())


@pytest.mark.parametrize('module', ['launch.reproduce', 'launch.ablate'])
@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--config.optim.lrr=1', ("'optim.lrr'", "'optim.lr'")),
        ('--config.optim.lr', ("'--config.optim.lr'", '--config.KEY=VALUE')),
        ('--config.train.batch_size=0', ('train.batch_size=0',)),
        ('--config=other.py', ("'--config=other.py'", '--config.KEY=VALUE')),
    ],
)
def test_flags_of_the_runs_are_checked_first(tmp_path, module, flag, words):
    ours = ('--preset=cpu', '--dry-run') if module == 'launch.reproduce' else ('--only=fast',)
    result = run_process(module, *ours, f'--workdir={tmp_path}', flag)
    assert_refused(result, *words)


def test_figure_is_drawn_with_and_without_our_curves(configs, tmp_path):
    runs = [record(configs, 'cifar10', 0, 0.1), record(configs, 'cifar10:nodropout', 0, 0.15)]
    for path, some in ((tmp_path / 'ours.png', runs), (tmp_path / 'none.png', [])):
        figure3.draw_figure3(some, configs, path)
        assert path.read_bytes().startswith(b'\x89PNG')
    assert (tmp_path / 'ours.png').read_bytes() != (tmp_path / 'none.png').read_bytes()
    assert (
        'Lines: cifar10-nodropout-seed0 (no dropout, 260 epochs), cifar10-seed0 (dropout, 2'
        in results_text(runs, configs)
    )
    assert 'Lines: no run of ours.' in results_text([], configs)


def test_what_has_no_result_is_left_out(configs):
    text = results_text([], configs)
    assert 'Table 5' in text and 'fast recipe' not in text  # the paper has errors of table 5
    text = results_text([record(configs, 'ablations:fc,fast', 0, 0.1)], configs)
    assert 'fully connected head**' in text and 'fully connected head with dropout' not in text


def test_results_page_and_readme_are_what_the_collected_runs_make(configs):
    runs = records.load(RESULTS)
    assert runs and (RESULTS / 'figure3.png').exists()
    made_by = 'python -m experiments.report results --out=RESULTS.md --figure=results/figure3.png'
    text = markdown.markdown(runs, document.known_configs(), made_by, 'results/figure3.png')
    assert (ROOT / 'RESULTS.md').read_text() == text, f'run  {made_by}'
    table = readme.readme_table(runs, configs)
    assert f'{readme.MARKS[0]}\n{table}{readme.MARKS[1]}' in (ROOT / 'README.md').read_text()


def test_collected_runs_tell_nothing_of_the_machine():
    for path in RESULTS.glob('*.json'):
        run = json.loads(path.read_text())
        assert run['config']['data.dir'] == '' and '=/' not in run['command'], path


# ---- collecting real runs -------------------------------------------------------------------


def seeds(workdir: pathlib.Path, *words) -> list[str]:
    where = [f'--config={TINY_PAGE}', f'--workdir={workdir}']
    return [sys.executable, '-m', 'launch.seeds', *where, *words]


TINY_RUN = (
    '--seeds=2',
    '--config.train.duration=300steps',
    '--config.optim.lr=0.02',  # at 0.1, a hidden layer dies
    '--config.train.steps_per_call=1',
    '--config.eval.every=100steps',
    '--config.checkpoint.every=100steps',
    '--config.data.dir=/nowhere',
)


@pytest.fixture(scope='module')
def two_seeds(tmp_path_factory):
    """Two seeds done, the first of them stopped once on the way: (workdir, what that printed)."""
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    command = seeds(workdir, *TINY_RUN)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: has_metrics(workdir / 'seed0'), 300, [process])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == os.EX_TEMPFAIL
    assert summary(workdir / 'seed0')['status'] == 'preempted'
    assert not (workdir / 'seed1').exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    return workdir, again.stdout


@pytest.mark.processes
def test_seeds_stop_when_asked_and_are_averaged_in_the_end(two_seeds):
    workdir, out = two_seeds
    assert out.count('resuming at step') == 1
    summaries = [summary(workdir / f'seed{seed}') for seed in (0, 1)]
    assert [s['seed'] for s in summaries] == [0, 1]
    a, b = (100 * s['final_error'] for s in summaries)
    expected = f'{(a + b) / 2:.2f} ± {abs(a - b) / 2**0.5:.2f} % over 2 seeds ({a:.2f}, {b:.2f})'
    assert out.splitlines()[-1].startswith(f'top-1 error {expected}; ')


@pytest.mark.processes
def test_runs_become_small_files(two_seeds, tmp_path):
    folders = [two_seeds[0] / f'seed{seed}' for seed in (0, 1)]
    result = run_report(*folders, f'--collect={tmp_path / "results"}')
    assert result.returncode == 0, result.stderr
    runs = records.load(tmp_path / 'results')
    assert [run['name'] for run in runs] == ['tiny-seed0', 'tiny-seed1']
    for run, folder in zip(runs, folders, strict=True):
        assert run['final_error'] == summary(folder)['final_error']
        assert run['epochs'][-1][4] == pytest.approx(run['final_error'], abs=1e-7)  # rounded
        assert [row[0] for row in run['epochs']] == [12.5, 25, 37.5]
        # The training columns are means of the lines since the evaluation before.
        lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
        losses = [line['loss'] for line in lines if line['kind'] == 'train'][100:200]
        assert run['epochs'][1][1] == pytest.approx(sum(losses) / 100, abs=1e-6)
        assert '/nowhere' not in json.dumps(run) and run['config']['data.dir'] == ''
        assert '--workdir=runs/tiny-seed' in run['command']
    assert run_report(folders[0], f'--collect={tmp_path / "results"}').returncode == 0  # again


def test_a_record_does_not_take_the_place_of_another_one(configs, tmp_path):
    first = record(configs, 'mnist', 0, 0.004)
    records.collect(first, tmp_path)
    records.collect(first, tmp_path)
    older = {key: v for key, v in first['config'].items() if key != 'augment.mixup'}
    records.collect(first | {'config': older}, tmp_path)  # has the default of the key
    changed = first['config'] | {'optim.lr': 0.05}
    for other in (
        {'device': first['device'] | {'cpus': 8}},
        {'status': 'preempted'},
        {'config': changed},
    ):
        with pytest.raises(records.RunError, match=r'mnist-seed0\.json'):
            records.collect(first | other, tmp_path)


def test_records_older_than_a_key_of_the_device_are_of_the_same_hardware(configs):
    new = record(configs, 'mnist', 0, 0.004)
    new['device'] = {'processes': 1} | new['device']
    old = record(configs, 'mnist', 1, 0.005)
    old['device'] = {k: v for k, v in new['device'].items() if k != 'processes'}
    runs = [records.check(run, RESULTS) for run in (new, old)]
    assert len(groups.by_hardware(runs)) == 1


@pytest.mark.parametrize(
    ('command', 'published'),
    [
        ('main --workdir=/home/me/x --config.data.dir=/data', 'main --workdir=runs/x'),
        ('main --workdir /home/me/x --config.data.dir /data', 'main --workdir=runs/x'),
        ('main --workdir=runs/y --distributed=localhost:1,2,0', 'main --workdir=runs/y'),
        ('main --workdir=runs/y --distributed auto', 'main --workdir=runs/y'),
    ],
)
def test_a_published_command_names_no_machine(command, published):
    assert records.portable(command, 'x') == published


def test_a_row_says_the_flags_that_its_config_has_changed_since(configs):
    run = record(configs, 'mnist', 0, 0.004)
    run['config'] = run['config'] | {'model.class_bias': 0.0}
    assert '--config.model.class_bias=0.0`' in results_text([run], configs)


@pytest.mark.parametrize('variant', ['', ':fast'])
def test_readme_row_of_a_recipe_has_the_papers_augmented_error(configs, variant):
    table = readme.readme_table([record(configs, f'cifar10{variant}', 0, 0.1)], configs)
    assert ('8.81 % with augmentation' in table) == bool(variant) and '10.41 %' in table


def test_reproduce_needs_all_data_before_the_first_run(tmp_path):
    words = ('--preset=cpu', f'--workdir={tmp_path}', f'--config.data.dir={tmp_path}')
    result = run_process('launch.reproduce', *words)
    assert_refused(result, 'is not prepared')
    assert result.stdout == ''


def test_a_figure_is_a_png(tmp_path):
    result = run_report('results', f'--out={tmp_path}/R.md', f'--figure={tmp_path}/f.svg')
    assert_refused(result, '.svg', '.png')


@pytest.mark.processes
def test_report_from_the_runs_themselves(two_seeds, tmp_path):
    words = [two_seeds[0] / 'seed0', f'--out={tmp_path}/R.md', f'--figure={tmp_path}/f.png']
    result = run_report(*words)
    assert result.returncode == 0, result.stderr
    assert '## Other runs' in (tmp_path / 'R.md').read_text()
    assert '](f.png)' in (tmp_path / 'R.md').read_text() and (tmp_path / 'f.png').exists()


def unfinished(folder: pathlib.Path, status: str | None) -> pathlib.Path:
    folder.mkdir()
    (folder / 'config.json').write_text('{}')
    (folder / 'metrics.jsonl').touch()
    if status:
        record = {'status': status, 'config': {}, 'final_error': None, 'epoch': 1.5, 'attempt': 1}
        record |= {'seed': 0, 'device': {}, 'seconds': {}, 'command': ''}
        (folder / 'summary.json').write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ('status', 'why'),
    [
        ('preempted', 'preempted'),
        ('diverged', 'diverged'),
        (None, 'summary.json'),
    ],
)
def test_runs_without_a_result_are_refused(tmp_path, status, why):
    folder = unfinished(tmp_path / 'run', status)
    result = run_report(RESULTS, folder, f'--out={tmp_path}/R.md')
    assert_refused(result, str(folder), why, kind='RunError')
    assert not (tmp_path / 'R.md').exists()


def test_figure3_takes_evaluations_just_before_or_after_an_epoch(configs):
    """With calls of 390 steps, evaluations are before the end of an epoch of 390.625 steps."""
    run = record(configs, 'cifar10', 0, 0.1)
    row = [2.0, 0.5, 1.9, 0.4]
    run['epochs'] = [[8 - 0.0128, *row], [16 + 0.32, *row], [24 + 0.5, *row]]
    text = figure3.figure3_differences(groups.group([run], configs))
    assert ' 8: ' in text and ' 16: ' in text and '24: ' not in text


def test_a_preempted_run_of_no_page_is_short(configs):
    run = record(configs, 'svhn', 0, 0.05, data__eval='valid') | {'status': 'preempted', 'epoch': 3}
    assert '**short**, 5.00 % (1 seed), 3 epochs, preempted' in results_text([run], configs)


def test_a_preempted_run_stands_at_its_last_evaluation(configs, tmp_path):
    """It is short, and apart from the finished runs of its experiment."""
    run = record(configs, 'cifar10', 1, 0.0)
    del run['columns'], run['epochs']
    run |= {'status': 'preempted', 'final_error': None, 'epoch': 2.6, 'attempt': 1}
    lines = [
        dict(kind=kind, step=100 * epoch, epoch=epoch, loss=1.0, error=error, attempt=1)
        for epoch, error in ((1, 0.7), (2, 0.5))
        for kind in ('train', 'eval')
    ]
    folder = tmp_path / 'cifar10' / 'seed1'
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text('{}')
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    run['metrics_sha256'] = file_sha256(folder / 'metrics.jsonl')
    (folder / 'summary.json').write_text(json.dumps(run))

    [preempted] = records.load(folder)
    assert (preempted['epoch'], preempted['final_error']) == (2, 0.5)
    text = results_text([preempted, record(configs, 'cifar10', 0, 0.104)], configs)
    assert '10.40 % (1 seed)<br>**short**: 50.00 % (1 seed, 2 of 260 epochs, preempted)' in text
    (folder / 'metrics.jsonl').write_text('')
    with pytest.raises(records.RunError, match='has gone on'):
        records.load(folder)
    [collected] = records.load(records.collect(preempted, tmp_path / 'results'))
    assert (collected['epoch'], collected['final_error']) == (2, 0.5)


# ---- several seeds --------------------------------------------------------------------------


@pytest.mark.processes
def test_seeds_done_are_left_alone(two_seeds):
    workdir, _ = two_seeds
    before = (workdir / 'seed0' / 'summary.json').stat().st_mtime_ns
    result = subprocess.run(
        seeds(workdir, *TINY_RUN), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and result.stdout.count('is done already') == 2
    assert (workdir / 'seed0' / 'summary.json').stat().st_mtime_ns == before


@pytest.mark.slow
def test_every_row_of_the_tables_in_miniature(data_dir, tmp_path):
    """The config of each row on real data with :smoke, then the file that reports them all."""
    folders = []
    for name in document.known_configs():
        config, _, variant = name.partition(':')
        page = f'experiments/configs/{config}.py:{variant + "," if variant else ""}smoke'
        folders.append(tmp_path / name.replace(':', '-'))
        result = run_main(f'--workdir={folders[-1]}', f'--config.data.dir={data_dir}', page=page)
        assert result.returncode == 0, (name, result.stderr)
    result = run_report(*folders, f'--out={tmp_path}/R.md', f'--figure={tmp_path}/f.png')
    assert result.returncode == 0, result.stderr
    page = (tmp_path / 'R.md').read_text()
    assert 'Other runs' not in page
    assert page.count('ours: **short**') == len(folders)
