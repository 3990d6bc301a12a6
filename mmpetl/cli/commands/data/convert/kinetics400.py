"""Lists of Kinetics-400 for the clips in kinetics400/videos_train and videos_val.

A clip's class is what the CSV of its split says; without one, the folder it lies in,
which must be called like a class. Blanks in folders become underscores. Clips that do
not decode are left out and named in kinetics400_<split>_unreadable.txt: state your
counts with a result.

Example:
    mmpetl data convert kinetics400 --val-csv validate.csv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.videos import convert_kinetics400


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    for split in ('train', 'val'):
        parser.add_argument(
            f'--{split}-csv',
            type=Path,
            help='of the release; it is believed before folder names',
        )
    parser.add_argument(
        '--no-check', action='store_true', help='list clips without opening them'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    tables = {
        split: path
        for split, path in (('train', args.train_csv), ('val', args.val_csv))
        if path
    }
    with one_line_errors():
        counts = convert_kinetics400(
            args.root, tables, args.workers, check=not args.no_check
        )
        tell(args.root / facts_of('kinetics400').path, counts)
