"""A self-contained HTML page about a run: curves, errors, pictures, config and command."""

import base64
import html
import io
import pathlib

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nin_jax.data import catalog
from nin_jax.plan import make_plan
from nin_jax.runs.metrics import read_lines
from nin_jax.runs.workdir import flat_config
from nin_jax.train.schedules import schedule

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ccc; --dim: #666 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --line: #444; --dim: #aaa }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left }
code, pre { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
pre { white-space: pre-wrap } summary { cursor: pointer; color: var(--dim) }
"""


def run_page(
    folder: pathlib.Path,
    config: ConfigDict,
    step: int,
    error: float,
    summary: dict,
    class_errors: dict[str, float],
    pictures: dict[str, pathlib.Path],
) -> str:
    """Returns the page, which can be read offline.

    Args:
      folder: folder of the run, with metrics.jsonl.
      config: config of the run.
      step: step of the weights.
      error: their top-1 error with one view per image, 0..1.
      summary: content of summary.json; {} if there is none.
      class_errors: {class name: test error, 0..1}.
      pictures: {caption: PNG file}, in order.
    """
    title = f'{config.data.name}: {error:.2%} error at step {step:,}'
    parts = [
        f'<h1>Network In Network, {html.escape(title)}</h1>',
        f'<pre>{html.escape(summary.get("command", ""))}</pre>' if summary.get('command') else '',
        _recorded(config, summary),
        _curves(folder / 'metrics.jsonl', config),
        '<h2>Error by class</h2>' + _error_table(class_errors),
        *(
            f'<h2>{html.escape(caption)}</h2>{_image(path.read_bytes(), caption)}'
            for caption, path in pictures.items()
        ),
        '<h2>Config</h2><details><summary>All keys</summary><pre>'
        + html.escape('\n'.join(f'{k} = {v!r}' for k, v in flat_config(config).items()))
        + '</pre></details>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>'
        + '\n'.join(parts)
        + '</body></html>\n'
    )


def _recorded(config: ConfigDict, summary: dict) -> str:
    """States the error that the run recorded, if it averaged several views of an image."""
    if config.eval.tta == 'none' or summary.get('final_error') is None:
        return ''
    return (
        f'<p>With test-time augmentation (<code>eval.tta={config.eval.tta}</code>), the run '
        f'recorded {summary["final_error"]:.2%} at its end.</p>'
    )


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _error_table(class_errors: dict[str, float]) -> str:
    rows = ''.join(
        f'<tr><td>{html.escape(name)}</td><td>{error:.2%}</td></tr>'
        for name, error in sorted(class_errors.items(), key=lambda item: -item[1])
    )
    return f'<table><tr><th>class</th><th>test error</th></tr>{rows}</table>'


def _curves(metrics: pathlib.Path, config: ConfigDict) -> str:
    """Plots training and test error, and the learning rate, over epochs; '' without metrics."""
    lines = read_lines(metrics)
    attempt = max((line['attempt'] for line in lines), default=0)
    lines = [line for line in lines if line['attempt'] == attempt]
    points = {
        kind: [(line['epoch'], line['error']) for line in lines if line['kind'] == kind]
        for kind in ('train', 'eval')
    }
    if not points['train']:
        return ''
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout='constrained', dpi=110)
    FigureCanvasAgg(figure)
    errors, rate = figure.subplots(1, 2)
    for kind, label in (('train', 'training'), ('eval', config.data.eval)):
        marker = 'o' if len(points[kind]) < 20 and kind == 'eval' else None
        x, y = np.array(points[kind] or [(0.0, np.nan)]).T
        errors.plot(x, 100 * y, lw=1.2, marker=marker, ms=4, label=label)
    errors.set(xlabel='epoch', ylabel='top-1 error (%)', xlim=(0, None), ylim=(0, None))
    errors.legend()
    epochs, rates = learning_rates(config)
    rate.plot(epochs, rates, lw=1.2, color='tab:green')
    rate.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
    for axes in (errors, rate):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return '<h2>Curves</h2>' + _image(buffer.getvalue(), 'Error and learning rate over epochs')


def learning_rates(config: ConfigDict, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, learning rates) of a config; with 'plateau', the initial rate."""
    images = catalog.count(config.data.name, config.data.train, config.data.limit)
    plan = make_plan(config, images, short_calls=True)
    steps, rate = np.linspace(0, plan.total_steps - 1, points).round(), schedule(config.optim, plan)
    rates = np.array([rate(jnp.int32(step)) for step in steps])
    return steps / plan.steps_per_epoch, rates
