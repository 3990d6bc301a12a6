"""Verify the records of a benchmark folder: does each say what its run did?

Examples:
    mmpetl benchmark verify work_dirs/bench/mini
    mmpetl benchmark verify work_dirs/bench/mini --from-delta
    mmpetl benchmark verify release --runs 'mini-digits--lora*' --retrain

Without an option every metric is computed from the predictions, and everything else is
held against log, config, delta, and base and data where they are here. --from-delta
tests each delta once more; --retrain trains each job once more. Each verdict is written
beside its record (verified.json). The exit code is 1 where a record is falsified, and 3
where none is but some could not be verified in full.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import os
import sys
from collections.abc import Sequence

from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.shipped import mini_data


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser, 'benchmark folder, or a release')
    parser.add_argument('--runs', nargs='+', help='only these, by id or pattern')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--from-delta', action='store_true', help='test every delta again')
    how.add_argument('--retrain', action='store_true', help='train every job again')
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the options of a job import, and name what no toolbox registers',
    )
    parser.add_argument(
        '--verbose', action='store_true', help='every check of each run'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        verify(args)


def verify(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from mmpetl.benchmark.verdicts import LEVELS, write_verdict
    from mmpetl.benchmark.verify import run_folders, verify_run
    from mmpetl.core import PETLError

    MMLogger.get_current_instance().setLevel('ERROR')
    level = 'retrained' if args.retrain else 'delta' if args.from_delta else 'files'
    folders = run_folders(args.out)
    for pattern in args.runs or ():
        if not any(fnmatch.fnmatchcase(f.name, pattern) for f in folders):
            raise PETLError(f'{args.out} holds no record of a run {pattern!r}')
    if args.runs:
        folders = [
            f for f in folders if any(fnmatch.fnmatchcase(f.name, p) for p in args.runs)
        ]
    # As run.py has it for mini plans; other recipes read below `data`.
    mini = all(folder.name.startswith('mini-') for folder in folders)
    if mini and mini_data().is_dir():
        os.environ.setdefault('MMPETL_DATA', str(mini_data()))
    states: collections.Counter[str] = collections.Counter()
    for folder in folders:
        verdict = verify_run(folder, level, args.trust)
        write_verdict(folder, verdict)
        states[verdict.status] += 1
        # What takes a while is said run by run.
        if verdict.status != 'verified' or args.verbose or level != 'files':
            print(f'{verdict.status}: {verdict.id}', flush=True)
        shown = (
            verdict.checks if args.verbose else verdict.falsified or verdict.unchecked
        )
        for check in shown:
            print(f'  {check.line}', flush=True)
    words = ', '.join(f'{count} {status}' for status, count in sorted(states.items()))
    print(f'{len(folders)} records {LEVELS[level]}: {words}')
    if states['falsified']:
        print(f'error: {states["falsified"]} records are falsified', file=sys.stderr)
        raise SystemExit(1)
    if states['not verified']:
        raise SystemExit(3)
