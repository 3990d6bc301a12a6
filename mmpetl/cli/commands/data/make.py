"""Write small data sets in the official layouts, so that recipes run anywhere.

Point MMPETL_DATA at the folder and the recipes for the full sets read them as they
are. What is complete is skipped; an interrupted set is made anew.

Example:
    mmpetl data make --root data/mini --all --verify
    mmpetl data make --root data/mini --only digits coco ssv2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from mmpetl.cli.commands.data import verify
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets import mini


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('--root', help='data root to write below')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--only', nargs='+', metavar='NAME', help='sets, or folders')
    which.add_argument(
        '--all',
        action='store_true',
        help='all but the large sets that the mini backbones were trained on '
        f'({", ".join(mini.UPSTREAM)}); the default',
    )
    parser.add_argument('--size', choices=['tiny', 'small'], default='small')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--verify',
        action='store_true',
        help='then open every file (mmpetl data verify)',
    )
    parser.add_argument('--list', action='store_true', help='print the names and stop')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, make, tell."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.list:
        print('\n'.join(mini.NAMES))
        return 0
    if not args.root:
        parser.error('--root says where to write')
    try:
        made = make(args)
    except (ValueError, OSError) as error:
        print(f'make_mini_data: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('make_mini_data: interrupted; run again to go on', file=sys.stderr)
        return 130
    print(f'{args.root}: {made["made"]} sets made, {made["there"]} were there')
    if args.verify:
        which = ['--data-root', args.root, '--mini', '--all-files', '--present']
        return verify.main(which)
    return 0


def make(args: argparse.Namespace) -> dict[str, int]:
    """Write what lacks, one line a set; how many were made and how many were there."""
    names = mini.names_for(args.only)
    counts = {'made': 0, 'there': 0}
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(names[0], total=len(names))
        for name in names:
            progress.update(task, description=f'{name:32}')

            def report(name: str, made: bool) -> None:
                key = 'made' if made else 'there'
                counts[key] += 1
                progress.console.print(f'{name:40} {key}')
                progress.advance(task)

            mini.make(args.root, [name], args.size, args.seed, report)
    return counts
