"""Method cards: the documentation's pages as HTML."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmpetl.compat.extras import pip_line
from mmpetl.core import PETLError, is_several, methods_family, registered_methods
from mmpetl.core.several import written_out
from mmpetl.shipped import shipped

DOCS = shipped('docs/methods')
"""Where the pages lie."""


@dataclass(frozen=True)
class Card:
    """A method's page.

    Attributes:
        method: Name in the registry.
        family: Its family.
        anchor: Id of the card in the page.
        body: HTML without anything that runs.
        source: ``docs/methods/lora.md``, or that it is the docstring.
    """

    method: str
    family: str
    anchor: str
    body: str
    source: str


def anchor_of(method: str) -> str:
    """Id of a method's card, safe in HTML and in an address."""
    return 'method-' + re.sub(r'[^a-z0-9]+', '-', method.lower()).strip('-')


def make_cards(methods: Iterable[str], docs: Path | None = None) -> list[Card]:
    """Cards of methods, in the order given.

    A method that is not registered here, as in records of another machine, gets a card
    that says so. Without the pages, the docstring of the class stands in, and the card
    says that too.

    Args:
        methods: Names in the registry.
        docs: Folder of the pages; that of the checkout by default.

    Raises:
        PETLError: markdown-it-py is not installed.
    """
    docs = DOCS if docs is None else docs
    known = registered_methods()
    methods = list(dict.fromkeys(methods))
    pages = {f'{known[m].stem()}.md': anchor_of(m) for m in methods if m in known}
    return [_card(name, known.get(name), docs, pages) for name in methods]


def _card(name: str, cls: type | None, docs: Path, pages: dict[str, str]) -> Card:
    if is_several(name) and set(written_out(name)) <= registered_methods().keys():
        family = methods_family(name)
        body = f'<p>{html.escape(name)}, on one trunk: docs/stacking.md.</p>'
        return Card(name, family, anchor_of(name), body, 'docs/stacking.md')
    if cls is None:
        body = '<p>No method of this name is registered here.</p>'
        return Card(name, '', anchor_of(name), body, 'not registered')
    path = docs / f'{cls.stem()}.md'
    if path.is_file():
        text = path.read_text(encoding='utf-8')
        # The card has its own heading.
        text = re.sub(r'\A#\s[^\n]*\n', '', text)
        return Card(
            name,
            cls.family,
            anchor_of(name),
            markdown(text, pages),
            f'docs/methods/{path.name}',
        )
    body = f'<pre>{html.escape(inspect.getdoc(cls) or "")}</pre>'
    return Card(name, cls.family, anchor_of(name), body, 'docstring of the class')


def markdown(text: str, pages: dict[str, str]) -> str:
    """Markdown as HTML; raw HTML in it stays text, headings move two levels down.

    Args:
        text: The page.
        pages: Name of a page to the card that stands for it. Links to other files of
            the project lose their target, because the report has no neighbours.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise PETLError(
            f'method cards need markdown-it-py: {pip_line("benchmark")}'
        ) from None
    parser = MarkdownIt('commonmark', {'html': False}).enable('table')
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ('heading_open', 'heading_close'):
            token.tag = f'h{min(int(token.tag[1]) + 2, 6)}'
        for child in token.children or ():
            if child.type == 'link_open':
                _retarget(child, pages)
            elif child.type == 'image':
                # A picture by address would be a request.
                child.type, child.tag = 'text', ''
    body = parser.renderer.render(tokens, parser.options, {})
    # Wide tables scroll in themselves, not the page.
    body = body.replace('<table>', '<div class="scroll" tabindex="0"><table>')
    return body.replace('</table>', '</table></div>')


def _retarget(token: object, pages: dict[str, str]) -> None:
    target = token.attrs.get('href', '')
    if re.match(r'https?://', target):
        token.attrs['rel'] = 'noopener noreferrer'
        return
    page = target.partition('#')[0].rpartition('/')[2]
    if page in pages:
        token.attrs['href'] = f'#{pages[page]}'
    else:
        del token.attrs['href']
