"""Schematic pictures of methods: a transformer block, and what is plugged into it.

Every picture is one drawing of the block that ``mmpetl/core/site.py`` writes down, with
a box for each kind of site. Nothing of a method is drawn by hand: what is filled and
framed are facts that an injected backbone tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from mmpetl.analysis.charts import COLOURS

WIDTH, HEIGHT = 440, 312

TRAINS = '#e69f00'
"""Frame of a part whose own parameters train."""

ATTENTION, NETWORK = 132, 228  # heights of the two sub-layers

BOXES: dict[str, tuple[int, int, int, int]] = {
    'embed.proj': (10, 34, 62, 18),
    'embed.norm': (78, 34, 66, 18),
    'embed': (150, 34, 44, 18),
    'out.norm': (296, 34, 56, 18),
    'out': (358, 34, 28, 18),
    'feature': (390, 34, 42, 18),
    'block': (10, 68, 420, 214),
    'tokens': (18, 62, 42, 15),
    'norm1': (32, ATTENTION - 10, 40, 20),
    'attn': (82, ATTENTION - 40, 226, 76),
    'attn.qkv': (92, ATTENTION - 29, 58, 60),
    'attn.q': (98, ATTENTION - 18, 46, 14),
    'attn.k': (98, ATTENTION - 2, 46, 14),
    'attn.v': (98, ATTENTION + 14, 46, 14),
    'attn.core': (164, ATTENTION - 10, 58, 20),
    'attn.proj': (236, ATTENTION - 10, 62, 20),
    'attn.branch': (318, ATTENTION - 10, 50, 20),
    'attn.skip': (192, ATTENTION - 58, 50, 14),
    'attn.sum': (380, ATTENTION - 10, 40, 20),
    'norm2': (32, NETWORK - 10, 40, 20),
    'ffn': (82, NETWORK - 29, 226, 54),
    'ffn.fc1': (92, NETWORK - 10, 62, 20),
    'ffn.fc2': (236, NETWORK - 10, 62, 20),
    'ffn.branch': (318, NETWORK - 10, 50, 20),
    'ffn.skip': (192, NETWORK - 48, 50, 14),
    'ffn.sum': (380, NETWORK - 10, 40, 20),
}
"""Left, top, width and height of the box of each kind."""

AROUND = ('block', 'attn', 'ffn', 'attn.qkv')
"""Kinds whose boxes hold others."""


@dataclass(frozen=True)
class Facts:
    """What a method is on one backbone.

    Attributes:
        name: The method.
        family: One of :data:`mmpetl.core.FAMILIES`.
        ports: Kind of site to where its delta acts there: ``before``, ``after``.
        trains: Kind of site to ``weights`` or ``biases``, where base parameters train.
        blocks: How many blocks hold a delta, or parameters that train.
        num_blocks: How many there are.
        trainable: Parameters of the backbone that train.
        on: What it was injected into.
    """

    name: str
    family: str
    ports: dict[str, tuple[str, ...]]
    trains: dict[str, str]
    blocks: int
    num_blocks: int
    trainable: int
    on: str

    def sentence(self) -> str:
        """The picture in words."""
        said = []
        if self.ports:
            said.append(f'plugs in at {", ".join(self.ports)}')
        for what in ('weights', 'biases'):
            kinds = [kind for kind, part in self.trains.items() if part == what]
            if kinds:
                said.append(f'trains {what} of the base at {", ".join(kinds)}')
        return f'{self.name} {"; ".join(said) or "leaves the backbone as it is"}.'

    def caption(self) -> str:
        """Where and how much."""
        where = f'{self.blocks} of {self.num_blocks} blocks'
        return f'{where}, {self.trainable:,} parameters on {self.on}'


def draw(facts: Facts) -> str:
    """A picture as SVG.

    Raises:
        KeyError: A kind of site has no box; add one to :data:`BOXES`.
    """
    colour = COLOURS[facts.family]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif" font-size="10">',
        f'<title>{escape(facts.sentence())}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(10, 20, facts.name, 'start', colour, 'font-size="14" font-weight="bold"'),
        _text(430, 20, facts.family.replace('_', ' '), 'end', colour),
        _line(194, 43, 296, 43),
        _text(245, 39, f'{facts.num_blocks} blocks', 'middle', '#555555'),
    ]
    # What holds others first, so that these are drawn over it.
    order = [*AROUND, *(kind for kind in BOXES if kind not in AROUND)]
    for kind in sorted(facts.ports.keys() | facts.trains.keys()):
        BOXES[kind]  # fails here where there is no box
    for kind in AROUND:
        parts.append(_box(kind, facts, colour))
    for row, skip in ((ATTENTION, 'attn.skip'), (NETWORK, 'ffn.skip')):
        top = BOXES[skip][1] + 7
        parts += [
            _line(18, row, 380, row),
            f'<path d="M24 {row}V{top}H400V{row - 10}" fill="none" stroke="#555555"/>',
        ]
    parts += [
        _text(193, NETWORK + 3, 'GELU', 'middle', '#555555', 'font-size="9"', True),
        *(_box(kind, facts, colour) for kind in order if kind not in AROUND),
        _text(10, HEIGHT - 12, facts.caption(), 'start', '#333333'),
        '</svg>',
    ]
    return '\n'.join(part for part in parts if part) + '\n'


def legend() -> str:
    """What colours, frames and marks stand for, as SVG."""
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 96" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="10">',
        '<title>What colours and frames of the pictures stand for</title>',
        f'<rect width="{WIDTH}" height="96" fill="#ffffff"/>',
    ]
    for i, (family, colour) in enumerate(COLOURS.items()):
        x, y = (10, 112, 214, 340)[i % 4], 10 + 20 * (i // 4)
        rows.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        rows.append(_text(x + 16, y + 10, family.replace('_', ' '), 'start', '#333333'))
    for x, dash, text in (
        (10, '', 'weights of the base train'),
        (226, ' stroke-dasharray="3 2"', 'only biases of the base train'),
    ):
        rows.append(
            f'<rect x="{x + 1}" y="53" width="12" height="12" fill="#ffffff" '
            f'stroke="{TRAINS}" stroke-width="2.5"{dash}/>'
        )
        rows.append(_text(x + 20, 63, text, 'start', '#333333'))
    rows += [
        '<path d="M10 74l6 5-6 5z" fill="#333333"/>',
        _text(
            20,
            83,
            'left of a filled box: acts on what enters it; right of it: on what leaves',
            'start',
            '#333333',
        ),
        '</svg>',
    ]
    return '\n'.join(rows) + '\n'


def _box(kind: str, facts: Facts, colour: str) -> str:
    """The box of a kind; ``embed.norm``, which few have, only where it is meant."""
    x, y, width, height = BOXES[kind]
    ports, trains = facts.ports.get(kind), facts.trains.get(kind)
    if kind == 'embed.norm' and not (ports or trains):
        return _line(72, 43, 150, 43)
    around = kind in AROUND
    fill, ink, opacity = ('#f7f7f7' if around else '#ffffff'), '#555555', ''
    if ports is not None:
        fill, ink = colour, _ink(colour)
        if around:
            ink, opacity = '#333333', ' fill-opacity="0.18"'
    stroke = colour if ports is not None else '#999999'
    line = f' stroke="{stroke}"'
    if trains:
        dash = ' stroke-dasharray="3 2"' if trains == 'biases' else ''
        line = f' stroke="{TRAINS}" stroke-width="2.5"{dash}'
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" '
        f'fill="{fill}"{opacity}{line}/>'
    ]
    last = kind.rpartition('.')[2] if kind.startswith(('attn.', 'ffn.')) else kind
    if around:
        at = (x + width - 4, y + height - 4, 'end')
        if kind == 'attn.qkv':
            at = (x + width / 2, y + 9, 'middle')
        parts.append(_text(*at[:2], last, at[2], ink, 'font-size="9"'))
    else:
        parts.append(_text(x + width / 2, y + height / 2 + 3.5, last, 'middle', ink))
    middle = y + height / 2
    if 'before' in (ports or ()):
        parts.append(f'<path d="M{x - 6} {middle - 5}l6 5-6 5z" fill="{colour}"/>')
    if 'after' in (ports or ()):
        parts.append(f'<path d="M{x + width} {middle - 5}l6 5-6 5z" fill="{colour}"/>')
    return '\n'.join(parts)


def _ink(colour: str) -> str:
    """What is read best on a colour: white or black.

    By the contrast of WCAG 2, (L1 + 0.05) / (L2 + 0.05) of relative luminances.
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    luminance = sum(
        w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )
    return '#ffffff' if (luminance + 0.05) ** 2 < 0.05 * 1.05 else '#000000'


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#555555"/>'


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    colour: str,
    more: str = '',
    box: bool = False,
) -> str:
    """A line of text; ``box`` clears what lies behind it."""
    behind = ''
    if box:
        behind = (
            f'<rect x="{x - 16:g}" y="{y - 10:g}" width="32" height="14" rx="7" '
            'fill="#f7f7f7" stroke="#999999"/>\n'
        )
    return (
        f'{behind}<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"'
        f'{" " + more if more else ""}>{escape(text)}</text>'
    )
