"""Memory of a CPU: what a call frees, the next one gets without page faults."""

import json
import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PROGRAM = """
import json, resource, sys
import numpy as np
from nin_jax.devices import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**25, np.uint8)  # 8,192 pages, larger than glibc's largest threshold
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')
def test_freed_memory_is_kept():
    faults = {
        choice: json.loads(
            subprocess.run(
                [sys.executable, '-c', PROGRAM, choice],
                cwd=ROOT,
                check=True,
                capture_output=True,
                env=os.environ | {'NUMPY_MADVISE_HUGEPAGE': '0'},  # pages of 4 KiB
            ).stdout
        )
        for choice in ('keep', 'return')
    }
    assert faults['keep'][0] > 100 * max(faults['keep'][1:]), faults
    assert min(faults['return']) > 100, faults
