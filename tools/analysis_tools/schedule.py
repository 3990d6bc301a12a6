"""Draw the learning rate, or the momentum, of every step of a config.

Example: python tools/analysis_tools/schedule.py configs/mini/digits.py \
    --epoch-length 16 --out schedule.png --cfg-options model.backbone.method.type=LoRA
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
    parser.add_argument('--out', type=Path, required=True, help='picture, .png')
    parser.add_argument('--value', choices=('lr', 'momentum'), default='lr')
    parser.add_argument(
        '--epoch-length',
        type=int,
        help='steps of an epoch (default: those of the data)',
    )
    add_method_options(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl import apis
    from mmpetl.analysis.curves import draw_curves
    from mmpetl.apis.schedule import schedule_of

    with apis.cli_errors(of_run=True):
        config = config_of(args)
        found = schedule_of(config, args.value, args.epoch_length)
        curves = {name: (range(len(y)), y) for name, y in found.items()}
        draw_curves(
            {args.value: curves}, args.out, f'Schedule of {args.config}', 'Schedules'
        )
        for name, y in found.items():
            print(
                f'{name}: {y[0]:.3g} at first, {y.max():.3g} at most, {y[-1]:.3g} last'
            )
        print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
