"""How the learning rate changes over a run."""

import optax
from ml_collections import ConfigDict

from nin_jax.plan import Plan


def learning_rate(config: ConfigDict, plan: Plan) -> optax.GradientTransformation:
    """Multiplies by the negative learning rate, as `config.schedule` says.

    Args:
      config: the `optim` part of a config.
      plan: 'drops' multiplies the rate by `drop_factor` at each of `plan.drops`. 'plateau' makes as
        many drops, each when the training error, averaged over an epoch, stops falling. 'cosine'
        and 'one_cycle' rise for `plan.warmup` steps and fall until `plan.total_steps`.
    """
    if config.schedule == 'plateau':  # section 4: "until the accuracy on the training set stops"
        return optax.chain(
            optax.contrib.reduce_on_plateau(
                config.drop_factor,
                config.plateau_patience,
                accumulation_size=round(plan.steps_per_epoch),
                min_scale=config.drop_factor ** len(plan.drops),
            ),
            optax.scale_by_learning_rate(config.lr),
        )
    if config.schedule == 'drops':
        factors: dict[int, float] = {}
        for step in plan.drops:  # two drops may fall on one step in a very short run
            factors[step] = factors.get(step, 1.0) * config.drop_factor
        return optax.scale_by_learning_rate(optax.piecewise_constant_schedule(config.lr, factors))
    return optax.scale_by_learning_rate(
        rise_and_fall(config.schedule, config.lr, plan.warmup, plan.total_steps)
    )


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
