"""What the walks share: a trial in a process of its own, rows in a file, a table."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from update_tables import replace  # noqa: E402

from mmpetl.apis.run import cli_errors  # noqa: E402
from mmpetl.core import Owner, PETLError, owners  # noqa: E402

PAGE = Path(__file__).parents[2] / 'docs' / 'walks.md'

STATES = ('worked', 'refused', 'upstream', 'failed')
SECONDS = 300
"""After which a trial counts as failed."""

Row = dict[str, Any]
Trial = Callable[[Row], Row]
"""A trial takes facts, which it fills while they become known, and gives a row."""


def tuned(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all tensors of deltas and selected ones of the base."""
    owner = owners(model)
    return {
        name: param.detach().clone()
        for name, param in model.named_parameters()
        if owner[name] in (Owner.DELTA, Owner.SELECTED)
    }


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> int:
    """How many of the tuned tensors a step has moved."""
    count = sum(not torch.equal(before[name], after[name]) for name in before)
    if not count:
        raise ValueError(f'a step moved none of {len(before)} tuned tensors')
    return count


def versions(model: nn.Module) -> dict[str, int]:
    """Of every frozen parameter, how often it was written to."""
    found = model.named_parameters()
    return {n: p._version for n, p in found if not p.requires_grad}


def check_unwritten(model: nn.Module, before: dict[str, int]) -> None:
    """Stop where a frozen parameter was written to since :func:`versions`."""
    for name, version in before.items():
        if model.get_parameter(name)._version != version:
            raise ValueError(f'{name} is frozen, and was written to')


def attempt(trial: Trial) -> Row:
    """A trial, with what went wrong in one line."""
    torch.manual_seed(0)
    facts: Row = {}
    try:
        return trial(facts)
    except PETLError as error:
        return facts | {'state': 'refused', 'line': _one_line(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return facts | {
            'state': 'failed',
            'line': f'{type(error).__name__}: {_one_line(error)}',
            'where': f'{Path(where.filename).name}:{where.lineno}',
        }


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:400]


def apart(trial: Trial) -> Row:
    """:func:`attempt` in a process of its own, which starts with all packages read."""
    ours, theirs = Pipe(duplex=False)

    def work() -> None:
        if not os.environ.get('WALK_LOUD'):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
        theirs.send(attempt(trial))

    child = get_context('fork').Process(target=work)
    child.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return ours.recv()
        return {'state': 'failed', 'line': f'not done after {SECONDS} s'}
    except EOFError:
        return {'state': 'failed', 'line': 'the process died'}
    finally:
        child.kill()
        child.join()


def judged(trial: Trial, plain: Trial, own: Row) -> Row:
    """What became of a trial; what upstream cannot do here is put down to it.

    Args:
        trial: With a method.
        plain: The same without.
        own: What identifies the row.
    """
    start = time.monotonic()
    found = apart(trial)
    if found['state'] in ('failed', 'refused'):
        without = apart(plain)
        if without['state'] != 'worked':
            found = without | {'state': 'upstream'}
    seconds = round(time.monotonic() - start, 1)
    return {'backbone': None} | found | own | {'seconds': seconds}


def append(out: Path, row: Row) -> None:
    """Add a row to the file of a walk."""
    with out.open('a') as file:
        file.write(json.dumps(row) + '\n')


def read(out: Path) -> list[Row]:
    """The rows that a walk has written so far; of two of one trial the later one."""
    if not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return list({(r['package'], r['config'], r['method']): r for r in rows}.values())


def table(rows: list[Row], things: str = 'configs') -> str:
    """Counts per package and backbone, then the lines of what did not work.

    Args:
        rows: Of a walk.
        things: What a row tells of.
    """
    lines = [
        f'| package | backbone | method | {things} | ' + ' | '.join(STATES) + ' |',
        '| :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: |',
    ]
    groups: dict[tuple, Counter] = defaultdict(Counter)
    why: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        if row['state'] == 'none':
            continue
        key = row['package'], row['backbone'] or '?', row['method']
        groups[key][row['state']] += 1
        if row['state'] != 'worked':
            # Where packages lie on one machine says nothing.
            line = re.sub(r'/\S*site-packages/', '', row['line'])
            why[row['state']][line] += 1
    for key, counts in sorted(groups.items()):
        cells = [str(sum(counts.values())), *(str(counts[s]) for s in STATES)]
        lines.append('| ' + ' | '.join((*key, *cells)) + ' |')
    total = sum((c for c in groups.values()), Counter())
    cells = [str(sum(total.values())), *(str(total[s]) for s in STATES)]
    lines.append('| all | | | ' + ' | '.join(cells) + ' |')
    for state in STATES[1:]:
        if why[state]:
            lines += ['', f'{state}:', '']
        lines += [f'- {n} x {line}' for line, n in why[state].most_common()]
    return '\n'.join(lines)


def command(
    doc: str,
    walk: Callable[[list[str], list[str], list[str], Path], Iterator[Row]],
    packages: Sequence[str],
    methods: list[str],
    part: str,
    things: str,
    first: Callable[[list[Row], list[str], list[str]], str] | None = None,
) -> None:
    """What both scripts do when they are called.

    Args:
        doc: Of the script.
        walk: Gives the row of each trial, of packages, methods, words and a file.
        packages: Those that there are.
        methods: Those that are tried unless others are named.
        part: Of the page that the table is written to, and of the file of rows.
        things: What a row tells of.
        first: A line above the table, of rows, packages and methods.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--packages', nargs='+', default=packages, choices=packages)
    parser.add_argument('--methods', nargs='+', default=methods)
    parser.add_argument('--only', nargs='+', default=[], help='words in names')
    parser.add_argument('--out', default=f'work_dirs/walk_{part}.jsonl', type=Path)
    parser.add_argument('--table', action='store_true', help='print the table only')
    parser.add_argument(
        '--write', action='store_true', help='put the table into docs/walks.md'
    )
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with cli_errors():
        if not args.table:
            for row in walk(args.packages, args.methods, args.only, args.out):
                print(
                    f'{row["state"]:9}{row["seconds"]:6} s  {row["method"]}  '
                    f'{row["package"]}::{row["config"]}  {row["line"]}',
                    flush=True,
                )
        rows = [
            r
            for r in read(args.out)
            if r['package'] in args.packages and r['method'] in args.methods
        ]
        text = table(rows, things)
        if first is not None:
            text = f'{first(rows, args.packages, args.methods)}\n\n{text}'
        if args.write:
            PAGE.write_text(replace(PAGE.read_text(), part, text))
        print(text)
