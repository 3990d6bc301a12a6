"""Draw the learning rate, or the momentum, of every step of a run or a config.

Examples:
    mmpetl analyse schedule work_dirs/lora/mini/digits --out schedule.png
    mmpetl analyse schedule mini/digits --epoch-length 16 --out schedule.png

Groups of parameters that are stepped alike are one curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_or_run, config_of
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser)
    parser.add_argument('--out', type=Path, required=True, help='picture, .png')
    parser.add_argument('--value', choices=('lr', 'momentum'), default='lr')
    parser.add_argument(
        '--epoch-length',
        type=int,
        help='steps of an epoch (default: those of the data)',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
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
