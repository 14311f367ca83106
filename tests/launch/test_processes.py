"""launch/processes.py: exit statuses of children."""

import os

import pytest

from launch.processes import ProcessGroup, exit_status

AGAIN = os.EX_TEMPFAIL


@pytest.mark.parametrize(
    ('script', 'status'),
    [
        ('exit 0', 0),
        ('exit 2', 2),
        ('exit 75', AGAIN),
        ('kill -ABRT $$', AGAIN),
        ('kill -KILL $$', AGAIN),
        ('kill -TERM $$', AGAIN),
        ('kill -SEGV $$', 139),
    ],
)
def test_a_child_ended_by_a_signal_is_rerun(script, status, capfd):
    with ProcessGroup() as group:
        assert exit_status(group.start(['bash', '-c', script])) == status
    assert capfd.readouterr().err.count('error: ') == ('kill' in script and status == AGAIN)
