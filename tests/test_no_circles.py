"""No module of mmpetl imports itself by way of others, inside functions included.

An import counts wherever it stands: at the top, in a function, under ``TYPE_CHECKING``.
A name that is taken from a package counts as taken from the module that defines it,
whether ``__init__`` imports it or gives it lazily, for that module is what the importer
needs. That ``__init__`` runs first whenever a part is imported is no edge: it would tie
every part of a package to every other.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import mmpetl

PACKAGE = Path(mmpetl.__file__).parent

WANTED = (ast.Import, ast.ImportFrom, ast.Call, ast.Assign)
LAZY = ('lazy_names', 'moved_names')
"""Functions of ``mmpetl.lazy`` that are given names with the modules of each."""


class Modules:
    """The modules of a package, parsed, and who imports whom.

    Args:
        package: Its folder.
    """

    def __init__(self, package: Path) -> None:
        self.nodes: dict[str, list[ast.AST]] = {}
        self.packages: set[str] = set()
        for path in sorted(package.rglob('*.py')):
            parts = path.relative_to(package.parent).with_suffix('').parts
            if parts[-1] == '__init__':
                parts = parts[:-1]
                self.packages.add('.'.join(parts))
            name = '.'.join(parts)
            tree = ast.parse(path.read_text(encoding='utf-8'))
            self.nodes[name] = [n for n in ast.walk(tree) if isinstance(n, WANTED)]
        self.lazy = {name: self._lazy(name) for name in self.nodes}
        self.given = {name: dict(self._given(name)) for name in self.nodes}

    def edges(self) -> dict[str, set[str]]:
        """What each module imports of the others."""
        return {name: set(self._imports(name)) - {name} for name in self.nodes}

    def _imports(self, name: str) -> Iterator[str]:
        for node in self.nodes[name]:
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name in self.nodes)
            elif isinstance(node, ast.ImportFrom):
                source = self._source(name, node)
                for alias in node.names if source in self.nodes else ():
                    yield self.home(source, alias.name)
        yield from (self.home(*home) for home in self.lazy[name].values())

    def home(self, module: str, name: str, seen: frozenset[str] = frozenset()) -> str:
        """The module behind ``from module import name``: packages pass names on."""
        if f'{module}.{name}' in self.nodes:
            return f'{module}.{name}'
        passed = module in self.packages and name in self.given[module]
        if not passed or module in seen:
            return module
        return self.home(*self.given[module][name], seen | {module})

    def _given(self, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """Names that a module has from others: where from, and what they are there."""
        for node in self.nodes[name]:
            if isinstance(node, ast.ImportFrom):
                source = self._source(name, node)
                for alias in node.names if source in self.nodes else ():
                    yield alias.asname or alias.name, (source, alias.name)
        yield from self.lazy[name].items()

    def _lazy(self, name: str) -> dict[str, tuple[str, str]]:
        """Names that a module gives when they are asked for, by ``mmpetl.lazy``."""
        nodes, found = self.nodes[name], {}
        calls = [
            node
            for node in nodes
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in LAZY
        ]
        literals = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in calls:
            homes = call.args[1]
            if isinstance(homes, ast.Name):
                homes = literals[homes.id]
            for key, home in ast.literal_eval(homes).items():
                absolute = home if home in self.nodes else f'{name}.{home}'
                assert absolute in self.nodes, f'{name} gives {key} from {home}'
                found[key] = absolute, key
        return found

    def _source(self, name: str, node: ast.ImportFrom) -> str:
        """Absolute name of what stands behind ``from``."""
        if not node.level:
            return node.module or ''
        parts = name.split('.')
        up = node.level - (name in self.packages)
        return '.'.join((*parts[: len(parts) - up], *filter(None, [node.module])))


@functools.cache
def ours() -> dict[str, set[str]]:
    """Who imports whom in mmpetl; its modules take seconds to parse."""
    return Modules(PACKAGE).edges()


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules each of which leads to every other."""
    reach = {name: _reached(edges, name) for name in edges}
    groups = {
        tuple(sorted(m for m in reach[n] if n in reach[m]))
        for n in edges
        if n in reach[n]
    }
    return [list(group) for group in sorted(groups)]


def _reached(edges: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = edges[left.pop()] - found
        found |= new
        left += new
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = ours()
    found = circles(edges)
    lines = [
        f'{name} -> {", ".join(sorted(edges[name] & set(group)))}'
        for group in found
        for name in group
    ]
    assert not found, f'{len(found)} circles:\n' + '\n'.join(lines)


@pytest.fixture
def made_up(tmp_path):
    """``made_up(files)``: the circles of a made-up package."""

    def write(**files: str) -> list[list[str]]:
        for name, text in files.items():
            path = tmp_path / 'p' / f'{name.replace("__slash__", "/")}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for folder in {p.parent for p in (tmp_path / 'p').rglob('*.py')}:
            (folder / '__init__.py').touch()
        return circles(Modules(tmp_path / 'p').edges())

    return write


@pytest.mark.parametrize(
    'back',
    [
        'from p import a',
        'import p.a',
        'from . import a',
        'from .a import x',
        'def f():\n    from p.a import x',
        'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x',
        'try:\n    from p.a import x\nexcept ImportError:\n    x = None',
    ],
)
def test_a_circle_of_two_is_seen_however_it_is_written(made_up, back):
    assert made_up(a='from p.b import y\nx = 1', b=f'{back}\ny = 2') == [['p.a', 'p.b']]


@pytest.mark.parametrize(
    'init',
    [
        'from p.q.a import x\nfrom p.q.b import y',
        'from .a import x',
        "_HOMES = {'x': 'a', 'y': 'b'}\nget, names = lazy_names(__name__, _HOMES)",
        "get, names = moved_names(__name__, {'x': 'p.q.a'})",
    ],
)
def test_a_name_of_a_package_is_its_modules(made_up, init):
    parts = {'q__slash____init__': init, 'q__slash__a': 'from p.q.b import y\nx = 1'}
    found = made_up(**parts, q__slash__b='y = 2', c='from p.q import x')
    assert found == []
    found = made_up(**parts, q__slash__b='def f():\n    from p.q import x\ny = 2')
    assert found == [['p.q.a', 'p.q.b']]


def test_a_circle_of_three_is_one(made_up):
    found = made_up(a='import p.b', b='import p.c', c='import p.a', d='import p.a')
    assert found == [['p.a', 'p.b', 'p.c']]


def test_what_forks_and_joins_is_no_circle(made_up):
    assert made_up(a='import p.b, p.c', b='import p.d', c='import p.d', d='') == []


def test_the_architecture_page_draws_the_floors_of_core_as_they_are() -> None:
    page = (PACKAGE.parent / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\d+) \| ([^|]*) \|', page, flags=re.MULTILINE)
    drawn = {
        f'mmpetl.core.{name}': int(floor)
        for floor, names in rows
        for name in re.findall(r'`(\w+)`', names)
    }
    edges = {
        name: {m for m in others if m.startswith('mmpetl.core.')}
        for name, others in ours().items()
        if name.startswith('mmpetl.core.')
    }
    assert set(drawn) == set(edges)
    wrong = [
        f'{name} -> {other}'
        for name, others in edges.items()
        for other in others
        if drawn[other] >= drawn[name]
    ]
    assert wrong == []
