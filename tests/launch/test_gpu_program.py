"""The training step compiled for an H100: fused ReLUs, no scatter, bounded memory traffic.

No GPU is needed, but JAX's CUDA plugin is. `benchmarks/NOTES.md` has the figures of the program
before and after the changes that these tests keep.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launch.preflight import gpus, hlo
from tests.helpers import ROOT

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not any(map(importlib.util.find_spec, gpus.PLUGINS)),
        reason="JAX's CUDA plugin is not installed: pip install -e '.[preflight-gpu]'",
    ),
]

# (change of cifar10.py, dtype): number of convolutions with a ReLU inside; MB per step of traffic
# and of temporaries, 3 % above what was seen with jaxlib 0.10.2.
PROGRAMS = {
    ('', 'float32'): (9, 2820, 400),
    ('', 'bfloat16'): (9, 1435, 200),
    ('batch normalization', 'bfloat16'): (0, 2340, 335),
}


COMPILE = """
import dataclasses, json, sys
from launch.preflight import analysis
from tests.helpers import load_page
config = load_page('cifar10')
if sys.argv[1]:
    config.model.norm, config.model.class_maps, config.optim.rule = 'batch', 'linear', 'nesterov'
    config.model.blocks.mlpconv1.dropout = config.model.blocks.mlpconv2.dropout = 0.0
config.dtype = sys.argv[2]
json.dump(dataclasses.asdict(analysis.report(config, 'h100:1')), open(sys.argv[3], 'w'))
"""


@pytest.fixture(scope='module', params=PROGRAMS, ids=' '.join)
def program(request, tmp_path_factory):
    """In a process of its own: the plugin must load before JAX looks for devices."""
    path = tmp_path_factory.mktemp('report') / 'report.json'
    done = subprocess.run(
        [sys.executable, '-c', COMPILE, *request.param, path],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(**json.loads(path.read_text())), *PROGRAMS[request.param]


def test_traffic_and_temporaries(program):
    report, _, traffic, temporaries = program
    assert report.traffic / 1e6 < traffic
    assert report.temporaries / 1e6 < temporaries


def test_cudnn_applies_the_relu(program):
    report, relus, *_ = program
    assert report.hlo.count('"activation_mode":"kRelu"') == relus


def test_pooling_does_not_scatter(program):
    report, *_ = program
    computations, _ = hlo.parse_hlo(report.hlo)
    scattered = [
        instruction.shape
        for computation in computations.values()
        for instruction in computation.values()
        if 'scatter' in instruction.operation
    ]
    # The gradient of the loss scatters into the logits.
    assert all(hlo.shape_bytes(shape) < 100_000 for shape in scattered), scattered


def test_every_launch_is_counted(program):
    report, *_ = program
    convolutions = len(re.findall(r' custom-call\(.*__cudnn\$conv', report.hlo))
    assert convolutions == 26  # 9 layers: forward, kernel gradient, all but one input gradient
    assert convolutions < report.launches['total'] - report.launches['in_graphs']
