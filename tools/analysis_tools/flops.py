"""Count the operations and parameters of a config's model.

Example: python tools/analysis_tools/flops.py configs/mini/digits.py \
    --cfg-options model.backbone.method.type=LoRA

Two operations for each multiplication with its addition, where upstream's get_flops
counts one; fused attention counts as the matrix products that it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from mmpetl.cli.arguments import add_config_options, add_method_options, config_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the input, in pixels'
    )
    parser.add_argument('--json', action='store_true', help='for a program')
    add_method_options(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl import apis
    from mmpetl.apis.operations import count_operations

    with apis.cli_errors(of_run=True):
        config = config_of(args)
        found = count_operations(config, args.shape)
        if args.json:
            print(json.dumps(dataclasses.asdict(found)))
            return
        print(f'input       {" x ".join(map(str, found.shape))}')
        print(f'operations  {found.flops / 1e9:,.3f} GFLOPs ', end='')
        print(f'({found.flops / 2e9:,.3f} G multiplications with additions)')
        print(f'parameters  {found.parameters:,}, of which {found.trainable:,} train')


if __name__ == '__main__':
    main()
