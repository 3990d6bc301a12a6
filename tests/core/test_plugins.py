"""Methods from outside of the package: of a named file, and of an installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mmpetl.core import PETLError, plugins, registered_methods
from mmpetl.core.method import method_class
from mmpetl.registry import METHODS

NUDGE = """
from mmpetl.core import Delta, Method
from mmpetl.registry import METHODS

@METHODS.register_module()
class Nudge(Method):
    family = 'adapter'
    targets = ('attn.v',)
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Gives a function that writes a module and names it; it is gone afterwards."""
    before, modules = dict(METHODS.module_dict), set(sys.modules)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(plugins, '_done', set())
    monkeypatch.setattr(plugins, '_installed', lambda: ())

    def write(text: str, name: str = 'nudge.py') -> Path:
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setenv(plugins.VARIABLE, str(path))
        return path

    yield write
    METHODS._module_dict.clear()
    METHODS._module_dict.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_named_file_is_a_method_like_ours(named):
    path = named(NUDGE)
    cls = registered_methods()['Nudge']
    assert method_class('Nudge') is cls
    assert (cls.stem(), cls.file(), cls.ours(), cls.page()) == (
        'nudge',
        path,
        False,
        '',
    )


def test_a_module_in_the_current_folder_is_named_without_a_suffix(named, monkeypatch):
    monkeypatch.chdir(named(NUDGE).parent)
    monkeypatch.setenv(plugins.VARIABLE, f'nudge{os.pathsep}')
    assert 'Nudge' in registered_methods()


def test_an_installed_package_says_it_by_an_entry_point(named, tmp_path, monkeypatch):
    named(NUDGE)
    info = tmp_path / 'nudges-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: nudges\nVersion: 1.0\n'
    )
    (info / 'entry_points.txt').write_text('[mmpetl.methods]\nn = nudge\n')
    monkeypatch.undo()
    monkeypatch.setattr(plugins, '_done', set())
    monkeypatch.syspath_prepend(tmp_path)
    plugins._installed.cache_clear()
    try:
        assert 'Nudge' in registered_methods()
    finally:
        plugins._installed.cache_clear()


@pytest.mark.parametrize(
    ('text', 'name', 'said'),
    [
        ('\nrank = 1 / 0\n', 'nudge.py', r'line 2: ZeroDivisionError'),
        ('def (\n', 'nudge.py', r'line 1: SyntaxError'),
        ('x = 1\n', 'nudge.py', 'registers no method; put @METHODS.register_module'),
        (NUDGE.replace('adapter', 'adaptor'), 'nudge.py', "family = 'adaptor'"),
        (NUDGE, 'lora.py', 'lies in a file lora.py, as a method of mmpetl'),
        (NUDGE, 'torch.py', 'another module torch'),
        (NUDGE, 'my nudge.py', 'is called like ripple.py'),
        (NUDGE.replace('Nudge', 'LoRA'), 'nudge.py', 'LoRA is already registered'),
    ],
)
def test_what_cannot_be_taken_is_refused_in_a_line(named, text, name, said):
    named(text, name)
    with pytest.raises(PETLError, match=said) as error:
        registered_methods()
    assert '\n' not in str(error.value)


def test_a_file_that_is_not_there_is_named(named, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, 'nowhere/nudge.py')
    with pytest.raises(PETLError, match='names nowhere/nudge.py, and there is no such'):
        registered_methods()


def test_who_names_an_unknown_method_is_told_of_the_variable():
    with pytest.raises(PETLError, match='MMPETL_METHODS=FILE.py'):
        method_class('Nudge')


def test_workers_in_another_folder_are_told_the_same_files():
    given = os.pathsep.join(['a/nudge.py', 'my_package.nudge'])
    assert plugins.absolute_names(given).split(os.pathsep) == [
        str(Path('a/nudge.py').absolute()),
        'my_package.nudge',
    ]
