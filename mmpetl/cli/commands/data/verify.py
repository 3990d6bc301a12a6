"""Are the data on disk whole, and the right ones? Found, expected, what to do.

Reads every list, looks up every file it names, opens a sample of them (or all with
--all-files), and compares counts, classes, splits and label maps with the catalogue.
The exit code is 0 if every data set asked for is healthy, 1 otherwise.

Example:
    mmpetl data verify vtab hmdb51 --data-root /data
    mmpetl data verify --data-root data/mini --mini --present
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mmpetl.apis.run import cli_errors
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError
from mmpetl.datasets.catalog import select
from mmpetl.datasets.verify import Report, verify

COLOURS = {'absent': 'dim', 'faulty': 'red', 'healthy': 'green'}


def make_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(__name__)
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='data sets (cifar100), benchmarks (vtab, fgvc, video, dense, study) or '
        'groups (structured); all if none is given',
    )
    parser.add_argument(
        '--data-root',
        type=Path,
        default=Path(os.environ.get('MMPETL_DATA', 'data')),
        help='default: the environment variable MMPETL_DATA, else data',
    )
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        '--sample',
        type=int,
        default=64,
        metavar='N',
        help='files to open in each split (default: 64)',
    )
    how_many.add_argument(
        '--all-files', '--all', action='store_true', help='open every file'
    )
    parser.add_argument(
        '--mini', action='store_true', help='expect mini sets instead of official data'
    )
    parser.add_argument(
        '--present', action='store_true', help='pass over data sets that are not there'
    )
    parser.add_argument('--workers', type=int, default=4, help='threads (default: 4)')
    parser.add_argument('--json', action='store_true', help='print JSON, no table')
    return parser


def verify_all(args: argparse.Namespace) -> list[Report]:
    """One report per data set asked for, with progress on stderr."""
    chosen = select(args.names)
    if not args.data_root.is_dir():
        raise PETLError(
            f"there is no data root '{args.data_root}'; give --data-root or set "
            'MMPETL_DATA.'
        )
    sample = None if args.all_files else args.sample
    reports = []
    columns = (
        TextColumn('{task.description:22}'),
        BarColumn(),
        TextColumn('{task.completed:,} of {task.total:,} files'),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for number, facts in enumerate(chosen, start=1):
            title = f'{facts.id} ({number}/{len(chosen)})'
            task = bar.add_task(title, total=0)

            def progress(done: int, total: int, task=task) -> None:
                bar.update(task, completed=done, total=total)

            report = verify(
                facts, args.data_root, sample, args.mini, args.workers, progress
            )
            bar.remove_task(task)
            if report.present or not args.present:
                reports.append(report)
    if not reports:
        raise PETLError(f"none of the data sets asked for is in '{args.data_root}'.")
    return reports


def table_of(reports: list[Report], mini: bool) -> Table:
    """Rows: data set, state, samples per split, classes, files opened, findings."""
    title = 'mini sets, which are not the official data' if mini else None
    table = Table(title=title, show_lines=True)
    for name in ('data set', 'state', 'found / expected', 'classes', 'opened'):
        table.add_column(name, overflow='fold')
    table.add_column('what to do', overflow='fold', ratio=1)
    for report in reports:
        counts = '\n'.join(
            f'{split} {found:,} / {"any" if wanted is None else f"{wanted:,}"}'
            for split, (found, wanted) in report.counts.items()
        )
        found, wanted = report.classes
        classes = '' if found is None else f'{found} / {wanted}'
        todo = '\n'.join(
            f'{"" if f.fault else "note: "}'
            f'{f"{f.split}: " if f.split else ""}{f.what}; {f.todo}'
            for f in report.findings
        )
        opened = f'{report.opened:,} of {report.listed:,}' if report.listed else ''
        colour = COLOURS.get(report.state, 'green')
        state = f'[{colour}]{report.state}[/{colour}]'
        table.add_row(report.id, state, counts, classes, opened, _plain(todo))
    return table


def _plain(text: str) -> str:
    """Text whose square brackets are not styles, and that any stream takes."""
    text = text.encode(errors='backslashreplace').decode()
    return text.replace('[', r'\[')


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, tell, and say by the exit code how it went."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.sample < 1 or args.workers < 1:
        parser.error('--sample and --workers take 1 or more')
    with cli_errors():
        try:
            reports = verify_all(args)
        except KeyboardInterrupt:
            print('verify_dataset: interrupted', file=sys.stderr)
            return 130
    if args.json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    else:
        # Piped, the table keeps its width: lines are for reading, not for cutting.
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(table_of(reports, args.mini))
        states = [report.state for report in reports]
        tally = ', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states))
        console.print(
            f'{len(reports)} data sets in {_plain(str(args.data_root))}: {tally}'
        )
    return 0 if all(report.ok for report in reports) else 1
