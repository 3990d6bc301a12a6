"""Count trainable parameters by owner: of a run or config, or methods x backbones.

Nothing is downloaded or loaded: the base is random, counts do not depend on it.

Examples:
    mmpetl analyse count configs/mona/ade20k.py
    mmpetl analyse count work_dirs/lora/mini/digits
    mmpetl analyse count --methods LoRA SSF --backbones vit_b16
    mmpetl analyse count --out counts.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmpetl import apis
from mmpetl.apis.counting import FULL_SIZE, count_config, count_pairs
from mmpetl.cli.arguments import add_config_or_run, check_out, config_of
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import registered_methods
from mmpetl.core.part_files import whole_file

COLUMNS = ('delta', 'selected', 'head', 'base')


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser, 'what', nargs='?', metavar='config')
    parser.add_argument('--config', help='the same, by name')
    parser.add_argument(
        '--methods',
        nargs='+',
        help='names, with their defaults (default: all)',
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        help=f'of {", ".join(FULL_SIZE)} (default: all)',
    )
    parser.add_argument('--out', help='write the counts to this JSON file')
    return parser


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    head = f'{row["method"]:14}{row["backbone"]:20}'
    if 'refused' in row:
        print(f'{head}{row["refused"]}', flush=True)
        return
    numbers = ''.join(f'{row[key]:>14,}' for key in COLUMNS)
    print(f'{head}{numbers}{row["percent"]:>10.3f}', flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.what and args.config:
        parser.error(f'the config is given twice, as {args.what} and {args.config}')
    args.config = args.config or args.what
    given = {f'--{n}': getattr(args, n) for n in ('methods', 'backbones')}
    if not args.config:
        of_config = ('method', 'method_options', 'base', 'cfg_options')
        given = {f'--{n.replace("_", "-")}': getattr(args, n, None) for n in of_config}
    unread = [flag for flag, value in given.items() if value]
    if unread:
        beside = 'beside' if args.config else 'without'
        parser.error(f'{unread[0]} says nothing {beside} a config')
    with apis.cli_errors():
        check_out(args.out)
        titles = ''.join(f'{key:>14}' for key in COLUMNS)
        print(f'{"method":14}{"backbone":20}{titles}{"% trains":>10}')
        if args.config:
            found = iter([count_config(config_of(args))])
        else:
            methods = args.methods or sorted(registered_methods())
            found = count_pairs(methods, args.backbones or list(FULL_SIZE))
        rows = []
        for row in found:
            show(row)
            rows.append(row)
        if args.out:
            text = json.dumps(rows, indent=2)
            with whole_file(args.out) as part:
                part.write_text(text, encoding='utf-8')
