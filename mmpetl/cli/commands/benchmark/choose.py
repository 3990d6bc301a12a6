r"""Which method to take: what fits some limits, ranked with its uncertainty.

Examples:
    mmpetl benchmark choose --out work_dirs/bench/mini
    mmpetl benchmark choose --out work_dirs/bench/vtab --memory-gb 8 --folds
    mmpetl benchmark choose --out work_dirs/bench/vtab --trainable 300000 \
        --kind images --pictures 1000 --json choice.json

From records only, and from the cards of mmpetl benchmark scorecard where there are
some. A limit of which they say nothing excludes nobody, and that is said; --strict
leaves such methods out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.cards import read_cards
from mmpetl.benchmark.choosing import KINDS, Limits, choose
from mmpetl.benchmark.choosing_text import choice_text
from mmpetl.benchmark.records import RecordStore, write_json
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    limit = parser.add_argument_group('what a method must keep to')
    limit.add_argument('--memory-gb', type=float, help='peak of training, at most')
    limit.add_argument('--trainable', type=int, help='parameters, at most')
    limit.add_argument('--step-ms', type=float, help='of a training step, at most')
    limit.add_argument('--latency-ms', type=float, help='of a prediction, at most')
    limit.add_argument(
        '--folds', action='store_true', help='goes into the weights of the base'
    )
    limit.add_argument(
        '--strict', action='store_true', help='leave out what records do not tell'
    )
    part = parser.add_argument_group('which tasks')
    part.add_argument('--kind', help=', '.join(sorted(set(KINDS.values()))))
    part.add_argument('--pictures', type=int, help='training pictures, about')
    part.add_argument('--suite', nargs='+', help='only these, such as vtab')
    part.add_argument('--backbone', help='only this, such as ViT-B/16')
    part.add_argument('--protocol', choices=('honest', 'published'), default='honest')
    parser.add_argument('--json', help='also write the answer to this file')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        limits = Limits(
            memory_bytes=_times(args.memory_gb, 2**30),
            trainable=args.trainable,
            step_seconds=_times(args.step_ms, 1e-3),
            latency_seconds=_times(args.latency_ms, 1e-3),
            folds=args.folds,
            kind=args.kind,
            pictures=args.pictures,
            backbone=args.backbone,
            protocol=args.protocol,
            suites=args.suite,
            strict=args.strict,
        )
        store = RecordStore(args.out)
        records = store.all()
        if not records:
            store.check_all_read()
            raise PETLError(f'{args.out} holds no record; run a plan into it first')
        choices = choose(records, limits, read_cards(args.out, records))
        print('\n'.join(choice_text(choice, limits) for choice in choices), end='')
        if args.json:
            path = Path(args.json)
            asked = dataclasses.asdict(limits)
            found = [choice.to_json() for choice in choices]
            write_json(path, {'asked': asked, 'choices': found})
            print(path)
        store.check_all_read()


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
