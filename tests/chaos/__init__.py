"""What users, machines and disks do to a run, done on purpose to the finished commands.

    python -m tests.chaos --rounds=220 --seed=0          disturbances, then the same weights
    python -m tests.chaos.damage --files=400 --seed=0    damaged files: noticed, or harmless
    python -m tests.chaos.long_run --steps=10000         memory, open files and disk of a long run

Each prints a table of counts and exits with a status other than 0 if anything went wrong. All run
on the CPU, where a run's weights are bit-exact. tests/chaos/test_chaos.py runs a few of each.
"""
