r"""Something-Something V2: .webm clips to .mp4, and the lists.

Example:
    mmpetl data convert ssv2 --videos 20bn-something-something-v2 \
        --labels labels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.videos import convert_ssv2


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument(
        '--videos', type=Path, required=True, help='folder of the .webm clips'
    )
    parser.add_argument(
        '--labels', type=Path, required=True, help='folder of the annotation files'
    )
    parser.add_argument(
        '--encoder',
        choices=('ffmpeg', 'opencv'),
        default='ffmpeg',
        help='ffmpeg: H.264, CRF 18; opencv: MPEG-4 part 2, a larger loss',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors():
        counts = convert_ssv2(
            args.videos, args.labels, args.root, args.encoder, args.workers
        )
        tell(args.root / facts_of('ssv2').path, counts)
