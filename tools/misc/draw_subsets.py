"""Draw the subsets of several sizes from a training list, by a fixed seed.

Reads many_shot/<name>/train.txt or imagenet/train.txt, as tools/dataset_converters
writes them, and writes <size>/{train,val,trainval}.txt beside it. Seed 0 is the draw
that the recipes speak of.

Example:
    python tools/misc/draw_subsets.py cifar100 imagenet --data-root /data
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.core import check_range
from mmpetl.datasets.subsets import sets_of, write_subsets


def main() -> int:
    """Parse, draw, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_args()
    with cli_errors():
        check_range('draw_subsets', '--seed', args.seed, 0)
        for name in args.names:
            sets = sets_of(name)
            folder = args.data_root / sets[0].path
            stamp = write_subsets(folder, sets, args.seed)
            for id, (train, val) in stamp['sizes'].items():
                print(f'{id:16} {train:>9,} training and {val:,} validation pictures')
    return 0


if __name__ == '__main__':
    sys.exit(main())
