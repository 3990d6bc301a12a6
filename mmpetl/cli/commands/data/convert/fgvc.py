r"""A fine-grained set into fgvc/: the split files of VPT and the official pictures.

Only pictures that a split names are written; one that no archive holds is an error.
Copies of Stanford Cars, which number their pictures otherwise, need its annotation
files, too: cars_annos.mat, cars_train_annos.mat and cars_test_annos_withlabels.mat.

Examples:
    mmpetl data convert fgvc cub_200_2011 --splits vpt_splits.zip \
        CUB_200_2011.tgz
    mmpetl data convert fgvc stanford_cars --splits vpt_splits.zip \
        cars_train.tgz cars_test.tgz car_devkit.tgz cars_annos.mat \
        cars_test_annos_withlabels.mat
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import CATALOG, facts_of
from mmpetl.datasets.convert.fgvc import convert_fgvc
from mmpetl.datasets.items import folder_of


def make_parser() -> CommandParser:
    names = [facts.id for facts in CATALOG.values() if facts.layout == 'fgvc']
    parser = parser_for(__name__)
    parser.add_argument('name', choices=names, help='which of the five sets')
    parser.add_argument(
        'archives', nargs='+', type=Path, help='pictures (and .mat files)'
    )
    parser.add_argument(
        '--splits',
        type=Path,
        required=True,
        help='archive or folder with train.json, val.json and test.json',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with one_line_errors():
        counts = convert_fgvc(
            args.name, args.splits, args.archives, args.root, args.workers
        )
        tell(folder_of(facts_of(args.name), args.root), counts)
