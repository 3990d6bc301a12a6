"""Tutorials and notebooks run as they stand, in the order in which they are read.

A fence with ``title="FILE"`` is a file that the page has the reader write, one with
``title="needs ..."`` is not run, one with ``title="exit code N"`` has to end so. What
a Python block prints is the ``text`` block behind it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmpetl.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / 'docs' / 'tutorials').glob('*.md'))
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.S | re.M)
SEEN = ('configs', 'demo', 'docs', 'mmpetl', 'tools')
"""Folders of the repository that commands of a page find where it is read."""


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    source: str

    @property
    def waits(self) -> bool:
        """Whether it needs what a test does not have."""
        return self.title.startswith('needs ')


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding='utf-8'))]


def cases() -> list:
    found = []
    for page in PAGES:
        slow = any(b.language == 'sh' and not b.waits for b in blocks(page))
        marks = pytest.mark.slow if slow else ()
        found.append(pytest.param(page, id=page.stem, marks=marks))
    return found


def test_there_is_a_page_for_each_kind_of_user():
    assert {p.stem for p in PAGES} == {
        'README', 'timm', 'openmmlab', 'peft', 'reviewer', 'method_author'
    }  # fmt: skip
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page):
    text = page.read_text(encoding='utf-8')
    assert text.count('\n```') == 2 * len(blocks(page))
    for block in blocks(page):
        assert block.language in ('python', 'sh', 'text'), block


@pytest.fixture
def no_made_up_method():
    """Methods that a page makes up are gone behind it; ours may have come with it."""
    known = METHODS.module_dict
    before = set(known)
    yield
    for name in set(known) - before:
        if not known[name].__module__.startswith('mmpetl.'):
            del known[name]


@pytest.mark.parametrize('page', [c for c in cases() if c.id != 'README'])
def test_the_page_runs(page, tmp_path, monkeypatch, no_made_up_method):
    for name in SEEN:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'data' / 'mini'))
    names: dict[str, object] = {'__name__': page.stem}
    found = blocks(page)
    ran = 0
    for block, behind in zip(found, [*found[1:], None], strict=True):
        if block.waits or block.language == 'text':
            continue
        ran += 1
        if block.language == 'sh':
            run_commands(block, monkeypatch)
        elif block.title:
            compile(block.source, block.title, 'exec')
            Path(block.title).write_text(block.source, encoding='utf-8')
        else:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.source, f'{page.stem}.md', 'exec'), names)
            said = behind is not None and behind.language == 'text'
            assert printed.getvalue() == (behind.source if said else '')
    assert ran > 3


def run_commands(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 0
    if block.title:
        wanted = int(re.fullmatch(r'exit code (\d+)', block.title)[1])
    for line in block.source.splitlines():
        if line.startswith('export '):
            name, _, value = line.removeprefix('export ').partition('=')
            monkeypatch.setenv(name, value)
            continue
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == wanted, f'{line}\n{done.stdout}{done.stderr}'


def test_notebooks_are_their_pages(monkeypatch):
    tool = ROOT / 'tools' / 'misc' / 'notebooks.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), '--check'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    assert end.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch, no_made_up_method):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding='utf-8'))
    assert notebook['nbformat'] == 4
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    names: dict[str, object] = {'__name__': path.stem}
    for cell in code:
        assert cell['outputs'] == []
        exec(compile(''.join(cell['source']), path.name, 'exec'), names)
    assert len(code) > 4
