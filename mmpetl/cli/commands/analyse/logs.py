"""Tell what runs have logged, and draw it.

Examples:
    mmpetl analyse logs work_dirs/lora/mini/digits
    mmpetl analyse logs work_dirs/lora/mini/digits --keys loss lr --out curves.png

Without --out a table of every key: values logged, first, least, greatest, last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('runs', nargs='+', help='work folders, or scalars.json files')
    parser.add_argument('--keys', nargs='+', default=['loss'], help='what is drawn')
    parser.add_argument('--legend', nargs='+', help='names of the runs')
    parser.add_argument('--title', default='What runs have logged')
    parser.add_argument('--out', type=Path, help='picture, .png')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.analysis.curves import choose, draw_curves, read_log, summary
    from mmpetl.apis.run import cli_errors
    from mmpetl.core import PETLError

    with cli_errors():
        names = args.legend or args.runs
        if len(names) != len(args.runs) or len(set(names)) != len(names):
            raise PETLError(
                f'{len(args.runs)} runs need as many names of their own, got '
                f'{", ".join(names)}'
            )
        logs = {name: read_log(run) for name, run in zip(names, args.runs, strict=True)}
        for name, log in logs.items():
            print(f'{name}', *summary(log), sep='\n')
        if args.out:
            chosen = {name: choose(log, args.keys, name) for name, log in logs.items()}
            panels = {
                key: {name: curves[key] for name, curves in chosen.items()}
                for key in args.keys
            }
            draw_curves(panels, args.out, args.title)
            print(f'picture: {args.out}')
