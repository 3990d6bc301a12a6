"""ADE20K (SceneParse150) into ADEChallengeData2016.

Example:
    mmpetl data convert ade20k ADEChallengeData2016.zip
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.dense import convert_ade20k


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument('archives', nargs='+', type=Path, help='archives or folders')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors():
        counts = convert_ade20k(args.archives, args.root, args.workers)
        tell(args.root / facts_of('ade20k').path, counts)
