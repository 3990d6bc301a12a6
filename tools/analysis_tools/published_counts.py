"""Our parameter counts beside those that papers and benchmarks print.

Every figure of published_counts.csv is compared with the count of its setting on the
full-size backbone. A row is exact, explained by a convention that is computed too, or
not reproducible; exits with 1 if a row is not what it is marked as. Nothing is loaded.

Examples:
    python tools/analysis_tools/published_counts.py
    python tools/analysis_tools/published_counts.py --markdown docs/counts.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpetl import apis
from mmpetl.apis.published_counts import (
    MARKS,
    Compared,
    as_printed,
    compare,
    read_published,
)

ROOT = Path(__file__).resolve().parents[2]

TABLE = Path(__file__).with_suffix('.csv')

PAGE = """# Parameter counts beside published ones

Written by `python tools/analysis_tools/published_counts.py --markdown docs/counts.md`
from `tools/analysis_tools/published_counts.csv`, where each figure has its source. The
command exits with 1 if a row is not what it is marked as, and the test suite holds the
rows one by one. Counts come from injecting into backbones of full size.

- *Ours* trains in the backbone at the setting, heads excluded.
- *Counted as* is the convention of the source, where there is one. In it, `ours` is the
  column before; `head('fgvc')` and `head('vtab')` are linear heads, mean over the data
  sets of the benchmark; `without_biases` leaves out the biases of what a method adds,
  `delta_of` what it selects of the base; `final_norm` is the norm behind the last
  block; `mean_of` averages over the settings per task in a file.
- *Gives* is what comes out, in the digits of the figure.
- **exact**: ours rounds to the figure. **explained**: it does not, and what the
  convention gives does. **not reproducible**: neither does.
- *(inferred)*: the source states no setting or convention, the figure led to it; the
  agreement says less.
"""


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--table', default=TABLE, help='CSV (default: the one beside)')
    parser.add_argument('--markdown', metavar='FILE', help='also write this page')
    return parser.parse_args(args)


def cells(found: Compared) -> list[str]:
    row = found.row
    why = [row.why] if row.why else []
    if row.setting_from == 'figure':
        why.append('(inferred)')
    return [
        row.backbone,
        row.label,
        row.setting,
        f'{found.ours:,}',
        row.counted_as,
        as_printed(found.value, row.figure),
        row.figure,
        found.found,
        ' '.join(why),
    ]


def summary(found: Sequence[Compared]) -> str:
    numbers = [sum(f.found == mark for f in found) for mark in MARKS]
    parts = [f'{n} {mark}' for n, mark in zip(numbers, MARKS, strict=True)]
    return f'{len(found)} figures: {", ".join(parts)}'


def page(found: Sequence[Compared]) -> str:
    lines = [PAGE, f'{summary(found)}.']
    head = ['backbone', 'method', 'setting', 'ours', 'counted as', 'gives', 'published']
    for table in dict.fromkeys(f.row.table for f in found):
        lines += ['', f'## {table[0].upper()}{table[1:]}', '']
        rows = [f for f in found if f.row.table == table]
        sources = dict.fromkeys(f.row.source for f in rows)
        lines += [f'Published in {"; ".join(sources)}. Millions of parameters.', '']
        lines += [f'| {" | ".join(head)} | | |']
        lines.append('|:--|:--|:--|--:|:--|--:|--:|:--|:--|')
        for f in rows:
            backbone, label, setting, ours, by, *rest = cells(f)
            by = f'`{by}`' if by else ''
            line = [f'`{backbone}`', label, f'`{setting}`', ours, by, *rest]
            lines.append(f'| {" | ".join(line)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    found = []
    with apis.cli_errors():
        print(f'{"":73}{"ours":>11}{"gives":>11}{"published":>11}')
        for f in compare(read_published(args.table), ROOT):
            found.append(f)
            backbone, label, setting, ours, by, gives, figure, mark, why = cells(f)
            print(f'{backbone:13}{setting:60}{ours:>11}{gives:>11}{figure:>11}  {mark}')
            if by or why:
                print(f'{"":13}{label}: {by}{"; " if by and why else ""}{why}')
    print(summary(found))
    if args.markdown:
        Path(args.markdown).write_text(page(found), encoding='utf-8')
    wrong = [f for f in found if not f.holds]
    for f in wrong:
        print(
            f'{f.row.label} on {f.row.backbone} ({f.row.table}) is marked '
            f'{f.row.mark} and comes out {f.found}: {as_printed(f.value, f.row.figure)}'
            f'M beside {f.row.figure}M',
            file=sys.stderr,
        )
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
