"""What a plan would cost on a stated device, from counted operations.

Examples:
    python tools/benchmark/cost_on_paper.py
    python tools/benchmark/cost_on_paper.py vtab --seeds 3 --peak 989 --device H100
    python tools/benchmark/cost_on_paper.py --count --write       # docs/cost.md anew
    python tools/benchmark/cost_on_paper.py --check

Operations of every pair of backbone and method are counted once, without memory or
weights (--count), and kept in docs/cost/flops.csv. From there to days it is arithmetic
on the assumptions that the flags state.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ROOT / 'docs' / 'cost' / 'flops.csv'
PAGE = ROOT / 'docs' / 'cost.md'
PLAN = 'v-petl'


def parse_args() -> argparse.Namespace:
    from mmpetl.benchmark.paper import Assumptions

    usual = Assumptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('plan', nargs='?', default=PLAN, help='preset or .yaml file')
    parser.add_argument('--seeds', type=int, help="how many; the plan's")
    parser.add_argument('--device', default=usual.device, help='name of what is meant')
    parser.add_argument('--peak', type=float, default=usual.peak_tflops, help='TFLOP/s')
    parser.add_argument('--precision', default=usual.precision)
    parser.add_argument(
        '--alone', type=float, default=usual.alone, help='share of the peak of a job'
    )
    parser.add_argument(
        '--packed', type=float, default=usual.packed, help='of small jobs that share'
    )
    parser.add_argument('--overhead', type=float, default=usual.overhead)
    parser.add_argument('--count', action='store_true', help='count what is lacking')
    parser.add_argument('--write', action='store_true', help='write docs/cost.md')
    parser.add_argument('--check', action='store_true', help='say whether it is stale')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        return report(args)


def report(args: argparse.Namespace) -> int:
    from mmpetl.benchmark.paper import Assumptions
    from mmpetl.benchmark.paper_tables import tables
    from mmpetl.core import PETLError, check_range

    for name in ('alone', 'packed'):
        check_range('cost', f'--{name}', getattr(args, name), 1e-6, 1)
    check_range('cost', '--overhead', args.overhead, 0, 0.99)
    check_range('cost', '--peak', args.peak, 1e-6)
    given = dataclasses.replace(
        Assumptions(),
        device=args.device,
        peak_tflops=args.peak,
        precision=args.precision,
        alone=args.alone,
        packed=args.packed,
        overhead=args.overhead,
    )
    paired, seeds = pairs(args)
    parts = tables(paired, args.seeds or seeds, given)
    if not (args.write or args.check):
        print('\n\n'.join(parts.values()))
        return 0
    if args.plan != PLAN or given != Assumptions():
        raise PETLError('docs/cost.md is of the plan v-petl and the usual assumptions')
    old = new = PAGE.read_text(encoding='utf-8')
    for name, content in parts.items():
        new = replaced(new, name, content)
    if new == old:
        return 0
    if args.check:
        print(f'stale: {PAGE.relative_to(ROOT)}')
        return 1
    PAGE.write_text(new, encoding='utf-8')
    print(f'written: {PAGE.relative_to(ROOT)}')
    return 0


def replaced(text: str, name: str, content: str) -> str:
    """A page with new text between the marks of a name."""
    from mmpetl.core import PETLError

    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    if begin not in text or end not in text:
        raise PETLError(f'{PAGE} has no {begin} ... {end} to write between')
    before, _, rest = text.partition(begin)
    return f'{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}'


def pairs(args: argparse.Namespace) -> tuple[list[Any], int]:
    """Work and operations of every pair of the plan, and its number of seeds."""
    from mmpetl.benchmark.paper import Counter
    from mmpetl.benchmark.plan import read_plan
    from mmpetl.core import PETLError

    plan = read_plan(args.plan)
    known = read_counts()
    counter = Counter(known)
    found: list[Any] = []
    failed: dict[tuple[str, str], str] = {}
    for recipe, work, config, methods in composed(plan):
        from mmpetl.benchmark.paper import group_of

        group = group_of(config, recipe)
        for method, spec in methods.items():
            if (group, method) in failed:
                continue
            if (group, method) not in known:
                if not args.count:
                    raise PETLError(
                        f'{method} on {group} is not counted yet; --count counts it'
                    )
                try:
                    counter.count(config, recipe, spec)
                except (PETLError, RuntimeError, ValueError) as error:
                    failed[group, method] = f'{method} on {group}: {error}'
                    said = f'not counted: {failed[group, method]}'
                    print(said, file=sys.stderr, flush=True)
                    continue
                write_counts(known)
                print(f'counted {method} on {group}', file=sys.stderr, flush=True)
            found.append((work, known[group, method]))
    if failed:
        first = next(iter(failed.values()))
        raise PETLError(f'{len(failed)} pairs cannot be counted; {first}')
    return found, len(plan.seeds)


def composed(plan: Any) -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Every recipe of a plan, with the methods that its backbone can serve."""
    from mmpetl.benchmark.job_config import split_options
    from mmpetl.benchmark.paper import work_of
    from mmpetl.benchmark.plan import (
        Support,
        choose_methods,
        choose_recipes,
        options_of,
    )
    from mmpetl.config.compose import compose
    from mmpetl.core import with_arguments

    served: dict[str, dict[str, Any]] = {}
    for recipe in choose_recipes(plan.recipes):
        config = compose(recipe, 'LinearProbe')
        kind = repr(config.model.backbone.backbone)
        if kind not in served:
            support, served[kind] = Support(config), {}
            for method in choose_methods(plan.methods):
                options = options_of(plan, method, recipe)
                if support.reason(method, options) is None:
                    args = split_options(options)[0]
                    served[kind][method] = with_arguments(method, args)
        yield recipe, work_of(config, recipe), config, served[kind]


def read_counts() -> dict[tuple[str, str], Any]:
    """What was counted before."""
    from mmpetl.benchmark.paper import Flops
    from mmpetl.core.boundary import read_utf8

    if not COUNTS.is_file():
        return {}
    rows = csv.DictReader(read_utf8(COUNTS, 'table of operations').splitlines())
    found = {}
    for row in rows:
        group, method = row.pop('group'), row.pop('method')
        numbers = {name: int(value) for name, value in row.items()}
        found[group, method] = Flops(group, method, **numbers)
    return found


def write_counts(known: dict[tuple[str, str], Any]) -> None:
    """Keep what is counted, whole or not at all."""
    from mmpetl.analysis.charts import save_rows

    rows = [dataclasses.astuple(known[key]) for key in sorted(known)]
    names = ('group', 'method', 'forward', 'step', 'test', 'trunk')
    save_rows(COUNTS, names, rows)


if __name__ == '__main__':
    sys.exit(main())
