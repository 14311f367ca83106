"""Python imports this at its start where the folder is on PYTHONPATH: a clock that jumps.

time.time() and time.time_ns() leap by up to ten years, forwards or backwards, every 0.7 seconds.
datetime.now() reads the system's clock by itself and stays right.
"""

import os
import random
import time

real_ns, seed = time.time_ns, os.environ.get('CHAOS_CLOCK_SEED', '0')


def time_ns() -> int:
    period = time.monotonic_ns() // 700_000_000
    return real_ns() + int(random.Random(f'{seed} {period}').uniform(-1, 1) * 3650 * 86400e9)


time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
