"""How the learning rate changes over a run."""

import optax
from ml_collections import ConfigDict


def learning_rate(
    config: ConfigDict, drops: tuple[int, ...], epoch: int, warmup: int, total: int
) -> optax.GradientTransformation:
    """Multiplies by -lr, as `config.schedule` says.

    Args:
      config: the `optim` part of a config.
      drops: steps at which 'drops' multiplies the rate by `drop_factor`; for 'plateau', as many
        drops, each once training error stops falling.
      epoch: steps an epoch, over which 'plateau' averages the training error.
      warmup, total: steps in which 'cosine' and 'one_cycle' rise to `lr`, and at which they end.
    """
    if config.schedule == 'plateau':  # section 4: "until the accuracy on the training set stops"
        return optax.chain(
            optax.contrib.reduce_on_plateau(
                config.drop_factor,
                config.plateau_patience,
                accumulation_size=epoch,
                min_scale=config.drop_factor ** len(drops),
            ),
            optax.scale_by_learning_rate(config.lr),
        )
    if config.schedule == 'drops':
        factors: dict[int, float] = {}
        for step in drops:  # two drops may fall on one step in a very short run
            factors[step] = factors.get(step, 1.0) * config.drop_factor
        return optax.scale_by_learning_rate(optax.piecewise_constant_schedule(config.lr, factors))
    return optax.scale_by_learning_rate(rise_and_fall(config.schedule, config.lr, warmup, total))


def rise_and_fall(schedule: str, lr: float, warmup: int, total: int) -> optax.Schedule:
    """A straight line up to `lr` at step `warmup`, then down to 0 at step `total`.

    'cosine' falls along half a period of one (Loshchilov, Hutter 2016), 'one_cycle' along a
    straight line (Smith, Topin 2017).
    """
    rise = optax.linear_schedule(lr / (warmup + 1), lr, warmup)  # no step is at 0
    rest = max(total - warmup, 1)
    fall = {
        'cosine': optax.cosine_decay_schedule(lr, rest),
        'one_cycle': optax.linear_schedule(lr, 0.0, rest),
    }[schedule]
    return optax.join_schedules([rise, fall], [warmup]) if warmup else fall
