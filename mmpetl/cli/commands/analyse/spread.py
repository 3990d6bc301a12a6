"""How far methods lie apart, how often each ranks where, and how settings matter.

Example:
    mmpetl analyse spread work_dirs/bench/mini

Reads records only. Of runs whose settings were searched, the trials give the spread of
validation scores and the collapse rate of every method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.analysis import charts, selection, spread
from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.scores import metric_of
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError

SECTION = 'Spread and ranks'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/spread')
    parser.add_argument('--tasks', nargs='+', help='default: all')
    parser.add_argument('--methods', nargs='+', help='default: all')
    return parser


def draw_spread(
    tasks: list[str], methods: list[str], families: list[str], values: Any, to: Path
) -> None:
    """Accuracy of every method per task, the span of tuning methods as a bar."""
    tuned = np.array([not selection.is_reference(m) for m in methods])
    spans = spread.accuracy_spread(values[:, tuned])
    order = np.argsort(spans)
    figure, axes = charts.new_figure(8.5, max(2.6, 0.42 * len(tasks) + 1.7))
    axis = axes[0, 0]
    for row, i in enumerate(order):
        inside = values[i, tuned]
        axis.plot(
            [np.nanmin(inside), np.nanmax(inside)],
            [row, row],
            color='#cccccc',
            lw=7,
            solid_capstyle='round',
            zorder=1,
        )
        for j, method in enumerate(methods):
            if np.isfinite(values[i, j]):
                axis.plot(
                    values[i, j],
                    row + 0.07 * (j % 5 - 2),  # equal scores stay visible
                    {'Full': 'D', 'LinearProbe': 'x'}.get(
                        selection.method_of(method), 'o'
                    ),
                    ms=5,
                    color='black' if not tuned[j] else charts.colour_of(families[j]),
                    alpha=0.9,
                    zorder=2,
                )
    axis.set_yticks(
        range(len(tasks)), [f'{tasks[i]}  ({spans[i]:.1f})' for i in order], fontsize=9
    )
    axis.set_ylim(-0.6, len(tasks) - 0.4)
    axis.set_xlabel('score in %, mean over seeds (Full: diamond, LinearProbe: cross)')
    axis.grid(alpha=0.3, axis='x')
    shown = [f for f, t in zip(families, tuned, strict=True) if t]
    charts.family_legend(axis, shown, loc='upper left', bbox_to_anchor=(1.01, 1))
    charts.save_figure(
        figure,
        to / 'spread.png',
        title='Spread of methods per task',
        caption=(
            'Every method on every task. In brackets and as a grey bar: best minus '
            'worst of the tuning methods, Full and LinearProbe left out.'
        ),
        alt=(
            f'{len(tasks)} tasks; the spread of tuning methods runs from '
            f'{np.nanmin(spans):.1f} to {np.nanmax(spans):.1f}.'
        ),
        section=SECTION,
    )


def draw_ranks(
    methods: list[str], families: list[str], values: np.ndarray, to: Path
) -> np.ndarray:
    """How often each method takes each place; returns mean ranks."""
    complete = values[np.isfinite(values).all(1)]
    if not len(complete):
        raise PETLError(
            'no task has a score of every method, so ranks cannot be counted; choose '
            'methods with --methods'
        )
    counts = spread.rank_frequency(complete)
    mean = spread.rank_table(complete).mean(0)
    order = np.argsort(mean, kind='stable')
    count = len(methods)
    side = max(4.0, 0.22 * count + 2)
    figure, axes = charts.new_figure(side + 0.8, side)
    axis = axes[0, 0]
    image = axis.imshow(counts[order], cmap='cividis', aspect='auto')
    figure.colorbar(image, ax=axis, shrink=0.7, label='tasks')
    axis.set_yticks(
        range(count), [f'{methods[i]}  ({mean[i]:.1f})' for i in order], fontsize=8
    )
    for tick, i in zip(axis.get_yticklabels(), order, strict=True):
        tick.set_color(charts.text_colour_of(families[i]))
    step = 1 if count <= 20 else 5
    axis.set_xticks(range(0, count, step), range(1, count + 1, step), fontsize=8)
    axis.set_xlabel('place, 1 is best')
    axis.set_ylabel('method (mean rank)')
    charts.save_figure(
        figure,
        to / 'ranks.png',
        title='Which places methods take',
        caption=(
            f'On how many of {len(complete)} tasks each method takes each place, by '
            'means over seeds; those that tie share their places. In brackets the mean '
            'rank, by which rows are ordered.'
        ),
        alt=(
            f'A heat map of {count} methods and places. Best mean rank: '
            f'{methods[order[0]]} with {mean[order[0]]:.1f}.'
        ),
        section=SECTION,
    )
    return mean


def searched(records: list[Record]) -> dict[str, list[tuple[str, list[dict]]]]:
    """Task and trials of every search, by name; values are percent."""
    found: dict[str, dict[str, list[dict]]] = {}
    names = selection.names_of(records)
    for record in records:
        if record.search:
            scale = metric_of(record.primary).scale  # trials tell what evaluators do
            trials = [
                {**trial, 'value': scale * trial['value']}
                for trial in spread.trials_of(record.search, record.job.id)
            ]
            # The seeds of one setting share one search.
            found.setdefault(names[record.job.id], {})[record.task] = trials
    return {name: list(tasks.items()) for name, tasks in found.items()}


def draw_sensitivity(records: list[Record], to: Path) -> dict[str, Any] | None:
    """Validation scores of all trials per method; None where nothing was searched."""
    groups = searched(records)
    groups = {m: [g for g in rows if g[1]] for m, rows in groups.items()}
    groups = {m: rows for m, rows in groups.items() if rows}
    if not groups:
        return None
    rows = {}
    for method, tasks in groups.items():
        per_task = [spread.sensitivity([t['value'] for t in x]) for _, x in tasks]
        best = [max(x, key=lambda t: t['value'])['options'] for _, x in tasks]
        # Below the best of its task, so that tasks of unlike difficulty add up.
        behind = [
            max(t['value'] for t in x) - trial['value'] for _, x in tasks for trial in x
        ]
        rows[method] = {
            'tasks': len(tasks),
            'trials': sum(int(s['trials']) for s in per_task),
            'spread': float(np.mean([s['spread'] for s in per_task])),
            'iqr': float(np.mean([s['iqr'] for s in per_task])),
            'collapse_rate': float(
                np.average(
                    [s['collapse_rate'] for s in per_task],
                    weights=[s['trials'] for s in per_task],
                )
            ),
            'behind_best': behind,
            'chosen': spread.chosen_frequency(best),
        }
    names = sorted(rows, key=lambda m: float(np.median(rows[m]['behind_best'])))
    names_of_all = selection.names_of(records)
    families = {names_of_all[r.job.id]: r.family for r in records}
    figure, axes = charts.new_figure(8, max(2.6, 0.34 * len(names) + 1.6))
    axis = axes[0, 0]
    boxes = axis.boxplot(
        [rows[m]['behind_best'] for m in names],
        orientation='horizontal',
        patch_artist=True,
        widths=0.6,
        flierprops={'ms': 3},
    )
    for patch, middle, name in zip(
        boxes['boxes'], boxes['medians'], names, strict=True
    ):
        patch.set_facecolor(charts.colour_of(families[name]))
        patch.set_alpha(0.5)
        middle.set_color('black')
    axis.set_yticks(
        range(1, len(names) + 1),
        [f'{m}  ({100 * rows[m]["collapse_rate"]:.0f} %)' for m in names],
        fontsize=9,
    )
    axis.invert_yaxis()
    axis.set_xlabel('validation score behind the best trial of the task, points')
    axis.grid(alpha=0.3, axis='x')
    charts.save_figure(
        figure,
        to / 'sensitivity.png',
        title='How much settings matter',
        caption=(
            'Every finished trial of the searches: how far its validation score lies '
            'behind the best trial of its method and task. In brackets the collapse '
            'rate: trials below half of the best. Trials of an optimising search are '
            'no even grid, and pruned ones are left out.'
        ),
        alt=(
            f'Boxes of {len(names)} methods; least sensitive {names[0]}, most '
            f'{names[-1]}.'
        ),
        section=SECTION,
    )
    return rows


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Everything; returns the lines to print."""
    records = selection.choose(
        selection.plain(selection.finished(args.out)),
        tasks=args.tasks,
        methods=args.methods,
    )
    tasks, methods, values = selection.mean_scores(records)
    names = selection.names_of(records)
    families = {names[r.job.id]: r.family for r in records}
    kinds = [families[m] for m in methods]
    tuned = [not selection.is_reference(m) for m in methods]
    if sum(tuned) < 2:
        raise PETLError(
            f'{args.out} has {sum(tuned)} tuning method, a spread needs two '
            f'({" and ".join(selection.REFERENCES)} do not count)'
        )
    draw_spread(tasks, methods, kinds, values, to)
    mean = draw_ranks(methods, kinds, values, to)
    found = {
        'tasks': tasks,
        'methods': methods,
        'scores': values,
        'spread': spread.accuracy_spread(values[:, tuned]),
        'mean_rank': mean,
        'sensitivity': draw_sensitivity(records, to),
    }
    charts.save_numbers(to / 'spread.numbers.json', found)
    charts.save_rows(
        to / 'scores.csv',
        ('task', *methods, 'spread'),
        [
            (task, *row, width)
            for task, row, width in zip(tasks, values, found['spread'], strict=True)
        ],
    )
    lines = [
        f'{task}: spread {width:.2f}'
        for task, width in zip(tasks, found['spread'], strict=True)
    ]
    if found['sensitivity'] is None:
        lines.append('no run was searched, so nothing on the sensitivity to settings')
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'spread'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
