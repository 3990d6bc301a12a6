"""What the pages about runs on own pictures are made of: numbers, tables, pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

from mmpetl.benchmark.resampling import Interval
from mmpetl.own.results import Share

MOST_ROWS = 24
"""Longer tables scroll in a frame of their own."""

EMPTY = '<p class="empty">{}</p>'


def percent(value: float) -> str:
    """A share in percent: ``81.5``."""
    return f'{100 * value:.1f}'


def interval(found: Share | Interval) -> str:
    """The interval of a share, or of a score in [0, 1], in percent."""
    return f'{percent(found.low)} – {percent(found.high)}'


def bytes_text(count: int | None) -> str:
    """Bytes in words: ``1.2 MB``."""
    if count is None:
        return 'not known'
    for unit, size in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if count >= size:
            return f'{count / size:.3g} {unit}'
    return f'{count} B'


def seconds_text(seconds: float | None) -> str:
    """A duration in words: ``2 h 5 min``, ``3 min 20 s``, ``41 s``, ``180 ms``."""
    if seconds is None:
        return 'not known'
    if seconds < 1:
        return f'{1000 * seconds:.0f} ms'
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {rest} s' if minutes else f'{rest} s'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], label: str, left: int = 1
) -> str:
    """A table that scrolls by itself; cells are HTML, and stay where they are named."""
    rows = list(rows)
    names = ''.join(
        f'<th scope="col"{" class=l" if i < left else ""}>{name}</th>'
        for i, name in enumerate(head)
    )
    body = ''.join(
        f'<tr><th scope="row" class="stay">{row[0]}</th>'
        + ''.join(f'<td>{cell}</td>' for cell in row[1:])
        + '</tr>'
        for row in rows
    )
    kind = 'scroll long' if len(rows) > MOST_ROWS else 'scroll'
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{label}"><table>'
        f'<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def listing(items: Iterable[tuple[str, str]]) -> str:
    """Names and values, which are text."""
    inner = ''.join(
        f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
        for name, value in items
    )
    return f'<dl class="list">{inner}</dl>'


def picture_data(picture: Image.Image, side: int) -> str:
    """A picture as an address of itself, its longer side so many px at most."""
    small = picture.convert('RGB')
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'
