"""The config of the chaos rounds: many calls, evaluations and checkpoints in little time."""

from tests.helpers import tiny_config


def get_config(arg: str = ''):
    """`page.py` trains on embedded digits, `page.py:svhn` on what `prepare` made."""
    config = tiny_config()
    config.train.duration = '60steps'
    config.train.steps_per_call = 2
    config.eval.every = '12steps'
    config.eval.batch_size = 64
    config.checkpoint.every = '6steps'
    if arg == 'svhn':
        config.data.name = 'svhn_cropped'
        config.train.duration = '8steps'
        config.train.batch_size = 16
        config.eval.every = config.checkpoint.every = '4steps'
    return config
