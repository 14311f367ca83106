"""Scores the tests with mutants of the modules that a result depends on, made by Cosmic Ray.

    pip install -e '.[mutation]'
    python -m tests.mutation --sample=20
    python -m tests.mutation --modules=step,loop

Each mutant changes one operator, comparison, number, condition or loop of a copy of the checkout,
and the tests of its module run until one fails. Prints the share of killed mutants for each module
and the change behind each survivor. A mutant takes about ten seconds.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

MODERN = 'tests/train/test_modern.py::test_'
# The quick tests of each module.
MODULES = {
    'step': (
        'nin_jax/train/step.py',
        f'tests/train/test_step.py {MODERN}test_time_augmentation_averages_logits',
    ),
    'loop': ('nin_jax/train/loop.py', 'tests/train/test_loop.py'),
    'health': ('nin_jax/train/health.py', 'tests/train/test_health.py'),
    'optimizer': (
        'nin_jax/train/optimizer.py',
        f'tests/train/test_optim.py {MODERN}nesterov_is_optaxs {MODERN}muon_heeds_the_multipliers '
        f'{MODERN}muon_moves_each_kernel_by_an_orthogonal_matrix_and_biases_by_nadam '
        f'{MODERN}muons_decay_is_of_kernels_only_and_decoupled',
    ),
    'schedules': (
        'nin_jax/train/schedules.py',
        f'tests/train/test_optim.py {MODERN}cosine_and_one_cycle_values',
    ),
    'batches': ('nin_jax/data/batches.py', 'tests/train/test_step.py tests/data/test_stream.py'),
    'preprocess': ('nin_jax/data/preprocess.py', 'tests/data/test_preprocess.py'),
    'checkpoint': ('nin_jax/runs/checkpoint.py', 'tests/runs/test_checkpoint.py'),
}
# One replacement for each operator. `|` is mostly an annotation here, and decorators are jit.
KEPT = (
    r'AddNot|NumberReplacer|ExceptionReplacer|Replace(True|False|And|Or|Continue|Break)With'
    r'|ZeroIteration|Delete_|_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)$'
    r'|_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitXor)$'
)
COPIED = ('nin_jax', 'tests', 'experiments', 'launch', 'typings', 'pyproject.toml')


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m tests.mutation', description=__doc__)
    parser.add_argument('--modules', default=','.join(MODULES), help='comma-separated names')
    parser.add_argument('--sample', type=int, default=0, help='mutants per module; 0 for all')
    parser.add_argument('--seed', type=int, default=0, help='seed of the sample')
    options = parser.parse_args()
    names = options.modules.split(',')
    if unknown := set(names) - set(MODULES):
        parser.error(f'unknown module {min(unknown)!r}; known: {", ".join(MODULES)}')
    with tempfile.TemporaryDirectory() as folder:
        for part in COPIED:
            copy = shutil.copytree if pathlib.Path(part).is_dir() else shutil.copy
            copy(part, pathlib.Path(folder, part))
        for name in names:
            score(name, pathlib.Path(folder), options)


def score(name: str, folder: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints the score of one module's tests and its survivors."""
    module, tests = MODULES[name]
    config, session = folder / 'mutation.toml', folder / f'{name}.sqlite'
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = 900.0\nexcluded-modules = []\n'
        f'test-command = "{sys.executable} -m pytest -x -n 0 -p no:cacheprovider {tests}"\n'
        '[cosmic-ray.distributor]\nname = "local"\n'
    )

    def cosmic_ray(*words: str) -> str:
        command = [sys.executable, '-m', 'cosmic_ray.cli', *words]
        environment = os.environ | {'PYTHONPATH': str(folder)}  # for the tests' own processes
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    cosmic_ray('baseline', str(config))  # fails unless the tests pass without a mutation
    cosmic_ray('init', str(config), str(session))
    total = select(session, options.sample, options.seed)
    cosmic_ray('exec', str(config), str(session))
    results = [json.loads(line) for line in cosmic_ray('dump', str(session)).splitlines()]
    done = [(item, result) for item, result in results if result and result['test_outcome']]
    survivors = [(item, r) for item, r in done if r['test_outcome'] == 'survived']
    killed = len(done) - len(survivors)
    print(f'{name}: {killed} of {len(done)} mutants killed ({killed / len(done):.0%}), of {total}')
    for item, result in survivors:
        line = item['mutations'][0]['start_pos'][0]
        changes = [text for text in result['diff'].splitlines()[2:] if text[:1] in '+-']
        print(f'  survived: {module}:{line}', *changes, sep='\n    ', flush=True)


def select(session: pathlib.Path, sample: int, seed: int) -> int:
    """Marks all but a sample of the mutants of KEPT as skipped; returns how many there were."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    with use_db(str(session)) as db:
        items = list(db.work_items)
        chosen = [item for item in items if re.search(KEPT, item.mutations[0].operator_name)]
        if sample and sample < len(chosen):
            run = random.Random(seed).sample(chosen, sample)
        else:
            run = chosen
        ids = {item.job_id for item in run}
        skipped = [item.job_id for item in items if item.job_id not in ids]
        db.set_multiple_results(skipped, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    return len(chosen)


if __name__ == '__main__':
    main()
