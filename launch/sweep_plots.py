"""The plots of a sweep's report: rows of trials in, PNG files out."""

import math
import pathlib

import matplotlib
import matplotlib.ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from experiments.space import Axis, text

BLUE, GREY, RED, ORANGE = 'tab:blue', '0.6', 'tab:red', 'tab:orange'
DOT = dict(ls='', marker='o', color=BLUE)
HOLLOW = dict(ls='', marker='o', mfc='none', mec=GREY)
PRUNED = 'pruned, when last evaluated'
ERROR = 'validation top-1 error (%)'


def draw(
    rows: list[dict], axes: dict[str, Axis], weights: dict[str, float], out: pathlib.Path
) -> dict[str, str]:
    """Draws what the trials allow; returns {file name: title}."""
    if not any(r['outcome'] == 'complete' for r in rows):
        return {}
    figures = {
        'best.png': ('Best so far', best_so_far(rows)),
        'axes.png': ('Error along each axis', along_axes(rows, axes)),
        'parallel.png': ('All axes at once', parallel(rows, axes)),
    }
    if weights:
        figures['importance.png'] = ('Importance', importance(weights))
    for name, (_, figure) in figures.items():
        figure.savefig(out / name, metadata={'Software': None})
    return {name: title for name, (title, _) in figures.items()}


def make(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout='constrained', dpi=110)
    FigureCanvasAgg(figure)
    return figure


def place(value: object, axis: Axis) -> float:
    """Where a value lies between the axis's ends: 0 to 1."""
    if axis.kind == 'choice':
        order = ordered(axis)
        return order.index(value) / max(1, len(order) - 1)
    if axis.is_log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)


def ordered(axis: Axis) -> list:
    """A choice's values, numbers by size."""
    if any(isinstance(v, (str, bool)) for v in axis.values):
        return list(axis.values)
    return sorted(axis.values)


def percents(rows: list[dict], outcome: str) -> list[dict]:
    """Those with such an outcome and an error, the error in percent."""
    chosen = [r for r in rows if r['outcome'] == outcome and r['error'] is not None]
    return [r | {'error': 100 * r['error']} for r in chosen]


def scale_errors(plot, errors: list[float]) -> None:
    """A log scale where errors spread over more than an order of magnitude."""
    if min(errors) > 0 and max(errors) > 10 * min(errors):
        plot.set_yscale('log')
        label_log(plot.yaxis)
    plot.grid(alpha=0.3)


def label_log(axis) -> None:
    """Labels a log scale at 1, 2 and 5 times the powers of ten, in plain numbers."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter('%g'))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


# ---- best so far ----------------------------------------------------------------------------


def best_so_far(rows: list[dict]) -> Figure:
    """Errors in the order in which trials ended, and the lowest until then."""
    figure = make(7, 4)
    plot = figure.subplots()
    ended = sorted((r for r in rows if r['ended']), key=lambda r: (r['ended'], r['trial']))
    turn = {r['trial']: i for i, r in enumerate(ended, 1)}
    done, pruned = (
        sorted(percents(ended, o), key=lambda r: turn[r['trial']]) for o in ('complete', 'pruned')
    )
    for name, group, style in (('complete', done, DOT), (PRUNED, pruned, HOLLOW)):
        if group:
            xs, ys = [turn[r['trial']] for r in group], [r['error'] for r in group]
            plot.plot(xs, ys, label=name, **style)
    lowest = [min(r['error'] for r in done[: i + 1]) for i in range(len(done))]
    xs = [turn[r['trial']] for r in done] + [len(ended)]
    plot.step(xs, [*lowest, lowest[-1]], where='post', color=ORANGE, lw=2, label='best so far')
    scale_errors(plot, [r['error'] for r in done + pruned])
    plot.set(xlabel='trials ended', ylabel=ERROR)
    plot.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    plot.set_xlim(0.3, len(ended) + 0.7)
    figure.legend(loc='outside upper center', ncols=3)
    return figure


# ---- along each axis ------------------------------------------------------------------------


def along_axes(rows: list[dict], axes: dict[str, Axis]) -> Figure:
    """One panel an axis: error over its values; crosses at the top are runs that diverged."""
    columns = min(3, len(axes))
    lines = -(-len(axes) // columns)
    figure = make(0.8 + 3.6 * columns, 0.6 + 3.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    done, pruned = percents(rows, 'complete'), percents(rows, 'pruned')
    diverged = [r for r in rows if r['outcome'] == 'diverged']
    best = min(done, key=lambda r: (r['error'], r['trial']))
    groups = (
        (PRUNED, pruned, HOLLOW),
        ('complete', done, DOT),
        ('diverged', diverged, dict(ls='', marker='x', color=RED)),
        ('best', [best], dict(ls='', marker='*', ms=14, color=ORANGE, mec='white')),
    )
    handles = {}
    for i, plot in enumerate(panels.flat):
        if i >= len(axes):
            plot.set_axis_off()
            continue
        key, axis = list(axes.items())[i]
        for name, group, style in groups:
            xs, ys = [where(r, key, axis) for r in group], [r['error'] for r in group]
            if name == 'diverged' and group:  # at the panel's top edge
                line = plot.plot(xs, [1.0] * len(xs), transform=plot.get_xaxis_transform(), **style)
                line[0].set(clip_on=False, in_layout=False)
            elif group:
                line = plot.plot(xs, ys, **style)
            if group:
                handles[name] = line[0]
        label_axis(plot, axis)
        scale_errors(plot, [r['error'] for r in done + pruned])
        plot.set_xlabel(key)
        if i % columns == 0:
            plot.set_ylabel(ERROR)
    figure.legend(handles.values(), handles.keys(), loc='outside upper center', ncols=4)
    return figure


def where(trial: dict, key: str, axis: Axis) -> float:
    """Where a trial is drawn: choices are evenly spaced, and their trials a little apart."""
    if axis.kind == 'choice':
        return ordered(axis).index(trial[key]) + 0.05 * (trial['trial'] * 3 % 7 - 3)
    return trial[key]


def label_axis(plot, axis: Axis) -> None:
    """Ticks at choices by name, a log scale where the space is log."""
    if axis.kind == 'choice':
        order = ordered(axis)
        plot.set_xticks(range(len(order)), [short(v) for v in order])
        plot.set_xlim(-0.5, len(order) - 0.5)
        if sum(len(short(v)) for v in order) > 24:
            plot.tick_params('x', rotation=30)
    elif axis.is_log:
        plot.set_xscale('log')
        plot.set_xlim(axis.low / 1.15, axis.high * 1.15)
    else:
        margin = 0.04 * (axis.high - axis.low)
        plot.set_xlim(axis.low - margin, axis.high + margin)


def short(value: object) -> str:
    return f'{value:g}' if isinstance(value, float) else text(value)


# ---- all axes at once -----------------------------------------------------------------------


def parallel(rows: list[dict], axes: dict[str, Axis]) -> Figure:
    """A line a complete trial through its value on each axis, coloured by error."""
    done = sorted(percents(rows, 'complete'), key=lambda r: -r['error'])  # the best on top
    errors = [r['error'] for r in done]
    spread = min(errors) > 0 and max(errors) > 10 * min(errors)
    norm = (LogNorm if spread else Normalize)(min(errors), max(errors))
    colours = matplotlib.colormaps['viridis']
    figure = make(2.2 + 1.9 * len(axes), 4.4)
    plot = figure.subplots()
    for r in done:
        heights = [place(r[key], axis) for key, axis in axes.items()]
        is_best = r is done[-1]
        plot.plot(heights, color=colours(norm(r['error'])), lw=2.5 if is_best else 1, alpha=0.85)
    for x, axis in enumerate(axes.values()):
        plot.axvline(x, color='0.3', lw=1)
        for value, height in ticks(axis):
            plot.annotate(
                value,
                (x, height),
                (4 if x else -4, 0),  # left of the first axis there are no lines
                textcoords='offset points',
                ha='left' if x else 'right',
                va='center',
                fontsize=8,
                bbox=dict(boxstyle='square,pad=0.1', fc='white', ec='none', alpha=0.8),
            )
    plot.set(xlim=(-0.3, len(axes) - 0.7), ylim=(-0.04, 1.04), yticks=[])
    plot.set_xticks(range(len(axes)), [key.replace('.', '.\n') for key in axes])
    plot.tick_params('x', length=0)
    plot.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=plot, label=ERROR)
    if spread:
        label_log(bar.ax.yaxis)
    return figure


def ticks(axis: Axis) -> list[tuple[str, float]]:
    """Labels of an axis and where they go: its choices, or five values from end to end."""
    if axis.kind == 'choice':
        return [(short(v), place(v, axis)) for v in ordered(axis)]
    values = [axis.low + (axis.high - axis.low) * i / 4 for i in range(5)]
    if axis.is_log:
        values = [axis.low * (axis.high / axis.low) ** (i / 4) for i in range(5)]
    if axis.kind == 'integer':
        values = sorted({round(v) for v in values})
    return [(f'{v:.2g}', place(v, axis)) for v in values]


def importance(weights: dict[str, float]) -> Figure:
    """A bar a key, the most important on top."""
    figure = make(7, 0.9 + 0.45 * len(weights))
    plot = figure.subplots()
    total = sum(weights.values())
    items = sorted(weights.items(), key=lambda item: item[1])
    bars = plot.barh([k for k, _ in items], [100 * w / total for _, w in items], color=BLUE)
    plot.bar_label(bars, fmt='%.0f %%', padding=3)
    plot.set(xlabel='share in being among the best tenth (%, PED-ANOVA)', xlim=(0, 110))
    plot.spines[['top', 'right']].set_visible(False)
    return figure
