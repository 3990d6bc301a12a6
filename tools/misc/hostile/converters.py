"""Rows of converters: archives, split files, arrays."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.case import (
    MIB,
    NESTED,
    Area,
    Base,
    Bench,
    Call,
    all_kinds,
    cut,
    drop_one,
    flip,
)
from hostile.healthy import tree
from hostile.weights import zeros_member

AREA = Area('converters', 'fgvc')

BIRDS = 'data/fgvc/CUB_200_2011'
TASK = 'patch_camelyon'
SPLITS = {'train800': 4, 'val200': 2, 'test': 2}


def pack(path: Path, files: dict[str, bytes]) -> None:
    """A zip of files."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def unpacked(path: Path) -> dict[str, bytes]:
    """The members of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _fgvc(bench: Bench) -> Call:
    source = bench.store / BIRDS
    splits = {p.name: p.read_bytes() for p in source.glob('*.json')}
    pack(bench / 'splits.zip', splits)
    pictures = sorted((source / 'images').rglob('*.jpg'))
    pack(
        bench / 'pictures.zip',
        {str(p.relative_to(source)): p.read_bytes() for p in pictures},
    )
    argv = ['cub_200_2011', '--splits', str(bench / 'splits.zip'), '--data-root']
    argv += [str(bench / 'out'), '--workers', '1', str(bench / 'pictures.zip')]
    return Call('tools/dataset_converters/fgvc.py', argv)


def arrays(count: int) -> dict[str, Any]:
    """Pictures and labels of a split."""
    import numpy as np

    draw = np.random.default_rng(count)
    images = draw.integers(0, 255, (count, 16, 16, 3), np.uint8)
    return {'images': images, 'labels': np.arange(count) % 2}


def _npz(bench: Bench) -> Call:
    import numpy as np

    folder = bench / 'npz' / TASK
    folder.mkdir(parents=True)
    for name, count in SPLITS.items():
        np.savez(folder / f'{name}.npz', **arrays(count))
    argv = ['--npz', str(bench / 'npz'), '--tasks', TASK, '--workers', '1']
    argv += ['--data-root', str(bench / 'out')]
    return Call('tools/dataset_converters/vtab1k.py', argv)


def _folders(bench: Bench) -> Call:
    from PIL import Image

    for name, count in SPLITS.items():
        some = arrays(count)
        for i, picture in enumerate(some['images']):
            folder = bench / 'tree' / TASK / name / str(some['labels'][i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f'{i}.png')
    argv = ['--folders', str(bench / 'tree'), '--tasks', TASK, '--workers', '1']
    argv += ['--data-root', str(bench / 'out')]
    return Call('tools/dataset_converters/vtab1k.py', argv)


def _picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(arrays(1)['images'][0]).save(buffer, 'JPEG')
    return buffer.getvalue()


def _processed(bench: Bench) -> Call:
    files, picture = {}, _picture()
    for name, count in {**SPLITS, 'train800val200': 6}.items():
        lines = [f'images/{name}/{i:06d}.jpg {i % 2}' for i in range(count)]
        files |= {f'{TASK}/{line.split()[0]}': picture for line in lines}
        files[f'{TASK}/{name}.txt'] = '\n'.join(lines).encode() + b'\n'
    pack(bench / 'vtab.zip', files)
    argv = ['--processed', str(bench / 'vtab.zip'), '--workers', '1']
    argv += ['--data-root', str(bench / 'out')]
    return Call('tools/dataset_converters/vtab1k.py', argv)


def _ade(bench: Bench) -> Call:
    import numpy as np
    from PIL import Image

    files, buffer = {}, io.BytesIO()
    Image.fromarray(np.ones((16, 16), np.uint8)).save(buffer, 'PNG')
    for part in ('training', 'validation'):
        files[f'A/images/{part}/1.jpg'] = _picture()
        files[f'A/annotations/{part}/1.png'] = buffer.getvalue()
    pack(bench / 'ade.zip', files)
    argv = [str(bench / 'ade.zip'), '--workers', '1', '--data-root']
    return Call('tools/dataset_converters/ade20k.py', [*argv, str(bench / 'out')])


def _coco(bench: Bench) -> Call:
    files = {}
    for part in ('train', 'val'):
        data = {
            'images': [{'id': 1, 'file_name': '1.jpg', 'height': 16, 'width': 16}],
            'annotations': [
                {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 5, 5]}
                | {'area': 25, 'iscrowd': 0, 'segmentation': [[1, 1, 6, 1, 6, 6]]}
            ],
            'categories': [{'id': 1, 'name': 'person'}],
        }
        files[f'{part}2017/1.jpg'] = _picture()
        files[f'annotations/instances_{part}2017.json'] = json.dumps(data).encode()
    pack(bench / 'coco.zip', files)
    argv = [str(bench / 'coco.zip'), '--workers', '1', '--data-root']
    return Call('tools/dataset_converters/coco.py', [*argv, str(bench / 'out')])


BASES = [
    Base('fgvc', _fgvc, tree),
    Base('npz', _npz, tree),
    Base('folders', _folders, tree),
    Base('processed', _processed, tree),
    Base('convert ade', _ade, tree),
    Base('convert coco', _coco, tree),
]

# ----------------------------------------------------------------------------- archives

all_kinds(AREA, 'splits', 'splits.zip')
all_kinds(AREA, 'zip', 'pictures.zip')
for share in (0.01, 0.3, 0.6, 0.99):
    AREA.add(f'zip: a byte flipped at {share:.0%}', flip('pictures.zip', share))


def zipped(name: str, change: Callable[[dict], Any]) -> Callable:
    """Other members of an archive."""

    def spoil(bench: Bench) -> None:
        files = unpacked(bench / name)
        pack(bench / name, change(files) or files)

    return spoil


@AREA.row('zip: member of 8 GiB zeros (a wanted .jpg)', want='refuse')
def _bomb(bench: Bench) -> None:
    path = bench.store / 'bomb.zip'
    if not path.exists():
        zeros_member(path, 'images/001.Bird/1.jpg', b'\xff\xd8', 8192 * MIB)
    bench.take('bomb.zip')
    bench.call.argv.append(str(bench / 'bomb.zip'))
    files = unpacked(bench / 'pictures.zip')
    files.pop('images/001.Bird/1.jpg')
    pack(bench / 'pictures.zip', files)


@AREA.row('splits: a train.json of 8 GiB zeros', want='refuse')
def _bomb2(bench: Bench) -> None:
    path = bench.store / 'bomb2.zip'
    if not path.exists():
        zeros_member(path, 'train.json', b'{', 8192 * MIB)
    bench.take('bomb2.zip')
    (bench / 'bomb2.zip').rename(bench / 'splits.zip')


@AREA.row('zip: a member whose header says 10 bytes', want='refuse')
def _lies(bench: Bench) -> None:
    data = bytearray((bench / 'pictures.zip').read_bytes())
    at = data.index(b'PK\x01\x02')
    data[at + 24 : at + 28] = struct.pack('<I', 10)
    (bench / 'pictures.zip').write_bytes(data)


@AREA.row('splits: zip with one garbled member', want='refuse')
def _garbled(bench: Bench) -> None:
    with zipfile.ZipFile(bench / 'splits.zip') as archive:
        at = archive.getinfo('train.json').header_offset + 45
    data = bytearray((bench / 'splits.zip').read_bytes())
    for i in range(at, at + 6):
        data[i] ^= 0xFF
    (bench / 'splits.zip').write_bytes(data)


for label, name in {
    'leads outside': '../../canary',
    'is absolute': '/nowhere/canary',
    'leads outside with backslashes': '..\\..\\canary',
    'has a drive': 'C:/canary',
}.items():
    AREA.add(
        f'zip: a member {label}',
        zipped('pictures.zip', lambda f, name=name: {**f, name: b'x'}),
        want='refuse',
    )


@AREA.row('zip: a member is a link to /etc', want='refuse')
def _link(bench: Bench) -> None:
    with zipfile.ZipFile(bench / 'pictures.zip', 'a') as archive:
        entry = zipfile.ZipInfo('images/001.Bird/9.jpg')
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, '/etc/passwd')


@AREA.row('zip: locked with a password', want='refuse')
def _locked(bench: Bench) -> None:
    data = bytearray((bench / 'pictures.zip').read_bytes())
    for mark, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + offset] |= 1
    (bench / 'pictures.zip').write_bytes(data)


AREA.add(
    'zip: 20,000 empty members', zipped('pictures.zip', lambda f: _many(f)), want='take'
)


def _many(files: dict) -> dict:
    return {**files, **{f'more/{i}': b'' for i in range(20_000)}}


@AREA.row('zip: a member twice', want='either', says='twice')
def _twice(bench: Bench) -> None:
    import warnings

    with zipfile.ZipFile(bench / 'pictures.zip', 'a') as archive:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            archive.writestr('images/001.Bird/1.jpg', b'other')


@AREA.row('zip: a picture is missing', want='refuse')
def _missing(bench: Bench) -> None:
    zipped('pictures.zip', lambda f: drop_one(f, '001.Bird/1.jpg'))(bench)


@AREA.row('zip: a picture is text', want='refuse', says='001.Bird/1.jpg')
def _no_picture(bench: Bench) -> None:
    zipped('pictures.zip', lambda f: {**f, 'images/001.Bird/1.jpg': b'no'})(bench)


def tarred(add: Callable[[tarfile.TarFile], object], mode: str = 'w') -> Callable:
    """The pictures as a tar, with something more."""

    def spoil(bench: Bench) -> None:
        files = unpacked(bench / 'pictures.zip')
        (bench / 'pictures.zip').unlink()
        with tarfile.open(bench / 'pictures.zip', mode) as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            add(archive)

    return spoil


def _entry(name: str, kind: bytes, link: str = '') -> Callable:
    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry)

    return add


AREA.add('tar: good', tarred(lambda a: None), want='take')
AREA.add('tar.gz: good', tarred(lambda a: None, 'w:gz'), want='take')
AREA.add(
    'tar: a link', tarred(_entry('images/x', tarfile.SYMTYPE, '/etc')), want='refuse'
)
AREA.add(
    'tar: a hard link',
    tarred(_entry('x', tarfile.LNKTYPE, '/etc/passwd')),
    want='refuse',
)
AREA.add('tar: a device', tarred(_entry('x', tarfile.CHRTYPE)), want='refuse')
AREA.add('tar: a FIFO', tarred(_entry('x', tarfile.FIFOTYPE)), want='refuse')
AREA.add(
    'tar: a member leads outside',
    tarred(_entry('../x', tarfile.REGTYPE)),
    want='refuse',
)
for share in (0.3, 0.7):

    def _cut(bench: Bench, share: float = share) -> None:
        tarred(lambda a: None, 'w:gz')(bench)
        cut('pictures.zip', share)(bench)

    AREA.add(f'tar.gz: first {share:.0%} of it', _cut, want='refuse')
AREA.add(
    'tar: a member of 2^62 bytes',
    lambda b: _claims(b, 2**62),
    want='refuse',
)


def _claims(bench: Bench, size: int) -> None:
    tarred(lambda a: None)(bench)
    entry = tarfile.TarInfo('images/001.Bird/1.jpg')
    entry.size = size
    data = entry.tobuf(tarfile.GNU_FORMAT)
    (bench / 'pictures.zip').write_bytes(data + (bench / 'pictures.zip').read_bytes())


# ------------------------------------------------------------------------------- splits


def split(change: Callable[[dict], Any]) -> Callable:
    """Another train.json."""

    def work(files: dict) -> None:
        entries = json.loads(files['train.json'])
        made = change(entries)
        files['train.json'] = json.dumps(entries if made is None else made).encode()

    return zipped('splits.zip', work)


for label, value in {
    'Infinity': float('inf'),
    '1.7 (becomes 1)': 1.7,
    'NaN': float('nan'),
    'true': True,
    'null': None,
    'a list': [1],
    '10^400': 10**400,
}.items():
    AREA.add(
        f'splits: class id {label}',
        split(lambda d, value=value: d.update({next(iter(d)): value})),
        want='refuse',
    )
AREA.add('splits: class id text', split(lambda d: d.update({next(iter(d)): '1'})))
AREA.add(
    'splits: class id -1',
    split(lambda d: d.update({next(iter(d)): -1})),
    want='take',
    differs=True,
)
AREA.add('splits: a list', split(lambda d: list(d)), want='refuse')
AREA.add('splits: an empty object', split(lambda d: {}), want='refuse')
AREA.add(
    'splits: a picture outside',
    split(lambda d: d.update({'../x.jpg': 1})),
    want='refuse',
)
AREA.add(
    'splits: an absolute picture',
    split(lambda d: d.update({'/x.jpg': 1})),
    want='refuse',
)
for label, content in {
    '100,000 nested lists': NESTED.encode(),
    'not UTF-8': b'{"\xff": 1}',
    'UTF-16': '{"a": 1}'.encode('utf-16'),
    'empty': b'',
    'a key twice': b'{"001.Bird/1.jpg": 1, "001.Bird/1.jpg": 2}',
}.items():
    AREA.add(
        f'splits: {label}',
        zipped('splits.zip', lambda f, c=content: {**f, 'train.json': c}),
        want='refuse',
    )
AREA.add(
    'splits: no train.json',
    zipped('splits.zip', lambda f: drop_one(f, 'train.json')),
    want='refuse',
)
AREA.add(
    'splits: two train.json',
    zipped('splits.zip', lambda f: {**f, 'a/train.json': b'{}'}),
    want='refuse',
)

# ------------------------------------------------------------------------------ arrays


def npz(change: Callable[[dict], Any]) -> Callable:
    """Another train800.npz."""

    def spoil(bench: Bench) -> None:
        import numpy as np

        some = arrays(4)
        change(some)
        np.savez(bench / 'npz' / TASK / 'train800.npz', **some)

    return spoil


def labels(change: Callable[[Any], Any]) -> Callable:
    return npz(lambda a: a.update(labels=change(a['labels'])))


def images(change: Callable[[Any], Any]) -> Callable:
    return npz(lambda a: a.update(images=change(a['images'])))


def array(label: str, spoil: Callable, **facts: Any) -> None:
    AREA.add(f'VTAB npz: {label}', spoil, 'npz', **{'want': 'refuse', **facts})


all_kinds(AREA, 'VTAB npz', f'npz/{TASK}/train800.npz', 'npz')
array('labels are floats 1.9 (become 1)', labels(lambda x: x + 0.9))
array('labels are floats 1.0', labels(lambda x: x.astype('f4')), want='either')
array('labels NaN', labels(lambda x: x * float('nan')))
array('labels are bool', labels(lambda x: x.astype(bool)), want='either')
array('labels are text', labels(lambda x: x.astype(str)))
array('labels are dates', labels(lambda x: x.astype('M8[s]')))
array('labels are complex', labels(lambda x: x + 0j))
array('labels 2-D', labels(lambda x: x[:, None].repeat(2, 1)))
array('labels 0-D', labels(lambda x: x[0]))
array('labels -1', labels(lambda x: x - 1))
array('labels 2 of two classes', labels(lambda x: x + 1))
array('labels are too few', labels(lambda x: x[:-1]))
array('labels are uint64 of 2^63', labels(lambda x: x.astype('u8') + 2**63))
array('labels are objects', labels(lambda x: x.astype(object)))
array('images 1-D', images(lambda x: x.reshape(-1)[:4]))
array('images 5-D', images(lambda x: x[..., None]))
array('images of 2 channels', images(lambda x: x[..., :2]))
array('images of 0 x 0', images(lambda x: x[:, :0, :0]))
array('images float', images(lambda x: x / 255))
array('images uint16', images(lambda x: x.astype('u2')))
array('images are empty', images(lambda x: x[:0]))
array('images are missing', npz(lambda a: drop_one(a, 'images')))
array('labels are missing', npz(lambda a: drop_one(a, 'labels')))
array('no picture at all', npz(lambda a: a.update({k: v[:0] for k, v in a.items()})))
array(
    'a split is missing',
    lambda b: (b / 'npz' / TASK / 'test.npz').unlink(),
)

# --------------------------------------------------------------- the other converters


def processed(label: str, change: Callable[[dict], Any], **facts: Any) -> None:
    AREA.add(
        f'VTAB processed: {label}',
        zipped('vtab.zip', change),
        'processed',
        **{'want': 'refuse', **facts},
    )


LIST = f'{TASK}/train800.txt'


def _line(text: bytes) -> Callable:
    return lambda f: f.update({LIST: f[LIST] + text + b'\n'})


processed('a label ²', _line('images/train800/000000.jpg ²'.encode()))
processed('a label ３', _line('images/train800/000000.jpg ３'.encode()))
processed('a label 9', _line(b'images/train800/000000.jpg 9'))
processed('a line of one word', _line(b'x'))
processed(
    'a list in UTF-16', lambda f: f.update({LIST: f[LIST].decode().encode('utf-16')})
)
processed('a list not UTF-8', _line(b'\xff\xfe'))
processed(
    'a list with BOM',
    lambda f: f.update({LIST: b'\xef\xbb\xbf' + f[LIST]}),
    want='take',
    differs=True,
)
processed('a list is missing', lambda f: drop_one(f, LIST))
processed(
    'a picture is missing',
    lambda f: drop_one(f, 'images/train800/000000.jpg'),
)
processed('no task', lambda f: {'a.txt': b''})


@AREA.row('VTAB folders: a folder called ²', 'folders', want='refuse')
def _square(bench: Bench) -> None:
    folder = bench / 'tree' / TASK / 'train800'
    (folder / '1').rename(folder / '²')


@AREA.row('VTAB folders: half a picture', 'folders', want='refuse')
def _half(bench: Bench) -> None:
    path = next((bench / 'tree' / TASK / 'train800' / '1').iterdir())
    path.write_bytes(path.read_bytes()[:200])


@AREA.row('VTAB folders: a FIFO for a picture', 'folders', want='refuse')
def _pipe(bench: Bench) -> None:
    path = next((bench / 'tree' / TASK / 'train800' / '1').iterdir())
    path.unlink()
    os.mkfifo(path)


@AREA.row('VTAB folders: a link to the folder itself', 'folders', want='either')
def _loop(bench: Bench) -> None:
    folder = bench / 'tree' / TASK / 'train800' / '1'
    (folder / 'again').symlink_to(folder)


AREA.add(
    'ADE zip: a map is missing',
    zipped('ade.zip', lambda f: drop_one(f, 'training/1.png')),
    'convert ade',
    want='refuse',
)
AREA.add(
    'ADE zip: empty',
    zipped('ade.zip', lambda f: {'x': b''}),
    'convert ade',
    want='refuse',
)
for label, content in {
    '100,000 nested lists': NESTED.encode(),
    'a list': b'[]',
    'images is a number': b'{"images": 7}',
    'images hold numbers': b'{"images": [7]}',
    'file_name is a list': b'{"images": [{"file_name": [1]}]}',
    'not UTF-8': b'\xff',
    'no annotations': b'{"images": [{"id": 1, "file_name": "1.jpg"}]}',
}.items():
    AREA.add(
        f'COCO zip: {label}',
        zipped(
            'coco.zip',
            lambda f, c=content: {**f, 'annotations/instances_train2017.json': c},
        ),
        'convert coco',
        want='refuse',
    )
AREA.add(
    'the target folder is a file', lambda b: (b / 'out').write_text(''), want='refuse'
)


@AREA.row('the archive lies in a folder that is gone', want='refuse')
def _gone(bench: Bench) -> None:
    bench.call.argv[-1] = str(bench / 'gone' / 'pictures.zip')


@AREA.row('the disk is full', want='refuse')
def _full(bench: Bench) -> None:
    bench.call.file_bytes = 100
