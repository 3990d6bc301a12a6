"""Pack the results of a benchmark folder as a release, or check one.

Examples:
    mmpetl benchmark release work_dirs/bench/mini --to mini-1.0
    mmpetl benchmark release --check mini-1.0

A release holds records, predictions, deltas, configs, logs, tables and the page, with
index.json: size and SHA-256 of every file, and the commands that verify it. Runs must
be verified (mmpetl benchmark verify), unless --unverified lets those along of which
something could not be looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser, 'benchmark folder, or release')
    parser.add_argument('--to', type=Path, help='the release, a new folder')
    parser.add_argument('--name', help="what it is called; the folder's name")
    parser.add_argument('--unverified', action='store_true', help='take such runs too')
    parser.add_argument('--check', action='store_true', help='hold files to the index')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.check == bool(args.to):
        parser.error('give either --to FOLDER or --check')
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        if args.check:
            check(args.out)
        else:
            pack(args)


def check(folder: Path) -> None:
    from mmpetl.benchmark.release import faults, read_index, runs_of
    from mmpetl.core import PETLError

    found = faults(folder)
    for line in runs_of(folder, found):
        print(line)
    if found:
        raise PETLError(f'{folder} is not what was released: {len(found)} files differ')
    index = read_index(folder)
    print(f'{folder}: {len(index.files)} files are those of {index.name}')
    print('\n'.join(['to verify what they say:', *index.verify]))


def pack(args: argparse.Namespace) -> None:
    from mmpetl.benchmark.progress import duration
    from mmpetl.benchmark.release import release, words_of

    found = words_of(
        release(args.out, args.to, args.name or args.to.name, args.unverified)
    )
    print(
        f'{args.to}: {found["runs"]} runs that took {duration(found["seconds"])} one '
        f'after another, {found["files"]} files, {found["bytes"] / 2**20:.1f} MB'
    )
