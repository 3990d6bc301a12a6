"""How the fuzzers spoil healthy inputs: data at a place, bytes, members of archives."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

LONGEST = 1 << 20
"""Bytes of an input at most."""

ODD = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    2**64,
    10**400,
    1e308,
    float('nan'),
    float('inf'),
    '',
    ' ',
    '0',
    '²',
    '３',
    '\0',
    '\n',
    '\ud800',
    'x' * 5000,
    '../../x',
    '/',
    '[',
    '*',
    '!',
    'os.system',
    [],
    {},
    [[]],
    [None],
    {'a': {}},
    {'': None},
    {'type': 'x'},
    {'\ud800': 1},
)
"""Values that readers meet seldom."""

WORDS = (
    b'\0',
    b'\xff' * 4,
    b'\xff' * 8,
    b'\x7f\xff\xff\xff',
    b'\x80' + b'\0' * 7,
    b'null',
    b'true',
    b'NaN',
    b'1e999',
    b'-1',
    b'0.5',
    b'9' * 30,
    b'9' * 5000,
    b'[' * 4,
    b'[' * 90,
    b'{' * 90,
    b'(' * 300,
    b'-' * 3000,
    b'{"a":',
    b'"',
    b"'",
    b'\\u0000',
    b'\\ud800',
    b'\xef\xbb\xbf',
    b'\xff\xfe',
    b'\xed\xa0\x80',
    b'\xc2\x85',
    b'PK\x03\x04',
    b'PK\x01\x02',
    b'PK\x05\x06',
    b'cos\nsystem\n',
    b'<!ENTITY',
    b'<!DOCTYPE a [<!ENTITY b "c">]>',
    b'&a;',
    b'&a ',
    b'*a',
    b'<<: ',
    b'? ',
    b'!!python/name:os.system',
    b'!!binary ',
    b'!!timestamp ',
    b'!!set ',
    b'!!omap ',
    b'2001-12-14',
    b'0x7f',
    b'1_0',
    b'0o7',
    b'1:30',
    '²'.encode(),
    '３'.encode(),
    b'\n',
    b'\r',
    b'\t',
    b' ',
    b'..',
    b'/',
)

# ------------------------------------------------------------------------------- data


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all nodes of data."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for key, child in items:
        yield from places(child, (*path, key))


def at(value: Any, path: tuple) -> Any:
    """The node at a path."""
    for key in path:
        value = value[key]
    return value


def edited(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """Data with one node changed; what is not on the way is shared."""
    if not path:
        return change(value)
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {
            k: edited(v, rest, change) if k == head else v for k, v in value.items()
        }
    return [edited(v, rest, change) if i == head else v for i, v in enumerate(value)]


KINDS = ('put', 'put', 'drop', 'more', 'deep', 'odd key', 'other', 'cast', 'near')


def spoilt_data(value: Any, new: Sequence[Any], draw: random.Random) -> Any:
    """Healthy data with one to three nodes changed.

    Args:
        value: The data.
        new: Values to put there.
        draw: What chooses.
    """
    for _ in range(draw.choice((1, 1, 2, 3))):
        paths = list(places(value))
        # The whole is one node of many, and changing it leaves nothing to read.
        path = draw.choice(
            paths[1:] if len(paths) > 1 and draw.random() < 0.95 else paths
        )
        kind = draw.choice(KINDS)
        put = at(value, draw.choice(paths)) if kind == 'other' else draw.choice(new)
        value = edited(value, path, lambda old, k=kind, n=put: _change(old, k, n, draw))
    return value


def _change(old: Any, kind: str, new: Any, draw: random.Random) -> Any:
    if kind == 'deep':
        for _ in range(draw.choice((1, 80))):
            old = [old]
        return old
    if kind == 'cast':
        return _cast(old, draw)
    if kind == 'near':
        return _near(old, draw)
    if isinstance(old, dict) and old and kind not in ('put', 'other'):
        key = draw.choice(list(old))
        if kind == 'drop':
            return {k: v for k, v in old.items() if k != key}
        if kind == 'odd key':
            put = new if isinstance(new, str) else str(new)[:50]
            return {put if k == key else k: v for k, v in old.items()}
        return {**old, 'x': new}
    if isinstance(old, list) and old and kind not in ('put', 'other'):
        index = draw.randrange(len(old))
        if kind == 'drop':
            return old[:index] + old[index + 1 :]
        return [*old, new if kind == 'more' else old[index]]
    return new


def _cast(old: Any, draw: random.Random) -> Any:
    """A value as another type writes it."""
    kinds: tuple[Callable[[Any], Any], ...] = (str, bool, lambda x: [x], _as_mapping)
    if isinstance(old, int):
        kinds += (float, str)
    if isinstance(old, dict):
        kinds += (list, lambda x: list(x.values()))
    try:
        return draw.choice(kinds)(old)
    except (ValueError, OverflowError):
        return None


def _as_mapping(old: Any) -> dict[str, Any]:
    pairs = enumerate(old) if isinstance(old, list) else [('a', old)]
    return {str(k): v for k, v in pairs}


def _near(old: Any, draw: random.Random) -> Any:
    """A value of the same type that lies at the end of a range."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        by = draw.choice((1, -1, 10**6, 2**31, 2**53, 2**63))
        return draw.choice((old + by, -old, old * by, by))
    if isinstance(old, str):
        extra = draw.choice(('\0', '\n', ' ', '.', '/', ':', '*', '²', '\ud800', '-'))
        return draw.choice((old + extra, extra + old, old.replace('.', extra), old[:1]))
    if isinstance(old, list):
        return draw.choice((old[:1], old * 2, old[::-1], [old]))
    return old


# ------------------------------------------------------------------------------ bytes

_TOKEN = re.compile(rb'[\w.+-]+')


def spoilt_bytes(data: bytes, draw: random.Random) -> bytes:
    """A healthy file with one to eight edits."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            found += draw.choice(WORDS)
        found = _spoil(found, draw.randrange(len(found)), draw.randrange(11), draw)
        del found[LONGEST:]
    return bytes(found)


def _spoil(found: bytearray, at: int, kind: int, draw: random.Random) -> bytearray:
    if kind == 0:
        found[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        found[at] = draw.randrange(256)
    elif kind == 2:
        del found[at : at + draw.choice((1, 2, 8, 64, 1024))]
    elif kind == 3:
        del found[at:]
    elif kind == 4:
        found[at:at] = draw.choice(WORDS)
    elif kind == 5:
        word = draw.choice(WORDS)
        found[at : at + len(word)] = word
    elif kind == 6:
        part = found[at : at + draw.choice((1, 8, 64, 512))]
        found[at:at] = part * draw.choice((1, 2, 50))
    elif kind == 7:
        size = draw.choice((1, 2, 4, 8))
        number = draw.choice((0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1))
        found[at : at + size] = number.to_bytes(size, draw.choice(('little', 'big')))
    elif kind == 8:
        other = draw.randrange(len(found))
        size = draw.choice((1, 4, 16, 64))
        found[at : at + size] = found[other : other + size]
    else:
        # A number or a word of the text becomes another, and the rest stays whole.
        token = _TOKEN.search(found, at) or _TOKEN.search(found)
        if token is not None:
            other = _TOKEN.search(found, draw.randrange(len(found))) or token
            put = draw.choice(WORDS) if kind == 9 else bytes(other[0])
            found[token.start() : token.end()] = put
    return found


# ------------------------------------------------------------- members, sealed again

Parts = list[tuple[str, bytes]]


def zip_parts(data: bytes) -> Parts:
    """Members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zip_of(parts: Parts) -> bytes:
    """A zip archive whose checksums fit what it holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name or 'x'), data)
    return buffer.getvalue()


def tar_parts(data: bytes) -> Parts:
    """Header and content of each member of a tar, long names among them."""
    parts, place = [], 0
    while data[place : place + 512].strip(b'\0'):
        head = data[place : place + 512]
        size = -(-int(head[124:136].strip(b'\0 ') or b'0', 8) // 512) * 512
        parts.append(('head', head))
        if size:
            parts.append(('body', data[place + 512 : place + 512 + size]))
        place += 512 + size
    return parts


def tar_of(parts: Parts) -> bytes:
    """A tar whose headers bear their checksums."""
    whole = b''
    for name, data in parts:
        if name == 'head':
            data = data[:512].ljust(512, b'\0')
            blank = data[:148] + b' ' * 8 + data[156:]
            data = blank[:148] + b'%06o\0 ' % sum(blank) + blank[156:]
        whole += data
    return whole + bytes(1024)


def safetensors_parts(data: bytes) -> Parts:
    """Header and values of a safetensors file."""
    (size,) = struct.unpack('<Q', data[:8])
    return [('head', data[8 : 8 + size]), ('body', data[8 + size :])]


def safetensors_of(parts: Parts) -> bytes:
    """A safetensors file that says how long its header is."""
    (_, head), (_, body) = parts
    return struct.pack('<Q', len(head)) + head + body


def png_parts(data: bytes) -> Parts:
    """Chunks of a PNG."""
    parts, place = [], 8
    while place < len(data):
        (size,) = struct.unpack('>I', data[place : place + 4])
        kind = data[place + 4 : place + 8].decode('latin-1')
        parts.append((kind, data[place + 8 : place + 8 + size]))
        place += 12 + size
    return parts


def png_of(parts: Parts) -> bytes:
    """A PNG whose checksums fit."""
    whole = b'\x89PNG\r\n\x1a\n'
    for kind, data in parts:
        body = kind.encode('latin-1') + data
        whole += struct.pack('>I', len(data)) + body
        whole += struct.pack('>I', zlib.crc32(body))
    return whole


SEALS: dict[str, tuple[Callable[[bytes], Parts], Callable[[Parts], bytes]]] = {
    'zip': (zip_parts, zip_of),
    'tar': (tar_parts, tar_of),
    'safetensors': (safetensors_parts, safetensors_of),
    'png': (png_parts, png_of),
}
"""Kinds of files with lengths and checksums: into parts, and from parts."""


def spoilt_parts(parts: Parts, draw: random.Random) -> Parts:
    """Parts of a file of which one is spoilt, gone, there twice or under a new name."""
    parts = list(parts)
    index = draw.randrange(len(parts))
    name, data = parts[index]
    kind = draw.randrange(20)
    if kind == 0 and len(parts) > 2:
        del parts[index]
    elif kind == 1 and len(parts) > 2:
        parts.insert(draw.randrange(len(parts)), (name, data))
    elif kind == 2 and len(parts) > 2:
        other = draw.choice(parts)[0]
        fresh = spoilt_bytes(name.encode(), draw)[:200].decode('latin-1')
        parts[index] = (draw.choice((other, fresh)), data)
    else:
        parts[index] = (name, spoilt_bytes(data, draw))
    return parts


def as_text(value: Any) -> bytes:
    """Data as JSON, lone surrogates and all."""
    return json.dumps(value).encode('utf-8', 'surrogatepass')
