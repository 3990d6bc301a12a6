"""The table of hostile and broken inputs: what each command makes of each of them.

Examples:
    python tools/misc/hostile_inputs.py
    python tools/misc/hostile_inputs.py --only 'published delta' fold
    python tools/misc/hostile_inputs.py --table --write

Every row makes its input from a healthy one in a folder of its own and runs the command
in a fork of this process, which has imported all packages: seconds and memory are those
of the command without its imports, memory beyond what the healthy input costs. A row is

- refused: the exit code is not zero, and stderr has one line `error: ...`;
- taken: exit code 0 and the result of the healthy input, or the input is a good one;
- told: exit code 0, another result, and a line that says what is wrong;

and bad where it ends in a traceback, in silence with another result, without the line,
by a signal, refuses a good input, takes more than 20 s or more than 2 GiB beyond the
healthy input, or runs code of the input. One bad row, and the exit code is 1. Where the
healthy input takes more than 5 s, as on a busy machine, four times that is allowed.

A run goes on where it stopped; rows are kept in --rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.simplefilter('ignore')
sys.path.insert(0, str(Path(__file__).parent))

from hostile.areas import all_cases  # noqa: E402
from hostile.case import ROOT, Case  # noqa: E402
from hostile.healthy import make_store  # noqa: E402
from hostile.run import BAD, GOOD, Stand, preload, remember  # noqa: E402

PAGE = ROOT / 'docs' / 'reliability.md'

Row = dict[str, Any]


def chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """Cases whose area or input holds one of the words."""
    words = [word.lower() for word in only]
    return [
        case for case in cases if not words or any(w in case.key.lower() for w in words)
    ]


def part_of(text: str) -> tuple[int, int]:
    """``'2/8'`` as numbers."""
    one, _, all_parts = text.partition('/')
    if not (
        one.isdecimal() and all_parts.isdecimal() and 0 < int(one) <= int(all_parts)
    ):
        raise argparse.ArgumentTypeError('K/N, with K from 1 to N')
    return int(one), int(all_parts)


def walk(cases: Sequence[Case], done: Sequence[Row]) -> Iterator[Row]:
    """Rows of the cases that are not done yet."""
    from hostile.calls import all_bases

    seen = {(row['area'], row['input']) for row in done}
    left = [case for case in cases if (case.area, case.input) not in seen]
    if not left:
        return
    bases = all_bases()
    scopes = tuple(dict.fromkeys(s for c in left for s in bases[c.base].scopes))
    preload(scopes)
    folder = Path(tempfile.mkdtemp(prefix='hostile-'))
    try:
        remember(folder / 'laid_out')
        make_store(folder / 'store', scopes)
        stand = Stand(folder, bases)
        for case in left:
            yield stand.judge(case)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(path: Path, cases: Sequence[Case]) -> list[Row]:
    """Rows that are done, of cases that there are; of two of one case the later."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    known = {(case.area, case.input) for case in cases}
    found = {(row['area'], row['input']): row for row in rows}
    return [row for key, row in found.items() if key in known]


def table(rows: Sequence[Row]) -> str:
    """Counts by area, then the rows that are bad."""
    states = [*GOOD, *(s for s in BAD if any(row['state'] == s for row in rows))]
    lines = [
        '| area | rows | '
        + ' | '.join(states)
        + ' | seconds, at most | MiB, at most |',
        '| :--- | ---: |' + ' ---: |' * (len(states) + 2),
    ]
    areas = dict.fromkeys(row['area'] for row in rows)
    for area in (*areas, None):
        some = [row for row in rows if area in (None, row['area'])]
        counts = Counter(row['state'] for row in some)
        cells = [area or 'all', len(some), *(counts[s] for s in states)]
        cells.append(max((row['seconds'] for row in some), default=0))
        cells.append(max((row['mib'] for row in some), default=0))
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def shown(row: Row) -> str:
    """A row as a line."""
    return (
        f'{row["state"]:12} {row["area"]}: {row["input"]}  [{row["command"]}, exit '
        f'{row["exit"]}, {row["seconds"]} s, {row["mib"]} MiB]  {row["line"]}'
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', nargs='+', default=[], help='words in area or input')
    parser.add_argument(
        '--rows',
        type=Path,
        default=Path('work_dirs/hostile_inputs.jsonl'),
        help='file of the rows (default: %(default)s)',
    )
    parser.add_argument(
        '--part', type=part_of, default=(1, 1), help='every Nth row from the Kth: K/N'
    )
    parser.add_argument('--again', action='store_true', help='forget rows that are bad')
    parser.add_argument('--list', action='store_true', help='print the inputs only')
    parser.add_argument('--table', action='store_true', help='run nothing')
    parser.add_argument(
        '--write', action='store_true', help='put the counts into docs/reliability.md'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    first, step = args.part
    cases = chosen(all_cases(), args.only)[first - 1 :: step]
    if args.list:
        print('\n'.join(case.key for case in cases))
        return 0
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = read(args.rows, cases)
    if args.again:
        rows = [row for row in rows if row['ok']]
    if not args.table:
        for row in walk(cases, rows):
            rows.append(row)
            with args.rows.open('a') as file:
                file.write(json.dumps(row) + '\n')
            print(shown(row), flush=True)
    if args.table:
        print('\n'.join(map(shown, rows)))
    print(f'\n{table(rows)}')
    if args.write:
        from update_tables import replace

        text = PAGE.read_text(encoding='utf-8')
        PAGE.write_text(replace(text, 'hostile', table(rows)), encoding='utf-8')
    bad = [row for row in rows if not row['ok']]
    if bad:
        print(f'\n{len(bad)} of {len(rows)} rows are bad', file=sys.stderr)
    elif len(rows) < len(cases):
        print(f'\n{len(cases) - len(rows)} rows were not run', file=sys.stderr)
    return int(bool(bad) or len(rows) < len(cases))


if __name__ == '__main__':
    sys.exit(main())
