"""Print a config as it is run: bases joined, data and preprocessing written out.

Example: python tools/misc/print_config.py configs/mini/digits.py \
    --cfg-options model.backbone.method.type=LoRA
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmpetl.cli.arguments import add_config_options, add_method_options, config_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, row of a table, mmdet::...py')
    parser.add_argument('--protocol', choices=('honest', 'published'))
    parser.add_argument('--stage', choices=('final', 'tune'))
    parser.add_argument('--save-path', type=Path, help='write it to this file too')
    add_method_options(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl import apis

    with apis.cli_errors():
        config = config_of(args, protocol=args.protocol, stage=args.stage)
        print(config.pretty_text)
        if args.save_path:
            args.save_path.parent.mkdir(parents=True, exist_ok=True)
            config.dump(args.save_path)


if __name__ == '__main__':
    main()
