"""Trained runs on shifted test sets: in-distribution against out-of-distribution.

Example:
    mmpetl analyse robustness work_dirs/bench/mini --tasks digits

Without --sets the test set of every task is corrupted, in six ways at five severities.
With --sets each file is a config whose test_dataloader reads a shifted set of the same
classes (ImageNet-V2, -R, -Sketch, -A); classes that a set does not hold are masked.
Nothing is trained. What is scored is kept: run again to continue or to add methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from mmpetl.analysis import charts, robustness, scatter, selection
from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.config_digest import config_hash
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.config.load import as_config
from mmpetl.core import PETLError, check_range
from mmpetl.core.boundary import read_json
from mmpetl.datasets.corruptions import CORRUPTIONS, SEVERITIES, check_corruption

SECTION = 'Robustness'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/robustness')
    parser.add_argument('--tasks', nargs='+', help='default: the first')
    parser.add_argument('--methods', nargs='+', help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, help='default: the commonest')
    parser.add_argument('--kinds', nargs='+', default=list(CORRUPTIONS))
    parser.add_argument('--severities', nargs='+', type=int, default=list(SEVERITIES))
    parser.add_argument('--limit', type=int, help='most test samples per set')
    parser.add_argument('--noise-seed', type=int, default=0, help='of the corruptions')
    parser.add_argument(
        '--sets', nargs='+', type=Path, metavar='CONFIG', help='shifted sets, by config'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    return parser


Sets = dict[str, Callable[[], robustness.Samples]]


def sets_of(config: Any, args: argparse.Namespace) -> Sets:
    """What builds the clean set and every shifted one, by name."""
    common = {'limit': args.limit, 'seed': args.noise_seed}
    found: Sets = {
        robustness.CLEAN: lambda: robustness.samples_of(config, **common),
    }
    if args.sets:
        for name, path in robustness.named_sets(args.sets).items():
            found[name] = lambda name=name, path=path: robustness.samples_of(
                path, name=name, **common
            )
        return found
    for kind in args.kinds:
        for severity in args.severities:
            name = robustness.condition(kind, severity)
            found[name] = lambda name=name, at=(kind, severity): robustness.samples_of(
                config, name=name, corruption=at, **common
            )
    return found


class Kept(msgspec.Struct):
    """What the file of :class:`Cells` holds."""

    key: dict[str, Any]
    scores: dict[str, float]


def digests_of(args: argparse.Namespace) -> dict[str, str]:
    """What each set of ``--sets`` is: a digest of its config, written out."""
    return {
        name: config_hash(as_config(path))
        for name, path in robustness.named_sets(args.sets).items()
    }


class Cells:
    """Scores of one run, kept in a file as they come.

    Args:
        path: The file.
        key: What the scores depend on; those of another one do not count.
        digests: What else a set is than its name. A score under this name that was of
            another set does not count.
    """

    def __init__(
        self, path: Path, key: dict[str, Any], digests: Mapping[str, str]
    ) -> None:
        self.path = path
        self.key = key
        self.digests = digests
        self.scores: dict[str, float] = {}
        if path.is_file():
            data = read_json(path, Kept, 'scores')
            if data.key == key:
                self.scores = data.scores

    def get(self, name: str) -> float | None:
        """The score on a set; None where none is kept."""
        return self.scores.get(self._kept_as(name))

    def _kept_as(self, name: str) -> str:
        return '@'.join(filter(None, (name, self.digests.get(name))))

    def put(self, name: str, value: float) -> None:
        """Keep a score."""
        self.scores[self._kept_as(name)] = value
        charts.save_numbers(self.path, {'key': self.key, 'scores': self.scores})


def score_runs(
    args: argparse.Namespace, records: list[Record]
) -> dict[str, dict[str, float]]:
    """Accuracy of every run on every set, by the run's id."""
    from mmengine.config import Config

    store = RecordStore(args.out)
    kept = args.out / 'analysis' / 'robustness' / 'cells'
    configs = {r.job.id: store.folder(r.job) / 'config.py' for r in records}
    for path in configs.values():
        if not path.is_file():
            raise PETLError(f'{path} is missing; it must be a finished run')
    digests = digests_of(args)
    built: dict[str, robustness.Samples] = {}
    found = {}
    with tqdm(records, unit='run') as bar:
        for record in bar:
            bar.set_description(record.job.id)
            config = Config.fromfile(configs[record.job.id])
            sets = sets_of(config, args)
            key = {
                'limit': args.limit,
                'noise_seed': args.noise_seed,
                'finished': record.finished,
            }
            cells = Cells(kept / f'{record.job.id}.json', key, digests)
            left = [name for name in sets if cells.get(name) is None]
            model = None
            # Runs of a task that see pictures alike share the prepared samples.
            same = repr(config.test_dataloader.dataset)
            for name in left:
                if model is None:
                    model = robustness.load_classifier(
                        store.folder(record.job), args.device
                    )
                where = name if args.sets and name != robustness.CLEAN else same + name
                if where not in built:
                    built[where] = sets[name]()
                cells.put(name, robustness.score(model, built[where]))
            found[record.job.id] = {name: cells.get(name) for name in sets}
    return found


def by_method(
    records: list[Record], scores: dict[str, dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """Means over seeds by method."""
    found: dict[str, dict[str, Any]] = {}
    names = selection.names_of(records)
    for record in records:
        name = names[record.job.id]
        row = found.setdefault(name, {'family': record.family, 'seeds': []})
        row['seeds'].append(scores[record.job.id])
    for row in found.values():
        names = row['seeds'][0]
        row['scores'] = {n: float(np.mean([s[n] for s in row['seeds']])) for n in names}
        row['clean'] = row['scores'][robustness.CLEAN]
        row['shifted'] = robustness.shifted_mean(row['scores'])
        row['clean_spread'] = _spread([s[robustness.CLEAN] for s in row['seeds']])
        row['shifted_spread'] = _spread(
            list(map(robustness.shifted_mean, row['seeds']))
        )
        row['by_kind'] = robustness.by_kind(row['scores'])
        row['by_severity'] = robustness.by_severity(row['scores'])
    above = robustness.above_line(
        [r['clean'] for r in found.values()], [r['shifted'] for r in found.values()]
    )
    for row, value in zip(found.values(), above, strict=True):
        row['above_line'] = value
    return found


def _spread(values: list[float]) -> float | None:
    """Sample standard deviation over seeds; None below two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def draw_scatter(
    task: str, rows: dict[str, dict[str, Any]], words: str, to: Path
) -> None:
    """Clean against shifted accuracy, a point per method."""
    figure, axes = charts.new_figure(8, max(4.5, 0.19 * len(rows) + 1.5))
    axis = axes[0, 0]
    x = [row['clean'] for row in rows.values()]
    y = [row['shifted'] for row in rows.values()]
    families = [row['family'] for row in rows.values()]
    counts = [len(row['seeds']) for row in rows.values()]
    wide = [row['clean_spread'] for row in rows.values()]
    tall = [row['shifted_spread'] for row in rows.values()]
    line = robustness.line_of(x, y)
    if line is not None:
        ends = np.array([min(x), max(x)])
        axis.plot(ends, line[0] * ends + line[1], color='#888888', lw=1, ls='--')
    axis.plot(x, y, ls='')  # the points decide how far the x axis goes
    scatter.named_points(axis, x, y, list(rows), families, x_spread=wide, y_spread=tall)
    axis.set_xlabel('accuracy on the test set, %')
    axis.set_ylabel('mean accuracy on the shifted sets, %')
    axis.grid(alpha=0.3)
    charts.family_legend(
        axis, families, loc='lower left', bbox_to_anchor=(0, 1.01), ncols=4
    )
    names = list(rows)
    best = names[int(np.argmax(y))]
    above = max(rows, key=lambda n: np.nan_to_num(rows[n]['above_line'], nan=-np.inf))
    charts.save_figure(
        figure,
        to / f'{task}-scatter.png',
        title=f'In and out of distribution on {task}',
        caption=(
            words
            + (
                ' The dashed line is the least-squares line through all methods; what '
                'lies above it is more robust than its accuracy says.'
                if line is not None
                else ''
            )
            + (
                f' Bars: one standard deviation over {selection.seeds_said(counts)}.'
                if max(counts) > 1
                else ''
            )
        ),
        alt=(
            f'{len(rows)} methods. Best on the shifted sets: {best} with {max(y):.1f} '
            f'% at {x[int(np.argmax(y))]:.1f} % on the test set'
            + (f'; farthest above the line: {above}.' if line is not None else '.')
        ),
        section=SECTION,
    )


def draw_kinds(
    task: str, rows: dict[str, dict[str, Any]], words: str, to: Path
) -> None:
    """Accuracy per method and kind of shift, as a table in colour."""
    kinds = list(next(iter(rows.values()))['by_kind'])
    columns = [robustness.CLEAN, *kinds]
    values = np.array(
        [[r['clean'], *(r['by_kind'][k] for k in kinds)] for r in rows.values()]
    )
    figure, axes = charts.new_figure(
        2.6 + 0.85 * len(columns), max(2.5, 0.24 * len(rows) + 1.4)
    )
    axis = axes[0, 0]
    image = axis.imshow(values, cmap='cividis', aspect='auto')
    figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02, label='accuracy, %')
    middle = (values.min() + values.max()) / 2
    for i, j in np.ndindex(values.shape):
        colour = 'black' if values[i, j] > middle else 'white'
        axis.text(
            j,
            i,
            f'{values[i, j]:.1f}',
            ha='center',
            va='center',
            fontsize=7,
            color=colour,
        )
    axis.set_xlabel('kind of shift')
    axis.set_ylabel('method')
    labels = [c.replace('_', '\n') for c in columns]
    axis.set_xticks(range(len(columns)), labels, fontsize=8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    for tick, row in zip(axis.get_yticklabels(), rows.values(), strict=True):
        tick.set_color(charts.text_colour_of(row['family']))
    hardest = columns[1 + int(values[:, 1:].mean(0).argmin())]
    charts.save_figure(
        figure,
        to / f'{task}-kinds.png',
        title=f'What shifts cost on {task}',
        caption=f'{words} Columns are means over the severities of a kind.',
        alt=(
            f'A table of {len(rows)} methods and {len(kinds)} kinds of shift. Hardest '
            f'for all together: {hardest} with {values[:, 1:].mean(0).min():.1f} %.'
        ),
        section=SECTION,
    )


def run_task(
    task: str, rows: list[Record], args: argparse.Namespace, to: Path
) -> list[str]:
    """Score, draw and write one task; returns the lines to print."""
    seeds = args.seeds or [selection.common_seed(rows)]
    records = [r for r in rows if r.job.seed in seeds]
    found = by_method(records, score_runs(args, records))
    names = ', '.join(p.stem for p in args.sets or ())
    words = (
        f'Shifted sets: {names}.'
        if args.sets
        else f'Shifted sets: {", ".join(k.replace("_", " ") for k in args.kinds)} at '
        f'severity {", ".join(map(str, args.severities))}.'
    )
    if args.limit:
        words += f' {args.limit:,} samples of each set.'
    counts = [len(row['seeds']) for row in found.values()]
    words += f' Mean over {selection.seeds_said(counts)}.'
    draw_scatter(task, found, words, to)
    draw_kinds(task, found, words, to)
    sets = list(next(iter(found.values()))['scores'])
    charts.save_rows(
        to / f'{task}.csv',
        ('task', 'method', 'family', 'shifted_mean', 'above_line', *sets),
        [
            (
                task,
                name,
                row['family'],
                row['shifted'],
                row['above_line'],
                *(row['scores'][s] for s in sets),
            )
            for name, row in found.items()
        ],
    )
    charts.save_numbers(
        to / f'{task}.numbers.json', {'words': words, 'seeds': seeds, 'methods': found}
    )
    return [
        f'{task} {name}: clean {row["clean"]:.2f} %, shifted {row["shifted"]:.2f} %'
        for name, row in found.items()
    ]


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Every task; returns the lines to print."""
    for kind in args.kinds:
        check_corruption(kind, 1)
    for severity in args.severities:
        check_corruption(args.kinds[0], severity)
    if args.limit is not None:
        check_range('robustness', '--limit', args.limit, 1)
    robustness.named_sets(args.sets)
    records = selection.choose(
        selection.plain(selection.finished(args.out)),
        tasks=args.tasks,
        methods=args.methods,
        seeds=args.seeds,
    )
    groups = selection.by_task(records)
    if args.tasks is None:
        groups = dict([next(iter(groups.items()))])
    return [
        line for task, rows in groups.items() for line in run_task(task, rows, args, to)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'robustness'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
