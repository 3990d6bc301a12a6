"""What pages there are, and how the README begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_no_table_that_a_tool_writes_is_empty(page):
    text = page.read_text(encoding='utf-8')
    names = re.findall(r'<!-- begin (.+?) -->', text)
    blocks = dict(re.findall(r'<!-- begin (.+?) -->(.*?)<!-- end \1 -->', text, re.S))
    assert sorted(blocks) == sorted(names)
    assert [name for name, inside in blocks.items() if not inside.strip()] == []


def test_every_method_has_a_page():
    from mmpetl.core import registered_methods

    pages = {path.stem for path in (ROOT / 'docs' / 'methods').glob('*.md')}
    ours = {
        cls.stem()
        for cls in registered_methods().values()
        if cls.__module__.startswith('mmpetl.methods.')
    }
    assert ours
    assert ours - pages == set()


def test_the_readme_opens_with_the_two_commands():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    first = text.split('```')[1].strip().splitlines()
    assert first == ['make digits', 'make test']
