"""Draw samples of the data of a run or a config, as a model is given them.

Examples:
    mmpetl analyse browse work_dirs/lora/mini/digits --out-dir work_dirs/browse
    mmpetl analyse browse mini/ade20k --phase train --number 8 --out-dir drawn

Labels, boxes and segments are drawn on each, behind every step of the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_or_run, config_of
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser)
    parser.add_argument('--phase', choices=('train', 'val', 'test'), default='train')
    parser.add_argument('--number', type=int, default=20, help='samples at most')
    parser.add_argument('--out-dir', type=Path, required=True, help='of the pictures')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl import apis
    from mmpetl.apis.browsing import browse_dataset

    with apis.cli_errors(of_run=True):
        config = config_of(args)
        files = browse_dataset(config, args.out_dir, args.phase, args.number)
        print(f'{len(files)} pictures: {args.out_dir}')
