"""Generated tables are those that the registries give now."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_in_the_documents_are_not_stale(monkeypatch, capsys):
    tool = ROOT / 'tools' / 'misc' / 'update_tables.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), '--check'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    assert end.value.code == 0, capsys.readouterr().out


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
