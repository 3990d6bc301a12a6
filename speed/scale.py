"""What a benchmark of many jobs costs beside its training: plan to page.

Example: python speed/scale.py --jobs 30000 --executors local ray

Every job is one of a plan whose runs are simulated: the worker holds the job, writes a
record with curves, and answers, as of a real one. Each part runs in a process of its
own, so that seconds and peak memory are its own; the seconds of cores are beside those
of the clock, for a machine that does other things, too. Workers of the local executor
do many jobs each (--reuse), since a process for each is the price of keeping real runs
apart and is the same for all of them.

Disks differ, and one differs from itself: ext4 takes no inode that was freed within the
last minutes, and looks at each of them whenever it makes one. Measure on a disk where
nothing was deleted for five minutes; what is made here is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / 'tests' / 'benchmark'
PARTS = ('plan', 'schedule', 'tables', 'again', 'page')
RECIPES = 'vtab/*'


def simulated_plan(jobs: int) -> dict:
    """A plan of at least so many jobs: methods of images, VTAB, as many seeds."""
    return {
        'name': 'simulated',
        'methods': ['all'],
        'recipes': [RECIPES],
        'seeds': list(range(1, 2 + jobs // 500)),
    }


def plan(out: Path, jobs: int, executor: str) -> str:
    from mmpetl.benchmark.plan import parse_plan, resolve, write_plan

    resolved = resolve(parse_plan(simulated_plan(jobs)))
    resolved = type(resolved)(
        resolved.plan, resolved.jobs[:jobs], resolved.refused, resolved.toolboxes
    )
    write_plan(resolved, out)
    return f'{len(resolved.jobs)} jobs'


def schedule(out: Path, jobs: int, executor: str, reuse: int = 2000) -> str:
    from mmpetl.benchmark.executors import make_executor
    from mmpetl.benchmark.plan import read_jobs
    from mmpetl.benchmark.progress import Progress
    from mmpetl.benchmark.sweep import Sweep

    options = {'reuse': reuse} if executor == 'local' else {}
    # Two: what every machine has.
    where = make_executor(executor, workers=2, **options)
    found, _ = read_jobs(out)
    progress = Progress('simulated')
    sweep = Sweep(found, out, where, run='simulated:run', watch=progress)
    summary = sweep.run()
    assert summary.done + len(summary.failed) == len(found), summary
    return f'{summary.ran} outcomes'


def tables(out: Path, jobs: int, executor: str) -> str:
    from mmpetl.benchmark.records import RecordStore
    from mmpetl.benchmark.render import render
    from mmpetl.benchmark.tables import build_tables

    records = RecordStore(out).all(curves=False)
    texts = [render(table, 'md', 'task') for table in build_tables(records)]
    return f'{len(records)} records, {sum(map(len, texts)) >> 10} KiB'


def page(out: Path, jobs: int, executor: str) -> str:
    from mmpetl.benchmark.report.page import write_report

    return f'{write_report(out).stat().st_size >> 20} MiB'


WORK: dict[str, Callable[[Path, int, str], str]] = {
    'plan': plan,
    'schedule': schedule,
    'tables': tables,
    'again': tables,
    'page': page,
}
WORDS = {
    'plan': 'plan to jobs',
    'schedule': 'schedule, simulated outcomes',
    'tables': 'tables, first time',
    'again': 'tables, from the index',
    'page': 'report page',
}


def measure(part: str, out: Path, jobs: int, executor: str) -> dict:
    """Seconds and memory of a part, in a process of its own."""
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{TESTS}'}
    env.setdefault('MMPETL_DATA', str(out / 'data'))
    command = [sys.executable, __file__, '--one', part, '--out', str(out)]
    command += ['--jobs', str(jobs), '--executors', executor]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f'{part} failed')
    return json.loads(done.stdout.splitlines()[-1])


def one(part: str, out: Path, jobs: int, executor: str) -> None:
    """What the process of a part does."""
    import mmpetl.benchmark.plan
    import mmpetl.benchmark.sweep  # noqa: F401  libraries are no part of it

    began = time.perf_counter(), _cores()
    said = WORK[part](out, jobs, executor)
    facts = {
        'seconds': time.perf_counter() - began[0],
        'cores': _cores() - began[1],
        'mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        'said': said,
    }
    print(json.dumps(facts))


def _cores() -> float:
    """Seconds of cores of this process; those of the runner, not of its workers."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table of all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--jobs', type=int, default=30_000)
    parser.add_argument('--executors', nargs='+', default=['local'])
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--out', type=Path, help='folder to work in and to keep')
    parser.add_argument('--one', choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.out, args.jobs, args.executors[0])
        return
    print('| part | jobs | s | s of a core | MiB | |')
    print('| :--- | ---: | ---: | ---: | ---: | :--- |')
    with tempfile.TemporaryDirectory() as folder:
        for executor in args.executors:
            out = (args.out or Path(folder)) / executor
            out.mkdir(parents=True, exist_ok=True)
            for part in args.parts:
                facts = measure(part, out, args.jobs, executor)
                words = WORDS[part]
                if part == 'schedule':
                    words += f' ({executor})'
                print(
                    f'| {words} | {args.jobs:,} | {facts["seconds"]:.1f} | '
                    f'{facts["cores"]:.1f} | {facts["mib"]:.0f} | {facts["said"]} |',
                    flush=True,
                )


if __name__ == '__main__':
    main()
