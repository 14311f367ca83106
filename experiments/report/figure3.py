"""Figure 3 of the paper with our runs drawn over it."""

import json
import pathlib

from experiments.report.groups import Group, group, training_changes
from experiments.report.paper import FIGURE3, FIGURE3_EPOCHS

FIGURE3_CONFIGS = {'cifar10': 'dropout', 'cifar10:nodropout': 'no dropout'}


def in_figure3(groups: list[Group]) -> list[Group]:
    """Selects the runs on all of CIFAR-10, with or without dropout."""
    return [
        g
        for g in groups
        if g.config in FIGURE3_CONFIGS
        and not g.changes.get('data.limit')
        and len(g.runs[0]['epochs']) > 1  # a line needs two evaluations
    ]


def kind(g: Group) -> str:
    """'dropout' or 'no dropout'."""
    return FIGURE3_CONFIGS[g.config or '']


def caption(groups: list[Group]) -> str:
    """Returns the caption of Figure 3, which lists its lines."""
    lines = [
        f'{run["name"]} ({kind(g)}, {g.length}'
        + ''.join(f', {k}={json.dumps(v)}' for k, v in training_changes(g).items())
        + ')'
        for g in in_figure3(groups)
        for run in g.runs
    ]
    text = f"Dots: the paper's figure 3. Lines: {', '.join(lines) or 'no run of ours'}."
    return text + figure3_differences(groups)


def figure3_differences(groups: list[Group]) -> str:
    """Returns a table of our error minus the paper's, in points, at the epochs of figure 3."""
    rows = ''
    for g in in_figure3(groups):
        for run in g.runs:
            # An epoch is not a whole number of batches, and evaluations are between calls.
            ours = {round(e): row for e, *row in run['epochs'] if abs(e - round(e)) < 0.35}
            for part, column in (('training', 1), ('test', 3)):
                paper = FIGURE3[f'{part}, {kind(g)}']
                pairs = [
                    f'{epoch}: {100 * (ours[epoch][column] - error):+.1f}'
                    for epoch, error in zip(FIGURE3_EPOCHS, paper, strict=True)
                    if error is not None and epoch in ours
                ]
                if pairs:
                    rows += f'| {run["name"]}, {part} | {", ".join(pairs)} |\n'
    head = "\n\n| run | our error minus the paper's, epoch: points |\n|---|---|\n"
    return head + rows.rstrip() if rows else ''


def draw_figure3(runs: list[dict], configs: dict[str, dict], path: pathlib.Path) -> None:
    """Plots the paper's 26 points and our curves, over 200 epochs and over the first few."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout='constrained', dpi=110)
    FigureCanvasAgg(figure)
    colors = dict(zip(FIGURE3, ('tab:orange', 'tab:blue', 'tab:red', 'tab:green'), strict=True))
    ours = [(run, kind(g)) for g in in_figure3(group(runs, configs)) for run in g.runs]
    longest = max((run['epoch'] for run, _ in ours), default=0)
    views = ((200, 0.4), (max(24, min(longest, 40)), 0.92))  # largest epoch and error
    for axes, (last, top) in zip(figure.subplots(1, 2), views, strict=True):
        for name, errors in FIGURE3.items():
            axes.plot(FIGURE3_EPOCHS, errors, 'o', ms=3.5, color=colors[name], label=name)
        for run, dropout in ours:
            for part, column in (('training', 2), ('test', 4)):
                points = [(row[0], row[column]) for row in run['epochs']]
                axes.plot(*zip(*points, strict=True), lw=1, color=colors[f'{part}, {dropout}'])
        axes.set(xlim=(0, last), ylim=(0, top), xlabel='epoch', ylabel='error')
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="the paper's figure 3 (dots)\nours (lines)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={'Software': None})
