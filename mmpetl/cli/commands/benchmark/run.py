"""Run a plan of the benchmark, or what is left of it.

Example: mmpetl benchmark run mini --out work_dirs/bench/mini

A plan is a preset (mini, vtab, fgvc, video, dense, v-petl) or a YAML file. The same
command goes on with a run that was interrupted or killed, and does nothing where all is
done. --dry-run prints the jobs and what they will cost. Several of these may run on one
folder, also on several machines: no job is done twice.
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
    add_arguments(parser)
    parser.add_argument('--dry-run', action='store_true', help='print, run nothing')
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is run, and where."""
    parser.add_argument('plan', help='preset, or a .yaml file')
    parser.add_argument('--out', type=Path, help='default: work_dirs/bench/<plan>')
    parser.add_argument(
        '--no-calibration',
        action='store_true',
        help='where nothing is run: take no steps to learn what jobs cost',
    )
    part = parser.add_argument_group('a part of the plan')
    part.add_argument('--methods', nargs='+', help='names, stems, families or all')
    part.add_argument('--recipes', nargs='+', help='names or patterns')
    part.add_argument('--seeds', nargs='+', type=int)
    part.add_argument('--include', nargs='+', help='METHOD, FAMILY, METHOD@RECIPE ...')
    part.add_argument('--exclude', nargs='+')
    part.add_argument('--protocol', help='honest or published')
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the options of the plan import, and name what no toolbox registers',
    )
    parser.add_argument(
        '--stop-after',
        type=int,
        default=20,
        metavar='N',
        help='begin no more jobs when N have failed with the same words; 0: never',
    )
    from mmpetl.benchmark.cli import add_executor_args

    add_executor_args(parser)


def main(argv: Sequence[str] | None = None) -> None:
    carry_out(make_parser().parse_args(argv))


def carry_out(args: argparse.Namespace) -> None:
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        from mmengine.logging import MMLogger

        from mmpetl.benchmark.cli import executor_of
        from mmpetl.benchmark.plan import prepare_data, read_plan, resolve, write_plan
        from mmpetl.benchmark.sweep import check_size
        from mmpetl.core import check_range

        MMLogger.get_current_instance().setLevel('WARNING')
        check_range('the benchmark', '--retries', args.retries, 0)
        check_range('the benchmark', '--stop-after', args.stop_after, 0)
        changes = {
            key: getattr(args, key)
            for key in (
                'methods',
                'recipes',
                'seeds',
                'include',
                'exclude',
                'protocol',
            )
        }
        plan = read_plan(args.plan, **changes)
        executor = executor_of(args)
        out = args.out or Path('work_dirs/bench') / plan.name
        if plan.data:
            os.environ.setdefault('MMPETL_DATA', str(mini_data()))
            prepare_data(plan, Path(os.environ['MMPETL_DATA']))
        resolved = resolve(plan, args.trust)
        if args.executor != 'ray':  # a cluster is known when it is reached
            check_size(resolved.jobs, executor)
        if args.dry_run:
            dry_run(args, resolved, out, executor)
            return
        write_plan(resolved, out)
        run(args, resolved, out, executor)


def dry_run(args: argparse.Namespace, resolved: Any, out: Path, executor: Any) -> None:
    from mmpetl.benchmark.cost import calibrate, to_calibrate
    from mmpetl.benchmark.progress import Progress, print_plan

    unknown = to_calibrate(resolved.jobs, out)
    if unknown and not args.no_calibration:
        with Progress('calibration').show() as watch:
            failed = calibrate(unknown, out, executor, resolved.toolboxes, watch)
        for name, note in list(failed.items())[:5]:
            print(f'cost unknown: {name}: {note[:300]}')
    print_plan(resolved, out, executor.slots, args.retries)


def run(args: argparse.Namespace, resolved: Any, out: Path, executor: Any) -> None:
    from mmpetl.benchmark.cost import estimates
    from mmpetl.benchmark.progress import Progress, duration
    from mmpetl.benchmark.sweep import Sweep
    from mmpetl.core import PETLError

    known = estimates(resolved.jobs, out)
    progress = Progress(resolved.plan.name, len(resolved.refused), known)
    try:
        with progress.show() as watch:
            sweep = Sweep(
                resolved.jobs,
                out,
                executor,
                args.retries,
                resolved.toolboxes,
                watch=watch,
                stop_after=args.stop_after,
                memory={
                    name: cost.memory_bytes
                    for name, cost in known.items()
                    if cost.memory_bytes is not None
                },
            )
            summary = sweep.run()
    except KeyboardInterrupt:
        print('error: interrupted; the same command goes on', file=sys.stderr)
        raise SystemExit(130) from None
    print(
        f'{summary.done} of {len(resolved.jobs)} jobs done, {summary.ran} of them in '
        f'this call ({duration(summary.seconds)}), {len(summary.failed)} failed, '
        f'{len(resolved.refused)} pairs not possible: {out}'
    )
    if summary.stopped:
        print(f'stopped: {summary.stopped} (--stop-after)', file=sys.stderr)
    if summary.failed:
        name, note = next(iter(summary.failed.items()))
        raise PETLError(
            f'{len(summary.failed)} jobs failed; {name} for one: {note[:300]} '
            f'({out}/runs/{name}/console.log)'
        )
