"""Draw the subsets of several sizes from a training list, by a fixed seed.

Reads many_shot/<name>/train.txt or imagenet/train.txt, as mmpetl data convert
writes them, and writes <size>/{train,val,trainval}.txt beside it. Seed 0 is the draw
that the recipes speak of.

Example:
    mmpetl data draw cifar100 imagenet --data-root /data
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import check_range
from mmpetl.datasets.subsets import sets_of, write_subsets


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument(
        'names',
        nargs='+',
        metavar='NAME',
        help='cifar100, resisc45, clevr_dist or imagenet',
    )
    parser.add_argument(
        '--data-root',
        type=Path,
        default=Path(os.environ.get('MMPETL_DATA', 'data')),
        help='default: the environment variable MMPETL_DATA, else data',
    )
    parser.add_argument('--seed', type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, draw, tell."""
    args = make_parser().parse_args(argv)
    with cli_errors():
        check_range('draw_subsets', '--seed', args.seed, 0)
        for name in args.names:
            sets = sets_of(name)
            folder = args.data_root / sets[0].path
            stamp = write_subsets(folder, sets, args.seed)
            for id, (train, val) in stamp['sizes'].items():
                print(f'{id:16} {train:>9,} training and {val:,} validation pictures')
    return 0
