"""summary.json: the result of a run, with the information needed to reproduce it."""

from typing import Any

from ml_collections import ConfigDict

from nin_jax.devices import matmul_rate
from nin_jax.plan import Plan
from nin_jax.runs.environment import environment
from nin_jax.runs.recorder import Recorder
from nin_jax.runs.workdir import flat_config


def summarize(
    outcome: Any,
    plan: Plan,
    recorder: Recorder,
    config: ConfigDict,
    *,
    parameters: int,
    eval_images: int,
    command: str,
) -> dict:
    """Returns the content of summary.json after training.

    Args:
      outcome: status, reason, attempt and step of the end.
      plan: the plan of the run.
      recorder: the recorder of the run, which has its evaluations and seconds.
      config: the config of the run.
      parameters: number of weights and biases of the network.
      eval_images: number of images that its error is measured on.
      command: the command line, for summary.json.
    """
    evals = [line for line in recorder.evals if line['attempt'] == outcome.attempt]
    best = min(evals, key=lambda line: line['error'], default=None)
    return summary(
        outcome.status,
        config,
        reason=outcome.reason,
        final_error=evals[-1]['error'] if outcome.status == 'done' and evals else None,
        best_error=best['error'] if best else None,
        best_step=best['step'] if best else None,
        step=outcome.step,
        epoch=outcome.step / plan.steps_per_epoch,
        attempt=outcome.attempt,
        parameters=parameters,
        seconds=recorder.clock.seconds,
    ) | {
        'eval_images': eval_images,
        'command': command,
        'metrics_sha256': recorder.metrics_sha256(),
        # The speed of the machine makes training times comparable.
        'peak_flops': matmul_rate() if outcome.status == 'done' else None,
    }


def summary(
    status: str,
    config: ConfigDict,
    *,
    parameters: int,
    seconds: dict[str, float],
    reason: str = '',
    final_error: float | None = None,
    best_error: float | None = None,
    best_step: int | None = None,
    step: int = 0,
    epoch: float = 0.0,
    attempt: int = 0,
) -> dict:
    """Returns the content of summary.json, with commit, versions and hardware of the process."""
    return {
        'status': status,
        'reason': reason,
        'final_error': final_error,
        'best_error': best_error,
        'best_step': best_step,
        'step': step,
        'epoch': epoch,
        'seed': config.seed,
        'attempt': attempt,
        'parameters': parameters,
        'seconds': {part: round(s, 2) for part, s in seconds.items()},
        'config': flat_config(config),
        **environment(),
    }
