"""Publish the delta of a run: NAME.safetensors and NAME.json, without pickle.

Examples:
    mmpetl publish work_dirs/lora/mini/digits deltas/digits_lora
    mmpetl publish work_dirs/lora/mini/digits/epoch_40.pth deltas/digits_lora \
        --metrics accuracy/top1=96.2

A folder and a checkpoint know their config; another one goes in front of them. Of a
folder the best checkpoint is taken, else the newest.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_options, add_metrics, as_metrics, runs
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument(
        'config', nargs='?', help='config of the run, where it has another'
    )
    run = parser.add_argument(
        'checkpoint', help='folder of a run, checkpoint (.pth), or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument('out', help='path without a suffix')
    add_metrics(parser)
    parser.add_argument(
        '--packed',
        action='store_true',
        help='hold weights that take few values in few bits; such a delta computes '
        'the same and cannot be trained further',
    )
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, export_delta, open_run, read_delta

    with cli_errors():
        metrics = as_metrics(args.metrics)
        run = open_run(args.checkpoint, args.config, args.cfg_options)
        path = export_delta(
            run.weights, run.config, args.out, metrics, packed=args.packed
        )
        delta = read_delta(path)
    size = delta.meta['tensors']
    print(f'{path}: {size["values"]:,} values, {size["bytes"]:,} bytes')
    base = delta.meta['base'] or 'a base without a file'
    print(f'{path.with_suffix(".json")}: {delta.meta["method"]} on {base}')
