"""The trust scorecard of a benchmark folder's image classifiers.

Examples:
    mmpetl benchmark scorecard work_dirs/bench/mini --tasks digits
    mmpetl benchmark scorecard work_dirs/bench/mini --methods LoRA --limit 200
    mmpetl benchmark scorecard bench --upstream configs/imagenet_val.py

Calibration, strange pictures (test sets of the folder's other tasks), corrupted ones,
what is left of the base, agreement, latency, operations, energy, and what training
took; docs/scorecard.md says what each is. Nothing is trained. What is measured is kept;
run again to add methods. Writes <out>/scorecard (scorecard.md, .csv, .json), and
pictures for the report page to <out>/analysis.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--tasks', nargs='+', help='default: all')
    parser.add_argument('--methods', nargs='+', help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, help='default: all')
    parser.add_argument('--bins', type=int, default=15, help='of the calibration error')
    parser.add_argument('--kinds', nargs='+', default=[], help='corruptions; all')
    parser.add_argument('--severities', nargs='+', type=int, default=[1, 3, 5])
    parser.add_argument(
        '--limit', type=int, default=1000, help='most pictures of a shifted set (1000)'
    )
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 32])
    parser.add_argument('--rounds', type=int, default=11, help='timed calls of each')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument(
        '--upstream', help="config whose test set is the base's own task (forgetting)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        write(args)


def write(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from tqdm import tqdm

    from mmpetl.analysis import selection
    from mmpetl.benchmark.scorecard import Settings, lines_of, measure
    from mmpetl.benchmark.scorecard_files import draw, write_files
    from mmpetl.core import check_range
    from mmpetl.datasets.corruptions import CORRUPTIONS, check_corruption

    MMLogger.get_current_instance().setLevel('ERROR')
    for kind in args.kinds or CORRUPTIONS:
        for severity in args.severities:
            check_corruption(kind, severity)
    for name in ('bins', 'limit', 'rounds', *(['batches'] if args.batches else [])):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            check_range('scorecard', f'--{name}', value, 1)
    records = selection.choose(
        selection.finished(args.out),
        tasks=args.tasks,
        methods=args.methods,
        seeds=args.seeds,
    )
    settings = Settings(
        args.bins,
        tuple(args.kinds),
        tuple(args.severities),
        args.limit,
        tuple(args.batches),
        args.rounds,
        args.device,
        args.upstream,
    )
    with tqdm(total=len(records), unit='run', file=sys.stderr) as bar:
        cards = measure(args.out, records, settings, lambda record: bar.update())
    lines = lines_of(args.out, records, cards)
    for path in (*write_files(args.out, lines, settings), *draw(args.out, lines)):
        print(path)
