"""Draw samples of a config's data as a model is given them, with their labels.

Example: python tools/analysis_tools/browse_dataset.py configs/mini/ade20k.py \
    --phase train --number 8 --out-dir work_dirs/browse
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmpetl.cli.arguments import add_config_options, add_method_options, config_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--phase', choices=('train', 'val', 'test'), default='train')
    parser.add_argument('--number', type=int, default=20, help='samples at most')
    parser.add_argument('--out-dir', type=Path, required=True, help='of the pictures')
    add_method_options(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl import apis
    from mmpetl.apis.browsing import browse_dataset

    with apis.cli_errors(of_run=True):
        config = config_of(args)
        files = browse_dataset(config, args.out_dir, args.phase, args.number)
        print(f'{len(files)} pictures: {args.out_dir}')


if __name__ == '__main__':
    main()
