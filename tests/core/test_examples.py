"""Examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import mmpetl.core

FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    example.name: example
    for info in pkgutil.iter_modules(mmpetl.core.__path__)
    for example in FINDER.find(importlib.import_module(f'mmpetl.core.{info.name}'))
    if example.examples
}


@pytest.mark.parametrize('name', sorted(EXAMPLES))
def test_the_example_of(name: str) -> None:
    shown: list[str] = []
    result = doctest.DocTestRunner().run(EXAMPLES[name], out=shown.append)
    assert not result.failed, ''.join(shown)


PAGES = ('slots.md', 'any_model.md', 'peft.md', 'hub.md', 'export.md', 'zoo.md')


@pytest.mark.parametrize('name', PAGES)
def test_the_page_runs(name: str) -> None:
    page = Path(mmpetl.__file__).parents[1] / 'docs' / name
    # Lists that grow with the methods are shortened on the pages.
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.ELLIPSIS
    )
    assert result.attempted > 5
    assert not result.failed


def test_the_verbs_have_examples() -> None:
    verbs = {name.rpartition('.')[2] for name in EXAMPLES}
    assert {'inject', 'fold', 'eject', 'save_delta'} <= verbs
