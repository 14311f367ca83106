"""Detects runs that cannot recover: a loss that is not finite, and dead networks."""

import math

from ml_collections import ConfigDict


class DivergedError(Exception):
    """The run cannot recover, for the reason in the message, at `step` or before."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Health:
    """Checks the metrics of one attempt of a run.

    Args:
      config: the config of the run.
      classes: number of classes.
      saved: `saved` of the state that the attempt resumes from; {} for a new attempt.
    """

    def __init__(self, config: ConfigDict, classes: int, saved: dict):
        self._limit, self._is_float32 = config.train.dead_steps, config.dtype == 'float32'
        self._classes, self._dead_maps = classes, 0
        self._constant_since: int | None = saved.get('constant_since')  # step of an evaluation

    @property
    def saved(self) -> dict:
        """What a resumed run needs; JSON types."""
        return {'constant_since': self._constant_since}

    def check_training(self, step: int, loss: float, dead_steps: int) -> None:
        """Raises DivergedError if the loss is not finite or `step.is_dead` held for too long."""
        if not math.isfinite(loss):
            raise DivergedError(f'the loss became {loss} by step {step}: lower optim.lr', step)
        if dead_steps >= self._limit:
            raise DivergedError(
                f'dead network: all logits of 95 % of the images have been 0 for {dead_steps} '
                f'steps, so the loss stays at ln({self._classes}) = {math.log(self._classes):.6f} '
                'and almost no gradient flows: use another seed, or allow train.restarts',
                step,
            )

    def check_evaluation(self, step: int, dead_maps: int, is_constant: bool) -> str:
        """Checks the results of an evaluation, see `loop.evaluate_split`.

        Returns:
          A note for the user if the number of dead class maps has changed; otherwise ''.

        Raises:
          DivergedError: all images have had the same logits for `train.dead_steps` steps.
        """
        if not is_constant or not self._is_float32:  # other dtypes can round to the same number
            self._constant_since = None
        elif self._constant_since is None:
            self._constant_since = step
        elif step - self._constant_since >= self._limit:
            raise DivergedError(
                'dead network: all images have the same logits, because a hidden layer is zero for '
                'all of them: use another seed, or allow train.restarts',
                step,
            )
        if dead_maps == self._dead_maps:
            return ''
        self._dead_maps = dead_maps
        fix = '; a larger model.class_bias makes this less likely' if dead_maps else ''
        return f'{dead_maps} of {self._classes} class maps are zero for all images{fix}'
