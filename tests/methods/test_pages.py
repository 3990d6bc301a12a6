"""What the page of a method says of it is what the method is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import mmpetl.methods  # noqa: F401
from mmpetl.core import registered_methods
from mmpetl.registry import METHODS

PAGES = Path(__file__).parents[2] / 'docs' / 'methods'
NAMES = sorted(registered_methods())


def page_of(name: str) -> str:
    return (PAGES / f'{METHODS.get(name).stem()}.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', NAMES)
def test_page_has_the_arguments_and_defaults_of_the_class(name: str) -> None:
    said = re.findall(rf'`{name}\((\w+=[^`]*|)\)`', page_of(name))
    said = [text for text in said if re.search(r'^\| Class', page_of(name), re.M)]
    if not said:
        return  # a page without a row of the class
    _, *params = inspect.signature(METHODS.get(name).__init__).parameters.values()
    want = [f'{param.name}={param.default!r}' for param in params]
    held = [re.split(r', (?=\w+=)', text) for text in said if text] or [[]]
    longest = max(held, key=len)
    if longest and longest[-1] == 'targets=...':
        longest[-1] = want[-1]
    assert longest == want


@pytest.mark.parametrize('name', NAMES)
def test_page_has_the_family_of_the_class(name: str) -> None:
    rows = re.findall(r'^\| Famil(?:y|ies) \| (.*) \|$', page_of(name), re.M)
    for row in rows:
        assert METHODS.get(name).family in re.split(r'; | \| ', row)
