r"""PASCAL VOC 2007 and 2012 into VOCdevkit, for detection and segmentation.

Archives may be given together or one by one.

Example:
    mmpetl data convert voc VOCtrainval_06-Nov-2007.tar \
        VOCtest_06-Nov-2007.tar VOCtrainval_11-May-2012.tar
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.dense import convert_voc


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument('archives', nargs='+', type=Path, help='archives or folders')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors():
        counts = convert_voc(args.archives, args.root, args.workers)
        tell(args.root / facts_of('voc').path, counts)
