"""Rows of dense sets: ADE20K's maps, COCO's JSON, VOC's XML."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from hostile.case import (
    Area,
    Bench,
    all_kinds,
    cut,
    drop_at,
    jsons,
    junk,
    set_at,
    texts,
)

AREA = Area('dense sets', 'coco')

COCO = 'data/coco/annotations/instances_train2017.json'
VOC = 'data/VOCdevkit/VOC2007'
ADE = 'data/ADEChallengeData2016'

# --------------------------------------------------------------------------------- ADE


def maps(change: Callable[[Any], Any], mode: str | None = None) -> Callable:
    """Every map of the training split, changed.

    Args:
        change: From (H, W) uint8 to an array or a picture.
        mode: Pillow's mode of what is written.
    """

    def spoil(bench: Bench) -> None:
        import numpy as np
        from PIL import Image

        for path in (bench / ADE / 'annotations' / 'training').iterdir():
            made = change(np.asarray(Image.open(path)).copy())
            picture = made if isinstance(made, Image.Image) else Image.fromarray(made)
            buffer = io.BytesIO()
            (picture.convert(mode) if mode else picture).save(buffer, 'PNG')
            path.write_bytes(buffer.getvalue())

    return spoil


def ade(label: str, spoil: Callable, **facts: Any) -> None:
    AREA.add(f'ADE: {label}', spoil, 'ade', **{'want': 'refuse', **facts})


def _wide(x: Any) -> Any:
    import numpy as np

    return np.where(x > 0, 300, 0).astype(np.uint16)


ade('map of another size', maps(lambda x: x[:-8, :-8]))
ade('map of 1 x 1', maps(lambda x: x[:1, :1]))
ade('RGB map', maps(lambda x: x, 'RGB'))
ade('RGBA map', maps(lambda x: x, 'RGBA'))
ade('label 151', maps(lambda x: x.clip(151, 151)))
ade('label 255', maps(lambda x: x.clip(255, 255)), says='label that counts')
ade('label 300 of a 16-bit map', maps(_wide))
ade('map of 1 bit', maps(lambda x: x > 0, '1'), want='take', differs=True)
ade('map is all 0', maps(lambda x: x * 0), want='either', says='label that counts')


def ade_files(change: Callable[[Any], Any], part: str = 'annotations') -> Callable:
    def spoil(bench: Bench) -> None:
        # All of them, for a short run sees a few.
        for path in sorted((bench / ADE / part / 'training').iterdir()):
            change(path)

    return spoil


def _half(path: Any) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ade('a map is missing', ade_files(lambda p: p.unlink()))
ade('a map is empty', ade_files(lambda p: p.write_bytes(b'')))
ade('half a map', ade_files(_half))
ade('a map is text', ade_files(lambda p: p.write_bytes(b'no picture')))
ade(
    'a picture is missing',
    lambda b: sorted((b / ADE / 'images' / 'training').iterdir())[0].unlink(),
    says='maps have no picture',
)
ade('half a picture', ade_files(_half, 'images'))


def _fifo(path: Any) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


ade('a map is a FIFO', ade_files(_fifo))
ade('a picture is a FIFO', ade_files(_fifo, 'images'))

# -------------------------------------------------------------------------------- COCO


def coco(label: str, change: Callable[[Any], Any] | None, **facts: Any) -> None:
    """A row of an instance file."""
    facts = {'want': 'refuse', **facts}
    AREA.add(f'COCO: {label}', lambda b: b.edit_json(COCO, change), **facts)


def put(place: str, value: Any) -> Callable:
    return lambda data: set_at(data, place, value)


def drop(place: str) -> Callable:
    return lambda data: drop_at(data, place)


all_kinds(AREA, 'COCO', COCO)
texts(AREA, 'COCO', COCO, bom='refuse')  # as of upstream's own reader
jsons(AREA, 'COCO', COCO)
coco('no annotations key', drop('annotations'))
coco('an annotation lacks category_id', drop('annotations.0.category_id'))
coco('bbox NaN', put('annotations.0.bbox', [float('nan'), 1, 2, 3]))
coco('bbox Infinity', put('annotations.0.bbox', [1, 1, float('inf'), 3]))
coco('bbox negative width', put('annotations.0.bbox', [1, 1, -9, 3]))
SMALL = {'says': 'boxes are smaller than a pixel'}
coco('bbox of width 0', put('annotations.0.bbox', [1, 1, 0, 3]), **SMALL)
coco('bbox outside of the picture', put('annotations.0.bbox', [9999, 9999, 9, 9]))
coco('bbox of 3 numbers', put('annotations.0.bbox', [1, 2, 3]))
coco('bbox of 5 numbers', put('annotations.0.bbox', [1, 2, 3, 4, 5]))
coco('bbox of texts', put('annotations.0.bbox', ['1', '2', '3', '4']))
coco(
    'bbox of 1e308',
    put('annotations.0.bbox', [0, 0, 1e308, 1e308]),
    says='boxes reach beyond',
)
coco('file_name is a number', put('images.0.file_name', 7))
coco('file_name is absolute', put('images.0.file_name', '/etc/passwd'))
coco('file_name leads outside', put('images.0.file_name', '../../../x.jpg'))
coco('file_name is missing', put('images.0.file_name', 'no.jpg'))
coco('file_name holds a NUL', put('images.0.file_name', 'a\0.jpg'))
coco('image lacks height', drop('images.0.height'))
coco('image lacks id', drop('images.0.id'))
coco('image lacks file_name', drop('images.0.file_name'))
coco('height is another one', put('images.0.height', 3))
coco('height is -1', put('images.0.height', -1))
coco('height is 0', put('images.0.height', 0))
coco('height is 1.5', put('images.0.height', 1.5))
for key in ('images', 'annotations', 'categories'):
    for name, value in junk('a list'):
        coco(f'{key} is {name}', put(key, value))
    coco(f'{key} holds numbers', put(key, [1]))
for key, fitting in (
    ('category_id', ('a number',)),
    ('image_id', ('a number',)),
    ('bbox', ()),
    ('iscrowd', ('a number', 'true')),
    ('segmentation', ()),
    ('area', ('a number',)),
    ('id', ('a number',)),
):
    for name, value in junk(*fitting):
        coco(f'{key} is {name}', put(f'annotations.0.{key}', value))
coco('iscrowd is true', put('annotations.0.iscrowd', True), want='take', differs=True)
coco('category_id is unknown', put('annotations.0.category_id', 9999))
coco('image_id is unknown', put('annotations.0.image_id', 10**9))
coco('area is NaN', put('annotations.0.area', float('nan')))
coco(
    'segmentation of 3 numbers',
    put('annotations.0.segmentation', [[1, 2, 3]]),
    says='no polygon of three points',
)
coco('segmentation holds NaN', put('annotations.0.segmentation', [[float('nan')] * 8]))
coco(
    'segmentation is a run length of other size',
    put('annotations.0.segmentation', {'size': [1, 1], 'counts': [1]}),
)
coco(
    'segmentation is a run length of 2^40',
    put('annotations.0.segmentation', {'size': [2**20, 2**20], 'counts': [2**40]}),
)
coco('two images of one id', lambda d: d['images'].append(dict(d['images'][0])))
coco(
    'two annotations of one id',
    lambda d: d['annotations'].append(dict(d['annotations'][0])),
)
coco(
    'two categories of one id',
    lambda d: put('categories.1.id', d['categories'][0]['id'])(d),
)
coco('a category lacks its name', drop('categories.0.name'))
coco('a category of another name', put('categories.0.name', 'sofa bed'))


def _crowd(data: Any) -> None:
    for entry in data['annotations']:
        entry['iscrowd'] = 1


coco('every image is crowd only', _crowd)
coco('no annotation at all', put('annotations', []))
coco('no image at all', put('images', []))
coco('no category at all', put('categories', []))


# --------------------------------------------------------------------------------- VOC


def xml(change: Callable[[Any], Any]) -> Callable:
    """Every annotation of the set, changed."""

    def spoil(bench: Bench) -> None:
        for path in sorted((bench / VOC / 'Annotations').iterdir()):
            tree = ElementTree.parse(path)
            change(tree.getroot())
            tree.write(path)

    return spoil


def voc(label: str, spoil: Callable, **facts: Any) -> None:
    AREA.add(f'VOC xml: {label}', spoil, 'voc', **{'want': 'refuse', **facts})


def text(place: str, value: str) -> Callable:
    def change(root: Any) -> None:
        root.find(place).text = value

    return xml(change)


def gone(parent: str, name: str) -> Callable:
    def change(root: Any) -> None:
        node = root.find(parent) if parent else root
        node.remove(node.find(name))

    return xml(change)


for label, value in {
    'xmax nan': 'nan',
    'xmax text': 'x',
    'xmax inf': 'inf',
    'xmax empty': '',
    'xmax -5': '-5',
    'xmax 99999': '99999',
    'xmax 1e400': '1e400',
    'xmax of full-width digits': '３３',
    'xmax 1_0': '1_0',
}.items():
    told = {'says': 'boxes beyond their picture'} if label == 'xmax 99999' else {}
    voc(label, text('object/bndbox/xmax', value), **told)
# Where it is missing, upstream reads the size off the picture.
voc('no size', gone('', 'size'), want='either')
voc('size lies (width 1)', text('size/width', '1'))
voc('size lies (width 0)', text('size/width', '0'))
voc('size is text', text('size/width', 'x'))
voc('size has no width', gone('size', 'width'))
voc('no bndbox', gone('object', 'bndbox'))
voc('no xmax', gone('object/bndbox', 'xmax'))
voc('no name', gone('object', 'name'))
voc('an unknown name', text('object/name', 'unicorn'))
voc('an empty name', text('object/name', ''))
voc('no object', xml(lambda root: [root.remove(n) for n in root.findall('object')]))
voc('difficult is text', text('object/difficult', 'x'))
voc('difficult is 7', text('object/difficult', '7'))


def files(content: bytes | None, how: Callable | None = None) -> Callable:
    def spoil(bench: Bench) -> None:
        for path in sorted((bench / VOC / 'Annotations').iterdir()):
            if how is not None:
                how(path)
            else:
                path.write_bytes(content)

    return spoil


LAUGHS = '<!DOCTYPE a [<!ENTITY a0 "ha">' + ''.join(
    f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(10)
)
voc('a billion laughs', files(f'{LAUGHS}]><annotation>&a10;</annotation>'.encode()))
voc(
    'an external entity',
    files(
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<annotation><object><name>&x;</name></object></annotation>'
    ),
)
voc('50,000 nested elements', files(b'<a>' * 50_000 + b'</a>' * 50_000))
voc('another root', files(b'<html></html>'))
voc('empty', files(b''))
voc('no XML', files(b'no xml'))
voc('half of it', files(None, _half))
voc('a FIFO', files(None, _fifo))
voc('missing', files(None, lambda p: p.unlink()))
voc('UTF-16 in its declaration', files(b'<?xml version="1.0" encoding="utf-16"?><a/>'))


IDS = f'{VOC}/ImageSets/Main/trainval.txt'


def ids(label: str, change: Callable[[str], str | bytes], **facts: Any) -> None:
    def spoil(bench: Bench) -> None:
        made = change((bench / IDS).read_text())
        (bench / IDS).write_bytes(made if isinstance(made, bytes) else made.encode())

    AREA.add(f'VOC list: {label}', spoil, 'voc', **{'want': 'refuse', **facts})


ids('empty', lambda t: '')
ids('an id that is missing', lambda t: t + 'x\n')
ids('an id twice', lambda t: t + t.splitlines()[0] + '\n', says='twice|more than once')
ids('an id of a path', lambda t: t + '../../x\n')
ids('an id with a NUL', lambda t: t + 'a\0b\n')
ids('UTF-16', lambda t: t.encode('utf-16'))
ids('not UTF-8', lambda t: b'\xe9' + t.encode())
# Upstream's own reader takes the mark for a part of the first name.
ids('BOM', lambda t: t.encode('utf-8-sig'), want='refuse')
ids('CR LF line ends', lambda t: t.replace('\n', '\r\n'), want='take')
AREA.add('VOC list: cut in an id', lambda b: cut(IDS, 0.3)(b), 'voc', want='refuse')
