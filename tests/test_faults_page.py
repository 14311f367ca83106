"""docs/faults.md names tests that exist."""

import re

from tests.helpers import ROOT


def test_the_tests_of_each_fault_exist():
    rows = re.findall(r'^\| (\d+) \|.*', (ROOT / 'docs' / 'faults.md').read_text(), re.M)
    assert rows == [str(n) for n in range(1, 13)]
    for row in re.findall(r'^\| \d+ \|.*', (ROOT / 'docs' / 'faults.md').read_text(), re.M):
        named = re.findall(r'`([\w/]+\.py)::(\w+)`', row)
        assert named, row
        for path, name in named:
            assert f'def {name}(' in (ROOT / 'tests' / path).read_text(), (path, name)
