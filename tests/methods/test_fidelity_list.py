"""``fidelity.json``: which test holds what a method's source asks of it.

By method stem: an item in a few words -> the test that holds it. A test that is renamed
or lost, and a method without a list, fail here.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import tiny

from mmpetl.core import registered_methods

ROOT = Path(__file__).parents[2]
FIDELITY: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name('fidelity.json').read_text(encoding='utf-8')
)
MET = {
    'pair': {pair.method.name for pair in tiny.pairs()},
    'brief_pair': {pair.method.name for pair in tiny.pairs()},
    'folding_pair': {pair.method.name for pair in tiny.folding_pairs()},
    'method_case': {case.name for case in tiny.method_cases()},
}
"""Names of the methods that a test of the contract runs over, by its argument."""


@cache
def functions_in(file: str) -> dict[str, ast.FunctionDef]:
    """The tests of a file by name."""
    tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')
    }


def claims(node: ast.FunctionDef) -> bool:
    """Whether a test holds anything: an assertion, or a helper that makes one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assert):
            return True
        if isinstance(part, ast.Call):
            name = ast.unparse(part.func).rpartition('.')[2]
            if name in ('check', 'raises', 'warns') or name.startswith('assert_'):
                return True
    return False


def test_every_method_has_a_list_and_every_list_a_method() -> None:
    stems = {cls.stem() for cls in registered_methods().values()}
    assert not stems - FIDELITY.keys(), 'what holds them? list it in fidelity.json'
    assert not FIDELITY.keys() - stems, 'fidelity.json lists what is no method'
    assert all(len(items) >= 2 for items in FIDELITY.values())


@pytest.mark.parametrize('stem_', FIDELITY)
def test_every_item_has_its_test(stem_: str) -> None:
    own = 0
    names = defaultdict(set)
    for name, cls in registered_methods().items():
        names[cls.stem()].add(name)
    for item, test in FIDELITY[stem_].items():
        file, _, name = test.partition('::')
        found = functions_in(file).get(name)
        assert found is not None, f'{stem_}, {item}: there is no {test}'
        assert claims(found), f'{stem_}, {item}: {test} asserts nothing'
        if file.startswith('tests/contract/'):
            taken = {argument.arg for argument in found.args.args}
            met = {name for argument in taken & MET.keys() for name in MET[argument]}
            assert met & names[stem_], f'{stem_}, {item}: {test} misses it'
        else:
            # What is said of one method is held by a test of that method.
            assert stem_ in Path(file).stem, f'{stem_}, {item}: {test} is of another'
            own += 1
        marks = [ast.unparse(mark) for mark in found.decorator_list]
        assert not any('skip' in mark or 'xfail' in mark for mark in marks), test
    assert own
