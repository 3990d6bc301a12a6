"""Print a config as it is run: bases joined, data and preprocessing written out.

Examples:
    mmpetl config configs/lora/vtab/svhn.py
    mmpetl config mini/digits --method LoRA rank=4 --save-path digits.py
    mmpetl config work_dirs/lora/mini/digits
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_or_run, config_of
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser)
    parser.add_argument('--protocol', choices=('honest', 'published'))
    parser.add_argument('--stage', choices=('final', 'tune'))
    parser.add_argument('--save-path', type=Path, help='write it to this file too')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl import apis

    with apis.cli_errors():
        config = config_of(args, protocol=args.protocol, stage=args.stage)
        print(config.pretty_text)
        if args.save_path:
            args.save_path.parent.mkdir(parents=True, exist_ok=True)
            config.dump(args.save_path)
