"""Ensembles of the methods of a benchmark, with ensembles of seeds as the control.

Example:
    mmpetl analyse ensemble work_dirs/bench/mini

Reads the records and predictions of a benchmark folder and writes, per task, what an
ensemble of all methods gains by three rules, what pairs gain against how differently
they predict, and how ensembles grow with their number of members: of different
methods, and of seeds of one method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.analysis import charts, ensemble, selection
from mmpetl.apis.run import cli_errors
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError, check_range

SECTION = 'Ensembles'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/ensemble')
    parser.add_argument('--tasks', nargs='+', help='default: all with predictions')
    parser.add_argument('--methods', nargs='+', help='default: all')
    parser.add_argument('--seed', type=int, help='default: the one most methods have')
    parser.add_argument(
        '--rule',
        choices=ensemble.RULES,
        default=ensemble.RULES[0],
        help='of pairs and of growth; the table has all rules',
    )
    parser.add_argument(
        '--limit', type=int, default=50, help='most ensembles drawn per size'
    )
    return parser


def as_row(found: ensemble.Gain) -> dict[str, float]:
    """A gain as numbers."""
    return {
        'rule': found.rule,
        'members': found.members,
        'accuracy': found.accuracy,
        'worst': found.worst,
        'mean': found.mean,
        'best': found.best,
        'over_worst': found.over_worst,
        'over_mean': found.over_mean,
        'over_best': found.over_best,
    }


def summary(gains: dict[int, list[ensemble.Gain]]) -> dict[int, dict[str, float]]:
    """Means and spreads over the ensembles of every size."""
    return {
        k: {
            'ensembles': len(rows),
            'accuracy': float(np.mean([g.accuracy for g in rows])),
            'over_mean': float(np.mean([g.over_mean for g in rows])),
            'over_mean_std': float(np.std([g.over_mean for g in rows])),
            'over_best': float(np.mean([g.over_best for g in rows])),
            'over_best_std': float(np.std([g.over_best for g in rows])),
        }
        for k, rows in sorted(gains.items())
    }


def control(
    groups: dict[str, list[selection.Run]], args: argparse.Namespace
) -> dict[int, list[ensemble.Gain]]:
    """Ensembles of the seeds of one method."""
    if not groups:
        return {}
    labels = next(iter(groups.values()))[0].labels
    logits = {name: np.stack([r.logits for r in g]) for name, g in groups.items()}
    return ensemble.seed_growth(logits, labels, args.rule, args.limit)


def draw_growth(
    task: str,
    methods: dict[int, dict[str, float]],
    seeds: dict[int, dict[str, float]],
    rule: str,
    to: Path,
) -> None:
    """Gain over the mean and over the best member against the number of members."""
    figure, axes = charts.new_figure(9.5, 4.2, columns=2)
    titles = {
        'over_mean': 'gain over the mean of the members',
        'over_best': 'gain over the best member',
    }
    for axis, (key, title) in zip(axes[0], titles.items(), strict=True):
        for rows, label, colour, marker in (
            (methods, 'different methods, one seed', '#0072b2', 'o'),
            (seeds, 'seeds of one method (control)', '#d55e00', 's'),
        ):
            if not rows:
                continue
            x = np.array(list(rows))
            y = np.array([row[key] for row in rows.values()])
            e = np.array([row[f'{key}_std'] for row in rows.values()])
            axis.plot(x, y, marker=marker, ms=4, color=colour, label=label)
            axis.fill_between(x, y - e, y + e, color=colour, alpha=0.15, lw=0)
        axis.axhline(0, color='black', lw=0.6)
        axis.set_xlabel('number of members')
        axis.set_ylabel('gain, percentage points')
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(fontsize=8)
    two = methods.get(2, {}).get('over_mean', float('nan'))
    text = f'Two different methods gain {two:+.2f} points over their mean'
    if 2 in seeds:
        text += f', two seeds of one method {seeds[2]["over_mean"]:+.2f}'
    charts.save_figure(
        figure,
        to / f'{task}-growth.png',
        title=f'Ensembles of k members on {task}',
        caption=(
            f'Ensembles by {rule.replace("_", " ")}. Lines are means over ensembles of '
            f'k members, bands one standard deviation over ensembles, which share '
            f'members and one test set. The control averages seeds of one method, over '
            f'all methods that have several.'
        ),
        alt=f'Two panels of gains against k. {text}.',
        section=SECTION,
    )


def draw_pairs(
    task: str, runs: list[selection.Run], rows: list[tuple], rule: str, to: Path
) -> dict[str, Any]:
    """Gain of pairs against their dissimilarity; returns the correlations."""
    apart = [row[2] for row in rows]
    found = {}
    figure, axes = charts.new_figure(9.5, 4.4, columns=2)
    keys = {'over_mean': 'gain over the mean', 'over_best': 'gain over the better'}
    for axis, (key, title) in zip(axes[0], keys.items(), strict=True):
        gains = [getattr(row[3], key) for row in rows]
        found[key] = {
            'pearson': ensemble.pearson(apart, gains),
            'spearman': ensemble.spearman(apart, gains),
        }
        same = [runs[i].record.family == runs[j].record.family for i, j, *_ in rows]
        for flag, label, colour, marker in (
            (True, 'one family', '#e69f00', 's'),
            (False, 'two families', '#0072b2', 'o'),
        ):
            chosen = [k for k, value in enumerate(same) if value is flag]
            axis.plot(
                [apart[k] for k in chosen],
                [gains[k] for k in chosen],
                marker,
                ms=4,
                alpha=0.5,
                color=colour,
                mec='none',
                label=label,
            )
        axis.axhline(0, color='black', lw=0.6)
        axis.set_xlabel('dissimilarity: share of samples on which the two differ')
        axis.set_ylabel('gain, percentage points')
        axis.set_title(
            f'{title}\nPearson {found[key]["pearson"]:.2f}, rank '
            f'{found[key]["spearman"]:.2f}',
            fontsize=10,
        )
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    charts.save_figure(
        figure,
        to / f'{task}-pairs.png',
        title=f'Pairs on {task}: what dissimilarity gains',
        caption=(
            f'Every ensemble of two methods by {rule.replace("_", " ")}: its gain '
            f'against the share of test samples on which the two disagree. A weak '
            f'member raises dissimilarity and the gain over the mean alike; the gain '
            f'over the better member is the one to rely on.'
        ),
        alt=(
            f'Two scatters of {len(rows)} pairs. The gain over the mean correlates '
            f'with dissimilarity by {found["over_mean"]["pearson"]:.2f}, the gain over '
            f'the better member by {found["over_best"]["pearson"]:.2f}.'
        ),
        section=SECTION,
    )
    return found


def run_task(
    task: str, rows: list[Any], args: argparse.Namespace, to: Path
) -> dict[str, Any]:
    """Everything of one task: measured, drawn and written."""
    runs = selection.load_task(args.out, rows, args.seed)
    labels = runs[0].labels
    logits = np.stack([run.logits for run in runs])
    everyone = {r: ensemble.gain(logits, labels, r) for r in ensemble.RULES}
    two = ensemble.pairs(logits, labels, args.rule)
    methods = summary(ensemble.growth(logits, labels, args.rule, args.limit))
    seeds = summary(control(selection.load_seeds(args.out, rows), args))
    draw_growth(task, methods, seeds, args.rule, to)
    correlation = draw_pairs(task, runs, two, args.rule, to) if len(two) > 2 else None
    names = [run.name for run in runs]
    charts.save_rows(
        to / f'{task}-pairs.csv',
        ('method_a', 'method_b', 'dissimilarity', 'accuracy', 'over_mean', 'over_best'),
        [
            (names[i], names[j], d, g.accuracy, g.over_mean, g.over_best)
            for i, j, d, g in two
        ],
    )
    found = {
        'group': rows[0].group,
        'methods': names,
        'seed': runs[0].record.job.seed,
        'single': [run.accuracy for run in runs],
        'all_methods': {rule: as_row(g) for rule, g in everyone.items()},
        'pairs': correlation,
        'methods_by_size': methods,
        'seeds_by_size': seeds,
    }
    charts.save_numbers(to / f'{task}.numbers.json', found)
    return found


def write_table(found: dict[str, dict[str, Any]], to: Path) -> None:
    """All methods together, per task and as plain means of the groups."""
    header = (
        'task',
        'group',
        'rule',
        'members',
        'accuracy',
        'worst',
        'mean',
        'best',
        'over_worst',
        'over_mean',
        'over_best',
    )
    rows = []
    for rule in ensemble.RULES:
        groups: dict[str, list[dict[str, float]]] = {}
        for task, numbers in found.items():
            row = numbers['all_methods'][rule]
            groups.setdefault(numbers['group'], []).append(row)
            groups.setdefault('', []).append(row)
            rows.append((task, numbers['group'], *(row[k] for k in header[2:])))
        for group, members in groups.items():
            if len(members) > 1:
                name = f'mean of {group}' if group else 'mean of all tasks'
                means = (float(np.mean([m[k] for m in members])) for k in header[4:])
                rows.append((name, group, rule, '', *means))
    charts.save_rows(to / 'gains.csv', header, rows)


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Every task; returns the lines to print."""
    check_range('ensemble', '--limit', args.limit, 1)
    records = selection.choose(
        selection.plain(selection.finished(args.out)),
        tasks=args.tasks,
        methods=args.methods,
    )
    found, lines = {}, []
    for task, rows in selection.by_task(records).items():
        there = selection.has_predictions(args.out, rows, args.seed)
        if args.tasks is None and not there:
            continue
        found[task] = run_task(task, rows, args, to)
        best = found[task]['all_methods'][args.rule]
        lines.append(
            f'{task}: {len(found[task]["methods"])} methods together '
            f'{best["accuracy"]:.2f} %, best single {best["best"]:.2f} % '
            f'({best["over_best"]:+.2f}), mean {best["mean"]:.2f} %'
        )
    if not lines:
        raise PETLError(
            f'{args.out} holds no two runs of one task with predictions to combine'
        )
    write_table(found, to)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'ensemble'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
