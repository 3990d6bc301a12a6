r"""Write docs/choosing.md: which method to take, drawn from records.

Examples:
    python tools/benchmark/choosing_page.py --check
    python tools/benchmark/choosing_page.py --out work_dirs/bench/vtab
    python tools/benchmark/choosing_page.py --costs

What a step takes and keeps comes from docs/speed/methods.json. Accuracy comes from a
benchmark folder or a release (--out), by the same computation as
tools/benchmark/choose.py; without one, from the toy records of docs/digits_all. The
page says which. With --costs that part stays as the page has it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.cards import read_cards
from mmpetl.benchmark.choosing import Limits, choose
from mmpetl.benchmark.choosing_text import choice_text
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.core import PETLError, build_method, registered_methods

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'choosing.md'
SPEED = ROOT / 'docs' / 'speed' / 'methods.json'
TOY = ROOT / 'docs' / 'digits_all' / 'records.json'

QUESTIONS: tuple[tuple[str, Limits], ...] = (
    ('Nothing is asked', Limits()),
    ('Predictions may cost nothing', Limits(folds=True)),
    ('Few parameters: at most 300,000', Limits(trainable=300_000)),
    ('Fewer still: at most 50,000', Limits(trainable=50_000)),
)
"""What is asked of a benchmark folder."""

BUDGETS = (5_000, 20_000, 100_000, None)
"""Trainable parameters of the mini ViT by which the toy records are cut."""

NUM_FIRST = 5
MOST_ROWS = 8


def costs(rows: list[dict[str, Any]]) -> str:
    """Who takes and keeps least, of all methods and of those that fold.

    Args:
        rows: What ``speed/methods.py --write`` measured on one trunk.
    """
    methods = [row for row in rows if _tunes(row['method'])]
    lines = [f'| question | the first {NUM_FIRST} |', '| :--- | :--- |']
    for group, chosen in (
        ('', methods),
        (', of those that fold', [r for r in methods if _folds(r['method'])]),
    ):
        for question, key in (
            ('what keeps least for the backward pass', lambda r: r['kept']),
            ('whose training step is shortest', lambda r: r['step_full'][0]),
        ):
            first = sorted(chosen, key=key)[:NUM_FIRST]
            cells = ', '.join(f'{_link(r["method"])} {key(r):.2f}' for r in first)
            lines.append(f'| {question}{group} | {cells} |')
    return '\n'.join(lines)


def toy(records: list[dict[str, Any]]) -> str:
    """Who comes first on one task and seed, within budgets of parameters."""
    methods = [record for record in records if _tunes(record['method'])]
    head = ['trainable, at most', 'methods', f'the first {NUM_FIRST}, accuracy %']
    lines = [f'| {" | ".join(head)} |', '| ---: | ---: | :--- |']
    for budget in BUDGETS:
        fit = [r for r in methods if budget is None or r['backbone_params'] <= budget]
        first = sorted(fit, key=lambda r: -r['accuracy'])[:NUM_FIRST]
        cells = ', '.join(f'{_link(r["method"])} {r["accuracy"]:.1f}' for r in first)
        limit = 'any number' if budget is None else f'{budget:,}'
        lines.append(f'| {limit} | {len(fit)} | {cells} |')
    lines += ['', f'They hold {len(records)} methods; of others they say nothing.']
    return '\n'.join(lines)


def answers(records: list[Record], cards: Any) -> str:
    """The answers of a benchmark to :data:`QUESTIONS`.

    Raises:
        PETLError: There is no record.
    """
    if not records:
        raise PETLError('the folder holds no record; run a plan into it first')
    parts = []
    for question, limits in QUESTIONS:
        parts.append(f'### {question}')
        parts += [
            _shortened(choice_text(c, limits)) for c in choose(records, limits, cards)
        ]
    return '\n\n'.join(part.strip() for part in parts)


def _shortened(text: str) -> str:
    """A choice whose tables show their first rows alone."""
    lines: list[str] = []
    rows = 0
    for line in text.splitlines():
        if not line.startswith('| '):
            if rows > MOST_ROWS + 2:
                lines.append(f'\n{rows - MOST_ROWS - 2} more follow.')
            rows = 0
        else:
            rows += 1
        if rows <= MOST_ROWS + 2:
            lines.append(line)
    return '\n'.join(lines)


def page(out: Path | None) -> str:
    """The whole page.

    Args:
        out: A benchmark folder or a release; None for the toy records.
    """
    if out is None:
        source = (
            'Drawn from [digits_all/records.json](digits_all/records.json): '
            '[its page](digits_all/README.md) says how; a mini ViT and 200 labelled '
            'digits, **one task, one seed, settings that nobody tuned**. No interval '
            'can be drawn from that, and no test can tell two methods apart: it shows '
            'what a budget costs on a toy, and no more. Run your own, below, before '
            'you choose by accuracy.'
        )
        accuracy = toy(json.loads(TOY.read_text(encoding='utf-8')))
        command = 'python tools/benchmark/choosing_page.py'
    else:
        store = RecordStore(out)
        records = store.all()
        store.check_all_read()
        source = f'Drawn from the {len(records)} records of `{out.name}`.'
        accuracy = answers(records, read_cards(out, records))
        command = f'python tools/benchmark/choosing_page.py --out {out.name}'
    text = TEMPLATE.format(command=command, source=source, accuracy=accuracy)
    return with_costs(text)


def with_costs(text: str) -> str:
    """The page with its part on costs as docs/speed/methods.json has them now.

    Raises:
        PETLError: It has no such part.
    """
    case = json.loads(SPEED.read_text(encoding='utf-8'))['vit_b']
    head, begin, rest = text.partition('## By cost\n')
    _, end, tail = rest.partition('## By accuracy\n')
    if not end:
        raise PETLError('the page has no "## By cost" in front of "## By accuracy"')
    new = COSTS.format(costs=costs(case['rows']), **case['case'])
    return f'{head}{begin}{new}{end}{tail}'


COSTS = """
Drawn from [speed/methods.json](speed/methods.json): ratios to full fine-tuning, on
{blocks} blocks of a ViT-B/16, batch {batch}, {device}; smaller is less. Whole tables
with their spread are in [speed and memory](speed.md).

{costs}

"""

TEMPLATE = """# Which method to take

There is no best one. What there is: limits that a method must keep to, and records that
say what fits. This page is written by `{command}`.

## By what is needed

- **Predictions may cost nothing**: a method that [folds](methods/README.md); LoRA and
  SSF are the plainest of them.
- **Memory is short**: nothing may flow back into the trunk, as in side networks; or few
  activations are kept, as the table below says.
- **Few labels, many tasks on one base**: what is saved for each task counts; deltas are
  kilobytes, several [act on one backbone](slots.md).
- **Videos, dense tasks**: see *good where* in [the table of
  methods](methods/README.md), and [the grid](grid.md) for what your backbone can serve.
- **A model that nobody describes**: the last column of [the grid](grid.md).

## By cost

## By accuracy

{source}

{accuracy}

## Your own records

```
python tools/benchmark/run.py mini --out work_dirs/bench/mini
python tools/benchmark/choose.py --out work_dirs/bench/mini --folds
python tools/benchmark/choose.py --out work_dirs/bench/mini --trainable 300000
```

`choose.py` ranks what fits by mean rank over tasks, with intervals, a test against the
first, and what the records do not tell. Methods that are not shown to differ share the
first place: of them, take the one that costs least.
"""


def _tunes(name: str) -> bool:
    """Whether it is a method, and no reference beside methods."""
    return name in registered_methods() and build_method(name).family != 'baseline'


def _folds(name: str) -> bool:
    method = build_method(name)
    return method.folds or not type(method).plugs()


def _link(name: str) -> str:
    return f'[{name}](methods/{registered_methods()[name].stem()}.md)'


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, help='a benchmark folder, or a release')
    parser.add_argument('--costs', action='store_true', help='only the part on costs')
    parser.add_argument(
        '--to', type=Path, default=PAGE, help='default: docs/choosing.md'
    )
    parser.add_argument('--check', action='store_true', help='only say if it is stale')
    args = parser.parse_args()
    with cli_errors():
        if args.costs and args.out:
            raise PETLError('--out is for the part on accuracy, which --costs leaves')
        old = args.to.read_text(encoding='utf-8') if args.to.is_file() else ''
        text = with_costs(old) if args.costs else page(args.out)
        if text == old:
            return 0
        if not args.check:
            args.to.write_text(text, encoding='utf-8')
        print(f'{"stale" if args.check else "written"}: {args.to}')
    return int(args.check)


if __name__ == '__main__':
    sys.exit(main())
