"""Lists of ImageNet, and its shifted test sets (V2, R, Sketch, A).

The lists are those of imagenet/train/<wnid> and imagenet/val/<wnid>; a shifted set is
unpacked from its official archive.

Examples:
    mmpetl data convert imagenet lists
    mmpetl data convert imagenet imagenet_r imagenet-r.tar
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.study import VARIANTS, convert_variant, list_imagenet


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument('what', choices=('lists', *VARIANTS))
    parser.add_argument('archives', nargs='*', type=Path, help='of a shifted set')
    parser.add_argument(
        '--check', action='store_true', help='with lists: decode every picture'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.what == 'lists') == bool(args.archives):
        parser.error('lists takes no archive, a shifted set at least one')
    if args.check and args.what != 'lists':
        parser.error('--check goes with lists; what is unpacked is looked into anyway')
    with one_line_errors():
        if args.what == 'lists':
            counts = list_imagenet(args.root, args.workers, args.check)
            tell(args.root / facts_of('imagenet').path, counts)
            return
        counts = convert_variant(args.what, args.archives, args.root, args.workers)
        tell(args.root / facts_of(args.what).path, counts)
