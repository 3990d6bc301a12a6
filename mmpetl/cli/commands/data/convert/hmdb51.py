"""HMDB51: clips into hmdb51/videos and the lists of its three splits.

Unpack the rar archives first (unrar x, 7z x): a folder per class, and the split files.

Example:
    mmpetl data convert hmdb51 --videos hmdb51_org --splits splits
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.videos import convert_hmdb51


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument(
        '--videos', type=Path, required=True, help='folder with a folder per class'
    )
    parser.add_argument(
        '--splits', type=Path, required=True, help='folder of <class>_test_split1.txt'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors():
        counts = convert_hmdb51(args.videos, args.splits, args.root, args.workers)
        tell(args.root / facts_of('hmdb51').path, counts)
