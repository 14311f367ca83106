"""Learning rate schedules."""

import optax
from ml_collections import ConfigDict

from nin_jax.plan import Plan


def learning_rate(config: ConfigDict, plan: Plan) -> optax.GradientTransformation:
    """Scales updates by the negative learning rate of `config.schedule`.

    'drops' multiplies the learning rate by `drop_factor` at each of `plan.drops`. 'plateau' makes
    the same number of drops, each when the training error, averaged over an epoch, stops
    decreasing. 'cosine' and 'one_cycle' increase the learning rate for `plan.warmup` steps and
    decrease it until `plan.total_steps`.

    Args:
      config: the `optim` part of a config.
      plan: the run's plan.
    """
    if config.schedule == 'plateau':  # section 4.1: until the training accuracy stops improving
        return optax.chain(
            optax.contrib.reduce_on_plateau(
                config.drop_factor,
                config.plateau_patience,
                accumulation_size=round(plan.steps_per_epoch),
                min_scale=config.drop_factor ** len(plan.drops),
            ),
            optax.scale_by_learning_rate(config.lr),
        )
    return optax.scale_by_learning_rate(schedule(config, plan))


def schedule(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """Returns the learning rate as a function of the step; of 'plateau', the initial one."""
    if config.schedule == 'plateau':
        return optax.constant_schedule(config.lr)
    if config.schedule == 'drops':
        factors: dict[int, float] = {}
        for step in plan.drops:  # in a very short run, two drops can be at the same step
            factors[step] = factors.get(step, 1.0) * config.drop_factor
        return optax.piecewise_constant_schedule(config.lr, factors)
    return rise_and_fall(config.schedule, config.lr, plan.warmup, plan.total_steps)


def rise_and_fall(name: str, lr: float, warmup: int, total: int) -> optax.Schedule:
    """Increases linearly to `lr` at step `warmup`, then decreases to 0 at step `total`.

    'cosine' decreases along half a cosine period (Loshchilov and Hutter 2016), 'one_cycle' linearly
    (Smith and Topin 2017).
    """
    rise = optax.linear_schedule(lr / (warmup + 1), lr, warmup)  # the first step is above 0
    rest = max(total - warmup, 1)
    fall = {
        'cosine': optax.cosine_decay_schedule(lr, rest),
        'one_cycle': optax.linear_schedule(lr, 0.0, rest),
    }[name]
    return optax.join_schedules([rise, fall], [warmup]) if warmup else fall
