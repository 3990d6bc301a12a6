"""Count trainable parameters by owner: of a config, or of methods x backbones.

Nothing is downloaded or loaded: the base is random, counts do not depend on it.

Examples:
    python tools/analysis_tools/count_params.py --config configs/mona/ade20k.py
    python tools/analysis_tools/count_params.py --methods LoRA SSF --backbones vit_b16
    python tools/analysis_tools/count_params.py --out counts.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from mmpetl import apis
from mmpetl.apis.counting import FULL_SIZE, count_config, count_pairs
from mmpetl.config.cli import DictAction
from mmpetl.core import registered_methods

COLUMNS = ('delta', 'selected', 'head', 'base')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', help='count the model of this config')
    parser.add_argument(
        '--methods',
        nargs='+',
        default=sorted(registered_methods()),
        help='names, with their defaults (default: all)',
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        default=list(FULL_SIZE),
        help=f'of {", ".join(FULL_SIZE)} (default: all)',
    )
    parser.add_argument('--out', help='write the counts to this JSON file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    head = f'{row["method"]:14}{row["backbone"]:20}'
    if 'refused' in row:
        print(f'{head}{row["refused"]}', flush=True)
        return
    numbers = ''.join(f'{row[key]:>14,}' for key in COLUMNS)
    print(f'{head}{numbers}{row["percent"]:>10.3f}', flush=True)


def main() -> None:
    args = parse_args()
    with apis.cli_errors():
        titles = ''.join(f'{key:>14}' for key in COLUMNS)
        print(f'{"method":14}{"backbone":20}{titles}{"% trains":>10}')
        if args.config:
            config = apis.load_config(args.config, args.cfg_options)
            found = iter([count_config(config)])
        else:
            found = count_pairs(args.methods, args.backbones)
        rows = []
        for row in found:
            show(row)
            rows.append(row)
    if args.out:
        with open(args.out, 'w', encoding='utf-8') as file:
            json.dump(rows, file, indent=2)


if __name__ == '__main__':
    main()
