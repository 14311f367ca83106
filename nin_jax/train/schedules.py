"""Learning rate schedules."""

import optax
from ml_collections import ConfigDict

from nin_jax.plan import Plan


def learning_rate(config: ConfigDict, plan: Plan) -> optax.GradientTransformation:
    """Scales updates by the negative learning rate of `config.schedule`.

    Every schedule starts with a linear increase to `lr` at step `plan.warmup`. Then 'drops'
    multiplies the learning rate by `drop_factor` at each of `plan.drops`. 'plateau' makes the same
    number of drops, each when the training error, averaged over an epoch, stops decreasing.
    'cosine' decreases to 0 at `plan.total_steps` along half a cosine period (Loshchilov and Hutter
    2016), 'one_cycle' linearly (Smith and Topin 2017).

    Args:
      config: the `optim` part of a config.
      plan: the run's plan.
    """
    if config.schedule != 'plateau':
        return optax.scale_by_learning_rate(schedule(config, plan))
    # Without warmup, a constant: checkpoints of 0.2.0 have no step count for 'plateau'.
    rate = schedule(config, plan) if plan.warmup else config.lr
    return optax.chain(  # section 4.1: until the training accuracy stops improving
        optax.contrib.reduce_on_plateau(
            config.drop_factor,
            config.plateau_patience,
            accumulation_size=round(plan.steps_per_epoch),
            min_scale=config.drop_factor ** len(plan.drops),
        ),
        optax.scale_by_learning_rate(rate),
    )


def schedule(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """Returns the learning rate as a function of the step; of 'plateau', without its drops."""
    lr, warmup = config.lr, plan.warmup
    rest = max(plan.total_steps - warmup, 1)
    match config.schedule:
        case 'plateau':
            after = optax.constant_schedule(lr)
        case 'drops':
            factors: dict[int, float] = {}
            for step in plan.drops:  # in a very short run, two drops can be at the same step
                factors[step - warmup] = factors.get(step - warmup, 1.0) * config.drop_factor
            after = optax.piecewise_constant_schedule(lr, factors)
        case 'cosine':
            after = optax.cosine_decay_schedule(lr, rest)
        case 'one_cycle':
            after = optax.linear_schedule(lr, 0.0, rest)
        case unknown:
            raise KeyError(unknown)
    if not warmup:
        return after
    rise = optax.linear_schedule(lr / (warmup + 1), lr, warmup)  # the first step is above 0
    return optax.join_schedules([rise, after], [warmup])
