"""Push the delta of a run to the hub of Hugging Face, with a card of its record.

Examples:
    mmpetl push work_dirs/lora/mini/digits me/digits --licence apache-2.0
    mmpetl push deltas/digits_lora.safetensors me/digits --hub work_dirs/hub

A folder, a checkpoint and a published delta know their config. Of a folder the best
checkpoint is taken, else the newest, and the record of the benchmark where one lies in
it. --hub is a folder that stands for the hub, as the variable MMPETL_HUB names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_options, add_metrics, as_metrics
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('run', help='folder of a run, checkpoint or published delta')
    parser.add_argument('repository', metavar='USER/NAME', help='where to')
    parser.add_argument('--config', help='config of the run, where it has another')
    parser.add_argument('--record', help='record.json of a run of the benchmark')
    parser.add_argument('--data', help='what it was trained on, if no record says it')
    parser.add_argument('--protocol', help='how the figures were measured, likewise')
    parser.add_argument('--base', help='name of the base on the hub, timm/NAME')
    parser.add_argument('--licence', help='of the base, where its file does not say it')
    parser.add_argument('--picture', help='PNG or JPEG for the card')
    parser.add_argument('--hub', help='folder that stands for the hub')
    parser.add_argument(
        '--private', action='store_true', default=None, help='a new repository is'
    )
    add_metrics(parser)
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, open_run, push_to_hub
    from mmpetl.apis.model import filled_model

    with cli_errors():
        metrics = as_metrics(args.metrics)
        run = open_run(args.run, args.config, args.cfg_options)
        model, found = filled_model(run)
        record, beside = args.record, Path(args.run) / 'record.json'
        if record is None and beside.is_file():
            record = beside
        if metrics is None and record is None:
            metrics = found
        place = push_to_hub(
            model,
            args.repository,
            config=run.config,
            record=record,
            metrics=metrics,
            data=args.data,
            protocol=args.protocol,
            base=args.base,
            licence=args.licence,
            picture=args.picture,
            hub=args.hub,
            private=args.private,
        )
    print(f'{place}: the delta, and README.md, its card')
