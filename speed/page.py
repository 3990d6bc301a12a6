"""Rows of a table that are kept as they are done, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'speed.md'


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are done; a line that was cut is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def keep(out: Path, row: Mapping[str, Any]) -> None:
    """Append a row that is done to the file of rows."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')


def write_table(mark: str, case: Mapping[str, Any], text: str) -> None:
    """Write a table between its marks on the page, with how it was measured."""
    page = PAGE.read_text(encoding='utf-8')
    begin, end = f'<!-- begin {mark} -->', f'<!-- end {mark} -->'
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f'{PAGE.name} has no {begin} ... {end} to write between')
    said = ', '.join(f'{key} {value}' for key, value in case.items())
    PAGE.write_text(
        f'{before}{begin}\n({said})\n\n{text}\n{end}{after}', encoding='utf-8'
    )
