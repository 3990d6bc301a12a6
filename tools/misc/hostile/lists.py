"""Rows of lists of pictures, of FGVC's JSON, and of pictures."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.case import Area, Bench, all_kinds, as_kind, flip, jsons, texts

VTAB = Area('VTAB list', 'train')
FGVC = Area('FGVC json', 'train birds')
PICTURES = Area('pictures', 'train')

TASK = 'data/vtab-1k/digits'
LIST = f'{TASK}/train800val200.txt'
BIRDS = 'data/fgvc/CUB_200_2011'
TOLD = r'(?i)twice|more than once|two labels|duplicate'

# -------------------------------------------------------------------------------- VTAB

all_kinds(VTAB, 'list', LIST)
VTAB.cases = [
    # A list that is cut between two lines is a shorter list, which is a good one.
    case
    for case in VTAB.cases
    if case.input not in {f'list: first {x}% of it' for x in (25, 50, 90)}
]
texts(VTAB, 'list', LIST)
for case, name in (('list: BOM', 'BOM'), ('list: UTF-16', 'UTF-16')):
    found = next(c for c in VTAB.cases if c.input == case)
    VTAB.cases.remove(found)
    VTAB.add(name, found.spoil, want=found.want)


def lines(change: Callable[[list[str]], Any]) -> Callable:
    """A list of other lines."""

    def spoil(bench: Bench) -> None:
        path = bench / LIST
        held = path.read_text().splitlines()
        made = change(held)
        text = '\n'.join(held if made is None else made) + '\n'
        path.write_bytes(text.encode('utf-8', 'surrogateescape'))

    return spoil


def label(text: str) -> Callable:
    """The label of the third line."""

    def change(held: list[str]) -> None:
        held[2] = f'{held[2].rpartition(" ")[0]} {text}'

    return lines(change)


def renamed(name: str) -> Callable:
    """The third picture under another name, in the list and in the folder."""

    def spoil(bench: Bench) -> None:
        def change(held: list[str]) -> None:
            old, _, number = held[2].rpartition(' ')
            folder = Path(old).parent
            target = bench / TASK / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (bench / TASK / old).rename(target)
            held[2] = f'{folder / name} {number}'

        lines(change)(bench)

    return spoil


VTAB.add('form feed in a path', renamed('a\x0cb.jpg'), want='take')
VTAB.add('vertical tab in a path', renamed('a\x0bb.jpg'), want='take')
VTAB.add('U+2028 in a path', renamed('a\u2028b.jpg'), want='take')
VTAB.add('U+0085 in a path', renamed('a\u0085b.jpg'), want='take')
VTAB.add('a blank in a path', renamed('a b.jpg'), want='take')
VTAB.add('an emoji in a path', renamed('\U0001f426.jpg'), want='take')
VTAB.add('a quote and a brace in a path', renamed('a\'"{b}.jpg'), want='take')


@VTAB.row('leading blank in a path', want='take')
def _blank(bench: Bench) -> None:
    def change(held: list[str]) -> None:
        old, _, number = held[2].rpartition(' ')
        (bench / TASK / ' x').mkdir()
        (bench / TASK / old).rename(bench / TASK / ' x' / '1.jpg')
        held[2] = f' x/1.jpg {number}'

    lines(change)(bench)


for name, text in {
    '² (isdigit, no int)': '²',
    '３ (full-width digit)': '３',
    '٣ (Arabic digit)': '٣',
    '1.0': '1.0',
    '1e0': '1e0',
    '0x1': '0x1',
    '1_0': '1_0',
    '-1': '-1',
    '+1': '+1',
    '--1': '--1',
    '10 (there are 10 classes)': '10',
    '10^30': '1' + '0' * 30,
    '10^5000': '1' + '0' * 5000,
    'true': 'true',
    'nan': 'nan',
    'nothing': '',
}.items():
    VTAB.add(f'label {name}', label(text), want='refuse')
VTAB.add('each line twice', lines(lambda h: h * 2), want='refuse', says=TOLD)
VTAB.add('one line twice', lines(lambda h: [*h, h[0]]), want='refuse', says=TOLD)
VTAB.add(
    'one picture with two labels',
    lines(
        lambda h: [
            *h,
            f'{h[0].rpartition(" ")[0]} {(int(h[0].rpartition(" ")[2]) + 1) % 10}',
        ]
    ),
    want='refuse',
    says=TOLD,
)
VTAB.add('list is a folder', as_kind(LIST, 'folder'), want='refuse')
VTAB.add('a line of blanks', lines(lambda h: h.insert(2, '   ')), want='take')
VTAB.add('CR LF line ends', lambda b: _crlf(b), want='take')
VTAB.add('CR line ends', lambda b: _crlf(b, '\r'))
VTAB.add('a tab before the label', lines(lambda h: _tab(h)))
VTAB.add('a line of one word', lines(lambda h: h.insert(2, 'x')), want='refuse')
VTAB.add('a line of 1 MiB', lines(lambda h: h.insert(2, 'x' * 2**20)), want='refuse')
VTAB.add('a NUL in a path', lines(lambda h: h.insert(2, 'a\0b.jpg 1')), want='refuse')
VTAB.add('not UTF-8 in a path', lines(lambda h: h.insert(2, 'a\udcffb.jpg 1')))
VTAB.add('a path of a folder', lines(lambda h: h.insert(2, 'images 1')), want='refuse')
VTAB.add(
    'a path that is missing', lines(lambda h: h.insert(2, 'no.jpg 1')), want='refuse'
)
VTAB.add('a path of 5,000 letters', lines(lambda h: h.insert(2, 'a' * 5000 + ' 1')))
VTAB.add('a path out of the folder', lines(lambda h: h.insert(2, '../../x.jpg 1')))
VTAB.add('only a comment', lines(lambda h: ['# nothing']), want='refuse')


def _crlf(bench: Bench, end: str = '\r\n') -> None:
    path = bench / LIST
    path.write_bytes(path.read_bytes().replace(b'\n', end.encode()))


def _tab(held: list[str]) -> None:
    held[2] = held[2].replace(' ', '\t')


# -------------------------------------------------------------------------------- FGVC

JSON = f'{BIRDS}/train.json'
all_kinds(FGVC, 'FGVC json', JSON)
texts(FGVC, 'FGVC json', JSON)
jsons(FGVC, 'FGVC json', JSON)


def bird(value: Any) -> Callable:
    """The class id of the first picture."""

    def change(entries: dict) -> None:
        entries[next(iter(entries))] = value

    return lambda bench: bench.edit_json(JSON, change)


for name, value in {
    'class id 1.7': 1.7,
    'class id 1.0': 1.0,
    'class id true': True,
    'class id null': None,
    'class id a list': [1],
    'class id an object': {'a': 1},
    'class id NaN': float('nan'),
    'class id Infinity': float('inf'),
    'class id -1': -1,
    'class id 99 (a third class)': 99,
    'class id 10^400': 10**400,
}.items():
    FGVC.add(f'FGVC json: {name}', bird(value), want='refuse')


FGVC.add('FGVC json: class id "1"', bird('1'))


def entries(change: Callable[[dict], Any]) -> Callable:
    return lambda bench: bench.edit_json(JSON, change)


FGVC.add(
    'FGVC json: a picture twice',
    lambda bench: (bench / JSON).write_text(
        (bench / JSON).read_text().replace('{', '{"001.Bird/1.jpg": 2, ', 1)
    ),
    want='refuse',
)
FGVC.add(
    'FGVC json: a picture of train in val, too',
    lambda bench: bench.edit_json(
        f'{BIRDS}/val.json', lambda d: d.update({'001.Bird/1.jpg': 1})
    ),
)
FGVC.add(
    'FGVC json: one picture with two labels in two files',
    lambda bench: bench.edit_json(
        f'{BIRDS}/val.json', lambda d: d.update({'001.Bird/1.jpg': 2})
    ),
    says=TOLD,
)
for name, path in {
    'missing': 'no/picture.jpg',
    'absolute': '/etc/passwd',
    'above the folder': '../../../x.jpg',
    'a folder': '001.Bird',
    'empty': '',
    'with a NUL': 'a\0b.jpg',
    'of 5,000 letters': 'a' * 5000,
}.items():
    FGVC.add(
        f'FGVC json: a path {name}',
        entries(lambda d, path=path: d.update({path: 1})),
        want='refuse',
    )
all_kinds(FGVC, 'FGVC val.json', f'{BIRDS}/val.json')

# ---------------------------------------------------------------------------- pictures

PICTURE = f'{TASK}/images/train800val200/000003.jpg'
all_kinds(PICTURES, 'JPEG', PICTURE)


def pixels(bench: Bench) -> Any:
    """The healthy picture, (H, W, 3) uint8."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(bench / PICTURE).convert('RGB')).copy()


def as_file(kind: str, make: Callable[[Any], Any], **options: Any) -> Callable:
    """The picture in another form, by the same name; names lie."""

    def spoil(bench: Bench) -> None:
        from PIL import Image

        made = make(pixels(bench))
        if not isinstance(made, Image.Image):
            made = Image.fromarray(made)
        buffer = io.BytesIO()
        made.save(buffer, kind, **options)
        (bench / PICTURE).write_bytes(buffer.getvalue())

    return spoil


@PICTURES.row('JPEG without its last 2 bytes', want='take', differs=True)
def _end(bench: Bench) -> None:
    path = bench / PICTURE
    path.write_bytes(path.read_bytes()[:-2])


@PICTURES.row('JPEG with 100 bytes behind its end', want='take')
def _behind(bench: Bench) -> None:
    path = bench / PICTURE
    path.write_bytes(path.read_bytes() + b'x' * 100)


BROKEN = {'want': 'refuse', 'says': '000003'}
PICTURES.add('JPEG, 30 bytes garbled in the middle', flip(PICTURE, 0.75, 30), **BROKEN)
for share in (0.65, 0.85, 0.95):
    PICTURES.add(
        f'JPEG, 8 bytes garbled at {share:.0%}', flip(PICTURE, share, 8), **BROKEN
    )
PICTURES.add('PNG by the name of a JPEG', as_file('PNG', lambda x: x), want='take')
PICTURES.add('BMP by the name of a JPEG', as_file('BMP', lambda x: x), want='take')
PICTURES.add(
    'WebP by the name of a JPEG',
    as_file('WEBP', lambda x: x, lossless=True),
    want='take',
)
PICTURES.add('TIFF by the name of a JPEG', as_file('TIFF', lambda x: x), want='take')


def _half(bench: Bench) -> None:
    as_file('PNG', lambda x: x)(bench)
    path = bench / PICTURE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


PICTURES.add('PNG, half of it', _half, want='refuse')


def _crc(bench: Bench) -> None:
    as_file('PNG', lambda x: x)(bench)
    data = bytearray((bench / PICTURE).read_bytes())
    at = data.index(b'IDAT') + 40
    data[at] ^= 0xFF
    (bench / PICTURE).write_bytes(data)


PICTURES.add('PNG with a wrong checksum', _crc, want='refuse')


def _grey16(x: Any) -> Any:
    import numpy as np
    from PIL import Image

    grey = np.asarray(Image.fromarray(x).convert('L'))
    return grey.astype(np.uint16) * 257


def _mode(mode: str) -> Callable:
    def make(x: Any) -> Any:
        from PIL import Image

        return Image.fromarray(x).convert(mode)

    return make


PICTURES.add('PNG, 16 bits grey', as_file('PNG', _grey16), want='take', differs=True)
PICTURES.add('TIFF, 16 bits grey', as_file('TIFF', _grey16), want='take', differs=True)
for mode in ('L', 'LA', 'RGBA', 'P', '1'):
    PICTURES.add(
        f'PNG, mode {mode}', as_file('PNG', _mode(mode)), want='take', differs=True
    )
PICTURES.add('JPEG, CMYK', as_file('JPEG', _mode('CMYK')), want='take', differs=True)
PICTURES.add(
    'TIFF, floats',
    as_file('TIFF', _mode('F')),
    want='either',
    says='000003',
    differs=True,
)


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)


def _png(width: int, height: int) -> Callable:
    """A PNG of black pixels: few bytes, much memory."""

    def spoil(bench: Bench) -> None:
        packer = zlib.compressobj(9)
        row = b'\0' * (1 + width * 3)
        count = max(1, (1 << 22) // len(row))
        body = b''.join(
            packer.compress(row * min(count, height - i))
            for i in range(0, min(height, 8000), count)
        )
        head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
        (bench / PICTURE).write_bytes(
            b'\x89PNG\r\n\x1a\n'
            + _chunk(b'IHDR', head)
            + _chunk(b'IDAT', body + packer.flush())
            + _chunk(b'IEND', b'')
        )

    return spoil


PICTURES.add('PNG of 60,000 x 60,000 pixels', _png(60_000, 60_000), want='refuse')
PICTURES.add('PNG of 2^31-1 x 2^31-1 pixels', _png(1, 1), want='take', differs=True)
PICTURES.cases.pop()


@PICTURES.row('PNG of 2^31-1 x 2^31-1 pixels', want='refuse')
def _largest(bench: Bench) -> None:
    head = struct.pack('>IIBBBBB', 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    (bench / PICTURE).write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + _chunk(b'IHDR', head)
        + _chunk(b'IDAT', zlib.compress(b'\0' * 100))
        + _chunk(b'IEND', b'')
    )


PICTURES.add('PNG of 1 x 1 pixels', _png(1, 1), want='take', differs=True)
PICTURES.add('PNG of 0 x 0 pixels', _png(0, 0), want='refuse')
PICTURES.add('PNG of 1 x 8,000 pixels', _png(1, 8000), differs=True, want='take')
for name, data in {
    'an SVG': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'PostScript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
    'a PDF': b'%PDF-1.4\n',
    'text': b'no picture',
    '1 MiB of random bytes': os.urandom(2**20),
    'a GIF without a frame': b'GIF89a\x20\x00\x20\x00\x00\x00\x00;',
    'a JPEG of markers only': b'\xff\xd8' + b'\xff\xe0\x00\x10JFIF' + b'\xff\xd9',
}.items():
    PICTURES.add(
        name, lambda b, data=data: (b / PICTURE).write_bytes(data), want='refuse'
    )


@PICTURES.row('half a PNG, in a data worker', want='refuse')
def _worker(bench: Bench) -> None:
    _half(bench)
    bench.options('train_dataloader.num_workers=1')


@PICTURES.row('a picture of the test split is broken', want='refuse')
def _test(bench: Bench) -> None:
    bench.take('run/epoch_2.pth')
    folder = bench / TASK / 'images' / 'test'
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:300])
    bench.call.tool = 'tools/test.py'
    bench.call.argv.insert(1, str(bench / 'run' / 'epoch_2.pth'))
