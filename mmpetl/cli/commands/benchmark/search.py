"""Search settings on validation data, then train and read the test set once per seed.

Example: mmpetl benchmark search --methods LoRA SSF AdaptFormer \
    --recipe mini/digits --trials 12 --out work_dirs/bench/search

Every method tries the same number of different settings, its default being the first;
one whose space has no more tries all of them, and this is said. What is searched stands
in configs/<stem>/search_space.py. The same command goes on with a search that was
interrupted or killed, and does nothing where all is done. With more trials, a better
setting replaces the final runs; what they read of the test set counts on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpetl.cli.parsing import CommandParser
from mmpetl.shipped import mini_data


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('--methods', nargs='+', required=True, help='names or families')
    parser.add_argument('--recipe', required=True, help='mini/digits, vtab/svhn, ...')
    parser.add_argument('--trials', type=int, default=12, help='of each method')
    parser.add_argument('--seeds', nargs='+', type=int, default=[42, 43, 44])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/bench/search'))
    parser.add_argument(
        '--plan',
        help='preset or file whose options the runs share; mini for mini recipes',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the options of the plan import, and name what no toolbox registers',
    )
    from mmpetl.benchmark.cli import add_executor_args

    add_executor_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        from mmengine.logging import MMLogger

        from mmpetl.benchmark.cli import executor_of

        MMLogger.get_current_instance().setLevel('WARNING')
        executor = executor_of(args)
        methods, base, toolboxes = settings(args)
        try:
            search(args, executor, methods, base, toolboxes)
        except KeyboardInterrupt:
            print('error: interrupted; the same command goes on', file=sys.stderr)
            raise SystemExit(130) from None


def settings(args: argparse.Namespace) -> tuple[list[str], dict[str, Any], list[str]]:
    """Methods, the options that their runs share, and the toolboxes."""
    from mmpetl.benchmark.plan import (
        Plan,
        choose_methods,
        options_of,
        prepare_data,
        read_plan,
        resolve,
    )

    name = args.plan or ('mini' if args.recipe.startswith('mini/') else None)
    if name:
        change = {'methods': args.methods, 'recipes': [args.recipe], 'seeds': [42]}
        plan = read_plan(name, **change)
    else:
        plan = Plan('search', tuple(args.methods), (args.recipe,))
    if plan.data:
        os.environ.setdefault('MMPETL_DATA', str(mini_data()))
        prepare_data(plan, Path(os.environ['MMPETL_DATA']))
    resolved = resolve(plan, args.trust)
    for refusal in resolved.refused:
        print(f'not possible: {refusal.method}: {refusal.reason}', file=sys.stderr)
    refused = {r.method for r in resolved.refused}
    methods = [m for m in choose_methods(plan.methods) if m not in refused]
    base = {m: options_of(plan, m, args.recipe) for m in methods}
    return methods, base, list(resolved.toolboxes)


def search(
    args: argparse.Namespace,
    executor: Any,
    methods: list[str],
    base: dict[str, Any],
    toolboxes: list[str],
) -> None:
    from statistics import mean, stdev

    from mmpetl.benchmark.search import Search, shown
    from mmpetl.core import PETLError

    with shown(f'{args.recipe}: {args.trials} trials of each method') as watch:
        run = Search(
            methods,
            args.recipe,
            args.out,
            executor,
            args.trials,
            args.seeds,
            base,
            retries=args.retries,
            toolboxes=toolboxes,
            warn=lambda line: print(f'note: {line}', file=sys.stderr),
            watch=watch,
        )
        records = run.run()
    failed = 0
    for method, some in records.items():
        scores = [r.score for r in some if r.score is not None]
        failed += len(args.seeds) - len(scores)
        if not scores:
            continue
        spread = f' +- {stdev(scores):.2f}' if len(scores) > 1 else ''
        found = some[0].search
        all_of = ', all there are' if found['tried'] == found['settings'] else ''
        print(
            f'{method}: {mean(scores):.2f}{spread} (n={len(scores)}) on the test set, '
            f'{read_times(some)}; validation {found["default_value"]} -> '
            f'{found["best_value"]} by trial {found["best"]}; {found["tried"]} '
            f'settings tried{all_of}'
        )
    if failed:
        raise PETLError(f'{failed} final runs failed; see {args.out}/sweep.log')


def read_times(records: list[Any]) -> str:
    """How often the test set was read, by these runs and by those they replaced."""
    from mmpetl.benchmark.records import earlier_reads

    own = sum(r.test_reads - earlier_reads(r.search, r.job.seed) for r in records)
    text = f'read {own} times in {len(records)} runs'
    earlier = records[0].search['earlier']
    if earlier:
        more = sum(item['test_reads'] for item in earlier)
        text += (
            f', and {more} times before in {len(earlier)} runs of settings that are no '
            'longer the best'
        )
    return text
