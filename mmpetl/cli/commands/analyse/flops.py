"""Count the operations and parameters of the model of a run or a config.

Examples:
    mmpetl analyse flops work_dirs/lora/mini/digits
    mmpetl analyse flops deltas/digits_lora.safetensors --shape 64 64
    mmpetl analyse flops mmpetl::mini/digits.py --method LoRA rank=16

Two operations for each multiplication with its addition, where upstream's get_flops
counts one; fused attention counts as the matrix products that it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_or_run, config_of
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser)
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the input, in pixels'
    )
    parser.add_argument('--json', action='store_true', help='for a program')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl import apis
    from mmpetl.apis.operations import count_operations

    with apis.cli_errors(of_run=True):
        found = count_operations(config_of(args), args.shape)
        if args.json:
            print(json.dumps(dataclasses.asdict(found)))
            return
        print(f'input       {" x ".join(map(str, found.shape))}')
        print(f'operations  {found.flops / 1e9:,.3f} GFLOPs ', end='')
        print(f'({found.flops / 2e9:,.3f} G multiplications with additions)')
        print(f'parameters  {found.parameters:,}, of which {found.trainable:,} train')
