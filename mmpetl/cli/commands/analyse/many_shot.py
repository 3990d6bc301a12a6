"""Accuracy against the number of training images, for methods and their sizes.

Example:
    mmpetl analyse many-shot work_dirs/bench/mini --task digits \
        --methods LinearProbe Full SSF LoRA:rank=1,4,16 --shots 50 100 200 400 1000

Takes recipe and options from the runs of a benchmark folder, trains each method on
class-balanced subsets of the training set, several seeds each, and draws the curves.
What is finished is kept: run again to continue, or to add methods and sizes. Steps are
those of the run on all images; --same-epochs keeps the epochs instead. The test set is
read once per run and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmpetl.analysis import charts, further_runs, many_shot, scatter, selection
from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.scores import metric_of
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import check_range

METHODS = ('LinearProbe', 'Full', 'BitFit', 'SSF', 'LoRA:rank=1,4,16')
SHOTS = (50, 100, 200, 400, 1000)
SECTION = 'Training-set size'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/many_shot')
    parser.add_argument('--task', help='default: the first of the benchmark')
    parser.add_argument(
        '--methods',
        nargs='+',
        default=list(METHODS),
        metavar='METHOD[:argument=value,value]',
    )
    parser.add_argument('--shots', nargs='+', type=int, default=list(SHOTS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[42, 43])
    parser.add_argument(
        '--same-epochs', action='store_true', help='keep epochs rather than steps'
    )
    parser.add_argument('--executor', choices=('local', 'inline'), default='local')
    parser.add_argument('--workers', type=int, help='jobs at a time')
    return parser


def name_of(variant: further_runs.Variant) -> str:
    """``LoRA (rank 16)``."""
    words = ', '.join(f'{key} {value}' for key, value in variant.settings)
    return f'{variant.method} ({words})' if words else variant.method


def plan(
    args: argparse.Namespace, records: list[selection.Record], task: str
) -> dict[str, tuple[further_runs.Job, str, int]]:
    """Jobs by id, with the name of their curve and their number of images."""
    planned = {}
    labels = None
    for variant in further_runs.parse_variants(args.methods):
        base = further_runs.template(records, task, variant.method)
        config = further_runs.config_of(further_runs.varied(base, variant, {}, ''))
        if labels is None:
            labels = many_shot.training_labels(config)
        for shots in args.shots:
            for seed in args.seeds:
                options = many_shot.shot_options(
                    config, labels, shots, seed, not args.same_epochs
                )
                # On all images and without settings it is the benchmark's own run.
                name = f'n{shots}' if options else ''
                job = further_runs.varied(base, variant, options, name)
                job = dataclasses.replace(job, seed=seed)
                planned[job.id] = (job, name_of(variant), shots)
    return planned


def draw_curves(
    groups: dict[str, list[many_shot.Point]],
    task: str,
    same: str,
    metric: str,
    to: Path,
) -> None:
    """Score against images, one line per method and setting."""
    figure, axes = charts.new_figure(8, 4.8)
    axis = axes[0, 0]
    looks = charts.distinct(len(groups))
    for (name, rows), (colour, marker) in zip(groups.items(), looks, strict=True):
        x = [p.shots for p in rows]
        axis.errorbar(
            x,
            [p.mean for p in rows],
            yerr=[p.std for p in rows],
            marker=marker,
            ms=5,
            lw=1.4,
            capsize=2,
            color=colour,
            ls='--' if rows[0].method in selection.REFERENCES else '-',
            label=name,
        )
    axis.set_xscale('log')
    shots = sorted({p.shots for rows in groups.values() for p in rows})
    axis.set_xticks(shots, [str(s) for s in shots])
    axis.minorticks_off()
    axis.set_xlabel('training images')
    axis.set_ylabel(metric_of(metric).label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1.01, 1))
    seeds = selection.seeds_said(len(p.scores) for r in groups.values() for p in r)
    low, high = shots[0], shots[-1]

    def best(count: int) -> str:
        rows = [p for r in groups.values() for p in r if p.shots == count]
        top = max(rows, key=lambda p: p.mean)
        return f'{top.name} with {top.mean:.1f}'

    charts.save_figure(
        figure,
        to / f'{task}-curves.png',
        title=f'Score against training images on {task}',
        caption=(
            f'Class-balanced, nested subsets of the training set, drawn per seed; '
            f'every run takes {same}. Points are means over {seeds}, bars one '
            f'standard deviation over seeds.'
        ),
        alt=(
            f'{len(groups)} curves from {low} to {high} images. Best at {low}: '
            f'{best(low)}; at {high}: {best(high)}.'
        ),
        section=SECTION,
    )


def draw_sizes(
    groups: dict[str, list[many_shot.Point]], task: str, metric: str, to: Path
) -> None:
    """Score against the share of tuned parameters, one line per number of images."""
    shots = sorted({p.shots for rows in groups.values() for p in rows})
    figure, axes = charts.new_figure(8, 4.8)
    axis = axes[0, 0]
    import matplotlib

    shades = matplotlib.colormaps['viridis'](np.linspace(0, 0.9, len(shots)))
    everything = [p for rows in groups.values() for p in rows]
    methods = list(dict.fromkeys(p.method for p in everything))
    shares = [100 * p.share for p in everything]
    places = dict(zip(shares, scatter.log_with_zero(axis, shares), strict=True))
    for count, shade in zip(shots, shades, strict=True):
        for k, method in enumerate(methods):
            rows = sorted(
                (p for p in everything if (p.shots, p.method) == (count, method)),
                key=lambda p: p.share,
            )
            axis.errorbar(
                [places[100 * p.share] for p in rows],
                [p.mean for p in rows],
                yerr=[p.std for p in rows],
                capsize=2,
                marker=charts.MARKERS[k % len(charts.MARKERS)],
                ms=6,
                lw=1.2,
                color=shade,
            )
    axis.set_xlabel('tuned share of the backbone, %')
    axis.set_ylabel(metric_of(metric).label)
    axis.grid(alpha=0.3)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=shade, lw=3, label=f'{count} images')
        for count, shade in zip(shots, shades, strict=True)
    ]
    handles += [
        Line2D(
            [],
            [],
            color='black',
            ls='',
            marker=charts.MARKERS[k % len(charts.MARKERS)],
            label=method,
        )
        for k, method in enumerate(methods)
    ]
    axis.legend(handles=handles, fontsize=8, loc='upper left', bbox_to_anchor=(1.01, 1))
    charts.save_figure(
        figure,
        to / f'{task}-sizes.png',
        title=f'Score against tuned parameters on {task}',
        caption=(
            'The same runs by the share of the backbone that trains, head excluded; '
            'sizes of one method are joined. Bars: one standard deviation over seeds.'
        ),
        alt=(
            f'{len(methods)} methods at {len(shots)} numbers of images; the tuned '
            f'share runs from {min(shares):.3g} to {max(shares):.3g} %.'
        ),
        section=SECTION,
    )


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Run what is left, draw; returns the lines to print."""
    for shots in args.shots:
        check_range('many-shot', '--shots', shots, 1)
    records = selection.finished(args.out)
    task = args.task or next(iter(selection.by_task(selection.plain(records))))
    planned = plan(args, records, task)
    store = RecordStore(args.out)
    there = [store.read(job) for job, _, _ in planned.values()]
    done = [r for r in there if r is not None and r.status == 'done']
    known = {record.job.id for record in done}
    left = [job for name, (job, _, _) in planned.items() if name not in known]
    if left:
        done += further_runs.run_jobs(
            left,
            args.out / 'analysis' / 'many_shot' / 'bench',
            'many-shot',
            args.executor,
            args.workers,
        )
    named = {name: (curve, shots) for name, (_, curve, shots) in planned.items()}
    found = many_shot.points(done, named)
    groups = many_shot.curves(found)
    metric = done[0].primary
    same = (
        'as many epochs as the run on all images'
        if args.same_epochs
        else 'as many steps as the run on all images'
    )
    draw_curves(groups, task, same, metric, to)
    draw_sizes(groups, task, metric, to)
    charts.save_rows(
        to / f'{task}.csv',
        ('task', 'name', 'method', 'shots', 'trainable', 'share', 'mean', 'std', 'n'),
        [
            (task, p.name, p.method, p.shots, p.trainable, p.share, p.mean, p.std, n)
            for p in found
            for n in [len(p.scores)]
        ],
    )
    full = groups.get('Full')
    charts.save_numbers(
        to / f'{task}.numbers.json',
        {
            'task': task,
            'metric': metric,
            'steps': same,
            'points': [dataclasses.asdict(p) for p in found],
            'against_full': {
                name: many_shot.crossings(rows, full)
                for name, rows in groups.items()
                if full and name != 'Full'
            },
        },
    )
    return [
        f'{name}: ' + ', '.join(f'{p.shots}: {p.mean:.1f}' for p in rows)
        for name, rows in groups.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'many_shot'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
