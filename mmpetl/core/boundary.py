"""What comes from outside: files of text and data, read in bounds and held to a schema.

Every reader of a file that somebody else may have written goes through here: regular
files of a bounded size, UTF-8, JSON without duplicate keys and of bounded nesting, and
then one declared type. ``msgspec`` holds values to the type: its structs are plain
annotated classes, it converts nothing silently (``strict``: 1.7 is no int, true is no
number), and it is one wheel without dependencies.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from mmpetl.core.errors import PETLError

T = TypeVar('T')

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A whole number of things in a record."""

MIB = 1 << 20
LIMIT = 1024 * MIB
"""Bytes of text that are read at most; ``MMPETL_MAX_TEXT_MIB`` raises it."""
DEPTH = 64
"""How deep lists and mappings of data may lie in one another."""


def text_limit() -> int:
    """Bytes of text that are read at most."""
    given = os.environ.get('MMPETL_MAX_TEXT_MIB')
    if given is None:
        return LIMIT
    if not given.isdecimal() or not int(given):
        raise PETLError(f'MMPETL_MAX_TEXT_MIB is a number of MiB, got {given!r}')
    return int(given) * MIB


def regular_file(path: str | os.PathLike, what: str = 'file') -> Path:
    """A path that is a file with bytes in it, and no folder, FIFO or device.

    Args:
        path: The path.
        what: What is asked for, for the message: ``'list of pictures'``.

    Raises:
        FileNotFoundError: There is nothing.
        PETLError: There is something else, which reading could wait for without end.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f'there is no {what} {path}') from None
    except (OSError, ValueError) as error:
        raise PETLError(f'cannot read the {what} {path}: {_why(error)}') from None
    if not stat.S_ISREG(mode):
        kind = 'folder' if stat.S_ISDIR(mode) else 'device, FIFO or socket'
        raise PETLError(f'{path} is a {kind}, and no {what}; name a file')
    return path


def read_bytes(
    path: str | os.PathLike, what: str = 'file', limit: int | None = None
) -> bytes:
    """A regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: There is none.
        PETLError: It is no regular file, longer than ``limit``, or cannot be read.
    """
    path = regular_file(path, what)
    limit = text_limit() if limit is None else limit
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            # One more than is there shows a file that grows; of one over the limit
            # nothing is wanted.
            data = b'' if size > limit else file.read(size + 1)
    except OSError as error:
        raise PETLError(f'cannot read the {what} {path}: {_why(error)}') from None
    if max(size, len(data)) > limit:
        raise PETLError(
            f'the {what} {path} is longer than {limit >> 20} MiB; '
            'MMPETL_MAX_TEXT_MIB=N raises the limit'
        )
    return data


def read_utf8(
    path: str | os.PathLike, what: str = 'file', limit: int | None = None
) -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors write.

    Raises:
        FileNotFoundError: There is none.
        PETLError: As of :func:`read_bytes`, or it is no UTF-8.
    """
    return as_utf8(read_bytes(path, what, limit), f'the {what} {path}')


def as_utf8(data: bytes, place: str) -> str:
    """Bytes as text.

    Args:
        data: With or without a byte order mark.
        place: What they are, for the message.

    Raises:
        PETLError: They are no UTF-8.
    """
    if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise PETLError(f'{place} is UTF-16; save it as UTF-8')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise PETLError(
            f'{place} is no UTF-8: byte {data[error.start]:#04x} in line {line}; save '
            'it as UTF-8'
        ) from None


def read_json(
    path: str | os.PathLike,
    kind: type[T] | Any = Any,
    what: str = 'file',
    limit: int | None = None,
    finite: bool = True,
) -> T:
    """A JSON file of a declared type.

    Args:
        path: The file.
        kind: What it holds, any type that msgspec knows: a ``msgspec.Struct``,
            ``dict[str, int]``, ``list[Entry]``.
        what: What is asked for, for messages.
        limit: Bytes that are read at most.
        finite: Whether NaN and Infinity, which are no JSON, are refused.

    Raises:
        FileNotFoundError: There is none.
        PETLError: It cannot be read, is no JSON, has a key twice, is nested too deep,
            or holds something else than ``kind``; the message says where.
    """
    return parse_json(read_bytes(path, what, limit), kind, f'{path}', finite)


def parse_json(
    data: bytes | str, kind: type[T] | Any = Any, place: str = '', finite: bool = True
) -> T:
    """JSON of a declared type; see :func:`read_json`.

    Args:
        data: Text or its bytes.
        kind: What it holds.
        place: Where it comes from, for messages: a path, ``'runs.jsonl, line 3'``.
        finite: Whether NaN and Infinity are refused.
    """
    text = as_utf8(data, place) if isinstance(data, bytes) else data
    hooks: dict[str, Any] = {'object_pairs_hook': _without_doubles}
    if finite:
        hooks |= {'parse_constant': _refuse_constant, 'parse_float': _finite}
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise PETLError(f'{place} is nested deeper than {DEPTH} levels') from None
    except _Double as error:
        raise PETLError(f'{place} has the key {error.args[0]!r} twice') from None
    except ValueError as error:
        raise PETLError(f'{place} is damaged or no JSON ({error})') from None
    if _HALF.search(text):
        check_characters(value, place)
    return checked(value, kind, place)


_HALF = re.compile(r'\\u[dD][89a-fA-F]')
"""How JSON writes a half of a character; two of them are one."""


def check_characters(value: Any, place: str) -> None:
    """Raise PETLError where a text of loaded data holds half of a character.

    Such a text can neither be printed nor written to a file.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _half(value, place) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key, place)
            check_characters(item, place)
    elif isinstance(value, list | tuple):
        for item in value:
            check_characters(item, place)


def _half(text: str, place: str) -> PETLError:
    return PETLError(f'{place} holds half of a character in {text[:60]!r}')


def checked(value: Any, kind: type[T] | Any, place: str) -> T:
    """Loaded data as a declared type, with nothing converted in silence.

    Args:
        value: Plain data: mappings, lists, text, numbers.
        kind: Any type that msgspec knows.
        place: Where it comes from, for messages.

    Raises:
        PETLError: ``value`` is something else; the message says where, what is there
            and what is wanted.
    """
    check_depth(value, place)
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise PETLError(f'{place}: {_plain(str(error))}') from None
    except UnicodeEncodeError as error:
        # Of other sources than JSON, as a key or as the value of an enumeration.
        raise _half(error.object, place) from None


def check_depth(value: Any, place: str, depth: int = DEPTH) -> None:
    """Raise PETLError where data lie deeper in one another, or hold themselves."""
    level = {id(value): value}
    for _ in range(depth):
        # By identity, for YAML's anchors let one list stand in many places.
        level = {
            id(child): child
            for node in level.values()
            if isinstance(node, dict | list | tuple)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list | tuple)
        }
        if not level:
            return
    raise PETLError(f'{place} is nested deeper than {depth} levels')


def read_json_lines(
    path: str | os.PathLike,
    kind: type[T] | Any = Any,
    what: str = 'file',
    finite: bool = True,
) -> Iterator[T | PETLError]:
    """Every line of a file of JSON lines, or what is wrong with it.

    One bad line never stops the reading of the others; the caller says what it means. A
    last line without an end is being written, or was cut by a kill, and is passed over.

    Raises:
        FileNotFoundError: There is no such file.
        PETLError: The file cannot be read.
    """
    data = read_bytes(path, what)
    whole, _, _ = data.rpartition(b'\n')
    for number, line in enumerate(whole.split(b'\n'), 1):
        if line.strip():
            try:
                yield parse_json(line, kind, f'{path}, line {number}', finite)
            except PETLError as error:
                yield error


class _Double(Exception):
    """A key that an object has twice."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _Double(next(k for k, _ in pairs if k in seen or seen.add(k)))
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is no number of JSON')


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'{text} is too large a number')
    return value


def _plain(message: str) -> str:
    """What msgspec says with the place in front: ``method.type: expected str, ...``."""
    said, _, place = message.partition(' - at ')
    said = said.replace('`', '').replace('Expected', 'expected', 1)
    place = re.sub(r'^\$\.?', '', place.strip('`'))
    return f'{place}: {said}' if place else said


def _why(error: OSError | ValueError) -> str:
    return getattr(error, 'strerror', None) or str(error)
