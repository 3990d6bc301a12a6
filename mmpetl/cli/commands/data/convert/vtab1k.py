"""VTAB-1k into vtab-1k/: from a processed archive, an export, or TFDS.

Examples:
    mmpetl data convert vtab1k --processed vtab-1k.zip
    mmpetl data convert vtab1k --npz exported --tasks svhn dtd
    mmpetl data convert vtab1k --tfds ~/tensorflow_datasets

The export holds <task>/<split>.npz with uint8 `images` and `labels` (--npz), or
<task>/<split>/<label>/<picture> (--folders), for the splits train800, val200 and test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.datasets.convert import tfds, vtab


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--processed', nargs='+', type=Path, help='archives or folders, ready lists'
    )
    source.add_argument('--npz', type=Path, help='folder of arrays')
    source.add_argument('--folders', type=Path, help='folder of pictures by label')
    source.add_argument(
        '--tfds', type=Path, help='data folder of TensorFlow Datasets, sets prepared'
    )
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help='default: all 19')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.processed:
            if args.tasks:
                parser.error('--tasks does not go with --processed')
            found = vtab.convert_processed(args.processed, args.root, args.workers)
            for name, counts in found.items():
                tell(args.root / vtab.TASKS[name].path, counts)
            return
        export = (
            vtab.NpzExport(args.npz)
            if args.npz
            else vtab.FolderExport(args.folders)
            if args.folders
            else tfds.TFDSExport(args.tfds)
        )
        for facts in vtab.find_tasks(args.tasks):
            counts = vtab.convert_export(facts, export, args.root, args.workers)
            tell(args.root / facts.path, counts)
            if args.tfds:
                print(f'  drawn from {export.origin(facts)}')
