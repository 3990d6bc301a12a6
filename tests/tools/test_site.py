"""The documentation is a site: built without a warning, whole, and local."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytest.importorskip('mkdocs')

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools' / 'misc'))

import site_hooks  # noqa: E402


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-q', '-d', folder]
    env = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """Addresses that a page links to, what it loads by itself, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == 'a' and given.get('href'):
            self.links.add(given['href'])
        elif tag == 'link' and given.get('rel') in ('stylesheet', 'preconnect', 'icon'):
            self.loads.add(given['href'])
        elif given.get('src'):
            self.loads.add(given['src'])
        self.ids |= {given[name] for name in ('id', 'name') if given.get(name)}


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob('*.html')}
    assert len(pages) > 90
    dead = []
    for path, page in pages.items():
        for address in page.links | page.loads:
            target, anchor = urldefrag(address)
            if re.match(r'[a-z]+:', target):
                if address in page.loads:
                    dead.append(f'{path.name} loads {address}')
                continue
            if path.name == '404.html':  # its links begin at the root of a server
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            if there.is_dir():
                there /= 'index.html'
            if not there.is_file():
                dead.append(f'{path.name}: {address}')
            elif anchor and there in pages and unquote(anchor) not in pages[there].ids:
                dead.append(f'{path.name}: {address} (no such anchor)')
    assert dead == []


def test_styles_load_nothing_from_elsewhere(site):
    for path in site.rglob('*.css'):
        urls = re.findall(r'url\(["\']?(https?:[^)"\']+)', path.read_text())
        assert urls == [], path


def test_no_list_or_table_is_left_in_a_paragraph(site):
    for path in site.rglob('*.html'):
        for text in re.findall(r'<p>(.*?)</p>', path.read_text(encoding='utf-8'), re.S):
            assert not re.search(r'\n\s*(- |\d+\. |\| )', text), (path, text)


def test_pages_hold_methods_references_and_marks(site):
    lora = (site / 'methods' / 'lora.html').read_text(encoding='utf-8')
    assert 'id="mmpetl.methods.lora.LoRA"' in lora
    core = (site / 'api' / 'core.html').read_text(encoding='utf-8')
    assert 'id="mmpetl.core.inject.inject"' in core
    assert ':class:' not in core
    assert 'class="not-run"' in (site / 'getting_started.html').read_text()
    assert 'class="not-run"' not in (site / 'methods' / 'lora.html').read_text()


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ('a\n- b\n  c\n', 'a\n\n- b\n    c\n'),
        (
            '1. a\n\n   ```\n   x\n   ```\n2. b\n',
            '1. a\n\n    ```\n    x\n    ```\n\n2. b\n',
        ),
        ('- a\n\ntext\n  more\n', '- a\n\ntext\n  more\n'),
        ('```\na\n- b\n```\n', '```\na\n- b\n```\n'),
    ],
)
def test_lists_are_those_of_commonmark(given, wanted):
    assert site_hooks.nested_lists(given) == wanted


def test_links_out_of_the_documents_become_names():
    text = (
        '[rules](../CONTRIBUTING.md) [`train.py`](../tools/train.py) '
        '[the tool](../tools/train.py) [home](../README.md) [x](speed.md#a)'
    )
    assert site_hooks._links(text, 'speed.md') == (
        '[rules](CONTRIBUTING.md) `tools/train.py` '
        'the tool (`tools/train.py`) [home](index.md) [x](speed.md#a)'
    )
