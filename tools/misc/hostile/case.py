"""What a row of the table is: a healthy call, and what spoils its input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

MIB = 1 << 20


@dataclass
class Call:
    """A command as a user types it.

    Args:
        tool: Script, from the root of the repository.
        argv: Its arguments.
        environ: Variables that it runs with.
        after: Runs in the same process when the command has ended well.
        file_bytes: Bytes that a file may grow to, as on a full disk; None for any.
        modules: Gets the names of all modules that have been imported by its end.
    """

    tool: str
    argv: list[str]
    environ: dict[str, str] = field(default_factory=dict)
    after: Callable[[], object] | None = None
    file_bytes: int | None = None
    modules: Path | None = None


@dataclass
class Bench:
    """The folder of one row, which holds copies of all that its command reads.

    Args:
        path: The folder.
        store: The folder of healthy things, which nothing writes to.
        call: The command; what spoils an input may change it.
    """

    path: Path
    store: Path
    call: Call = field(default_factory=lambda: Call('', []))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def canary(self) -> Path:
        """A file that only code of an input writes."""
        return self.path / 'canary'

    def take(self, *names: str) -> None:
        """Copy healthy files or folders here."""
        for name in names:
            source, target = self.store / name, self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)

    def options(self, *pairs: str) -> None:
        """Add to the command's ``--cfg-options``."""
        argv = self.call.argv
        if '--cfg-options' not in argv:
            argv.append('--cfg-options')
        argv += pairs

    def edit_json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Rewrite a JSON file; ``change`` edits in place or gives what replaces it."""
        path = self / name
        data = json.loads(path.read_text())
        changed = change(data)
        path.write_text(json.dumps(data if changed is None else changed))


Spoil = Callable[[Bench], object]


@dataclass(frozen=True)
class Base:
    """A healthy call.

    Args:
        name: Its name.
        prepare: Copies what it reads into a folder, and gives the command.
        outcome: What came of it, from the folder and what it printed; two outcomes are
            compared as text.
        scopes: Packages that are imported before the process forks.
    """

    name: str
    prepare: Callable[[Bench], Call]
    outcome: Callable[[Bench, str], str]
    scopes: tuple[str, ...] = ('mmpretrain',)


WANTS = ('refuse', 'take', 'either')


@dataclass(frozen=True)
class Case:
    """A row.

    Args:
        area: Part of the table.
        input: What is wrong with the input.
        base: Name of the healthy call.
        spoil: Makes the input from the healthy one.
        want: ``refuse``; ``take``, for an input that is good; or ``either``: refused,
            or taken with the healthy result.
        says: A pattern. An input that is taken with another result than the healthy
            one is told, and not taken in silence, if the command prints this.
        differs: Of a good input, whether its result is one of its own.
    """

    area: str
    input: str
    base: str
    spoil: Spoil
    want: str = 'either'
    says: str = ''
    differs: bool = False

    @property
    def key(self) -> str:
        """What tells it from others."""
        return f'{self.area}: {self.input}'


class Area:
    """Collects the rows of a part of the table.

    Args:
        name: The part.
        base: The healthy call of rows that name none.
    """

    def __init__(self, name: str, base: str) -> None:
        self.name = name
        self.base = base
        self.cases: list[Case] = []

    def add(self, input: str, spoil: Spoil, base: str = '', **facts: Any) -> None:
        """One row."""
        case = Case(self.name, input, base or self.base, spoil, **facts)
        if any(c.input == input for c in self.cases):
            raise ValueError(f'{self.name} has {input!r} twice')
        self.cases.append(case)

    def row(self, input: str, base: str = '', **facts: Any) -> Callable[[Spoil], Spoil]:
        """The decorated function as a row."""

        def note(spoil: Spoil) -> Spoil:
            self.add(input, spoil, base, **facts)
            return spoil

        return note


# ----------------------------------------------------------------- kinds of damage


JUNK: dict[str, Any] = {
    'null': None,
    'a number': 7,
    'a text': 'x',
    'a list': [1],
    'an object': {'a': 1},
    'true': True,
}
"""Values of each type of JSON."""

NESTED = '[' * 100_000 + ']' * 100_000


def junk(*fitting: str) -> Iterator[tuple[str, Any]]:
    """Names and values of types other than those that fit."""
    return ((name, value) for name, value in JUNK.items() if name not in fitting)


def set_at(data: Any, dotted: str, value: Any) -> None:
    """Write to a place such as ``tensors.sha256`` or ``images.0.height``."""
    *path, last = (int(p) if p.isdigit() else p for p in dotted.split('.'))
    for part in path:
        data = data[part]
    data[last] = value


def drop_at(data: Any, dotted: str) -> None:
    """Delete such a place."""
    *path, last = (int(p) if p.isdigit() else p for p in dotted.split('.'))
    for part in path:
        data = data[part]
    del data[last]


def drop_one(data: dict[str, Any], part: str) -> None:
    """Delete the first key that holds a word."""
    del data[next(key for key in data if part in key)]


def cut(name: str, share: float) -> Spoil:
    """Keep the first part of a file."""

    def spoil(bench: Bench) -> None:
        path = bench / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return spoil


def flip(name: str, share: float, count: int = 1) -> Spoil:
    """Change bytes from a place on."""

    def spoil(bench: Bench) -> None:
        path = bench / name
        data = bytearray(path.read_bytes())
        start = min(int(len(data) * share), len(data) - count)
        for i in range(start, start + count):
            data[i] ^= 0xFF
        path.write_bytes(data)

    return spoil


def replaced(name: str, content: bytes | str) -> Spoil:
    """Another content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda bench: (bench / name).write_bytes(data)


def as_kind(name: str, kind: str) -> Spoil:
    """Something else than a regular file in its place."""

    def spoil(bench: Bench) -> None:
        import os

        path = bench / name
        kept = path.with_name(f'{path.name}.kept')
        path.rename(kept)
        if kind == 'folder':
            path.mkdir()
        elif kind == 'FIFO':
            os.mkfifo(path)
        elif kind == 'device':
            path.symlink_to('/dev/zero')
        elif kind == 'link to itself':
            path.symlink_to(path.name)
        elif kind == 'link to nothing':
            path.symlink_to('nowhere')
        elif kind == 'link to the file':
            path.symlink_to(kept.name)
        elif kind == 'missing':
            pass
        else:
            raise ValueError(kind)

    return spoil


KINDS: Sequence[str] = (
    'folder',
    'FIFO',
    'device',
    'link to itself',
    'link to nothing',
    'missing',
)


def all_kinds(area: Area, what: str, name: str, base: str = '') -> None:
    """Rows of a file that is no regular one, damaged, cut, or empty."""
    for kind in KINDS:
        area.add(f'{what}: {kind}', as_kind(name, kind), base, want='refuse')
    area.add(
        f'{what}: link to the file',
        as_kind(name, 'link to the file'),
        base,
        want='take',
    )
    for share in (0.0, 0.25, 0.5, 0.9):
        area.add(
            f'{what}: first {share:.0%} of it', cut(name, share), base, want='refuse'
        )


def texts(area: Area, what: str, name: str, base: str = '', bom: str = 'take') -> None:
    """Rows of a text in other encodings, and of what is no text."""

    def recoded(encoding: str) -> Spoil:
        def spoil(bench: Bench) -> None:
            path = bench / name
            path.write_bytes(path.read_text(encoding='utf-8').encode(encoding))

        return spoil

    area.add(f'{what}: BOM', recoded('utf-8-sig'), base, want=bom)
    area.add(f'{what}: UTF-16', recoded('utf-16'), base, want='refuse')
    area.add(f'{what}: UTF-32', recoded('utf-32'), base, want='refuse')
    area.add(f'{what}: NULs', replaced(name, b'\0' * 4096), base, want='refuse')

    def not_utf8(bench: Bench) -> None:
        path = bench / name
        path.write_bytes(b'\xe9\xff' + path.read_bytes())

    area.add(f'{what}: not UTF-8', not_utf8, base, want='refuse')


def jsons(area: Area, what: str, name: str, base: str = '', **facts: Any) -> None:
    """Rows of JSON that is none, nested too deep, or of another type."""
    facts = {'want': 'refuse', **facts}
    for label, content in {
        '100,000 nested lists': NESTED,
        '100,000 nested objects': '{"a":' * 100_000 + '1' + '}' * 100_000,
        'a list': '[]',
        'null': 'null',
        'a number of 5,000 digits': '9' * 5_000,
        'NaN': 'NaN',
        'an empty object': '{}',
    }.items():
        area.add(f'{what}: {label}', replaced(name, content), base, **facts)
