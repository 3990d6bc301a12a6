"""``custom_imports`` find what lies beside the config or in the current folder."""

from __future__ import annotations

import sys

import pytest

from mmpetl.config.load import read_config
from mmpetl.core import PETLError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    yield tmp_path
    sys.modules.pop('my_parts', None)


def config(folder, allow: bool = False):
    path = folder / 'mine.py'
    path.write_text(
        "custom_imports = dict(imports=['mmpetl', 'my_parts'], "
        f'allow_failed_imports={allow})\n'
    )
    return path


def test_a_module_beside_the_config_is_found(folder):
    (folder / 'my_parts.py').write_text('x = 1\n')
    read_config(config(folder))
    assert sys.modules['my_parts'].x == 1


def test_a_copy_of_the_config_finds_it_in_the_current_folder(folder, monkeypatch):
    (folder / 'my_parts.py').write_text('x = 2\n')
    (folder / 'run').mkdir()
    monkeypatch.chdir(folder)
    read_config(config(folder / 'run'))
    assert sys.modules['my_parts'].x == 2


def test_one_that_is_nowhere_is_said(folder):
    with pytest.raises(PETLError, match="'my_parts', which is neither installed nor"):
        read_config(config(folder))
    with pytest.warns(UserWarning, match='neither installed nor'):
        read_config(config(folder, allow=True))


def test_what_it_raises_is_said_with_its_line(folder):
    (folder / 'my_parts.py').write_text('\nimport torch\nx = torch.zeroes(1)\n')
    with pytest.raises(PETLError, match=r'cannot be imported: line 3: AttributeError'):
        read_config(config(folder))
