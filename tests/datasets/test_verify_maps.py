"""The verifier opens label maps and finds those that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from verifying import items_of, look, text_of

from mmpetl.datasets.maps import fault_of_stored


@pytest.mark.parametrize(
    ('id', 'label', 'ok'),
    [
        ('ade20k', 150, True),
        ('ade20k', 151, False),
        ('voc_seg', 20, True),
        ('voc_seg', 21, False),
        ('voc_seg', 255, True),
    ],
)
def test_a_map_beyond_the_classes_is_found(copy, id, label, ok):
    root = copy(id)
    mask = items_of(root, id)[0].mask
    labels = np.array(Image.open(mask))
    labels[5:9, 5:9] = label
    Image.fromarray(labels).save(mask)
    text = text_of(look(root, id))
    assert ok == ('' == text)
    assert ok or f"map '{mask}' holds label {label}, beyond {label - 1}" in text
    Image.fromarray(labels[:-1]).save(mask)
    assert 'its picture' in text_of(look(root, id))


def spoil(mask: Path, how: str) -> None:
    """Rewrite a label map in a form that readers take for labels, and are wrong."""
    labels = np.array(Image.open(mask))
    colours = np.stack([labels, labels // 2, 255 - labels], -1)
    if how == 'colours':
        Image.fromarray(colours).save(mask)
    elif how == 'palette':
        Image.fromarray(colours).quantize(8).save(mask)
    elif how == 'jpeg':
        Image.fromarray(labels).save(mask, format='JPEG')
    elif how == 'deep':
        deep = labels.astype(np.uint16)
        deep[:2] = 300
        Image.fromarray(deep).save(mask)
    else:
        turned = Image.fromarray(labels).transpose(Image.Transpose.ROTATE_90)
        turned.crop((0, 0, turned.width + 1, turned.height)).save(mask)


@pytest.mark.parametrize(
    ('how', 'part'),
    [
        ('colours', 'holds colours (mode RGB), not labels'),
        ('palette', 'is a palette picture of other colours'),
        ('jpeg', 'is a JPEG'),
        ('deep', 'holds label 300'),
        ('size', 'its picture'),
    ],
)
@pytest.mark.parametrize('id', ['ade20k', 'voc_seg'])
def test_a_map_of_another_form_is_found(copy, id, how, part):
    root = copy(id)
    mask = items_of(root, id)[0].mask
    spoil(mask, how)
    text = text_of(look(root, id))
    assert f"map '{mask}'" in text
    assert part in text


@pytest.mark.parametrize('id', ['ade20k', 'voc_seg'])
def test_a_sound_map_may_be_plain_or_deep(copy, id):
    root = copy(id)
    mask = items_of(root, id)[0].mask
    labels = np.array(Image.open(mask))
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(labels.astype(dtype)).save(mask)
        assert text_of(look(root, id)) == ''


def test_a_turned_picture_is_measured_as_readers_turn_it(copy):
    root = copy('ade20k')
    item = items_of(root, 'ade20k')[0]
    picture = Image.open(item.path)
    picture.load()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.crop((0, 0, 40, 30)).save(item.path, exif=exif)
    labels = Image.open(item.mask)
    labels.load()
    labels.crop((0, 0, 30, 40)).save(item.mask)
    assert text_of(look(root, 'ade20k')) == ''
    labels.crop((0, 0, 40, 30)).save(item.mask)
    assert 'is 40 x 30, its picture 30 x 40' in text_of(look(root, 'ade20k'))


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        (b'IHDR', b'IHDX', 'cannot be decoded'),
        (2 * b'\x00\x00\x00\x08', 2 * b'\x00\x0f\x00\x08', 'Bomb'),
        (b'IDAT', b'IDA\xae', 'cannot be decoded'),
        (b'IHDR', b'IH', 'cannot be decoded'),
    ],
)
def test_a_damaged_map_is_told_in_a_line(tmp_path, old, new, said):
    path = tmp_path / 'map.png'
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
    assert fault_of_stored(path) is None
    data = path.read_bytes()
    assert old in data
    path.write_bytes(sealed(data.replace(old, new)))
    fault = fault_of_stored(path)
    assert fault is None or said in fault


def sealed(data: bytes) -> bytes:
    """A PNG whose first chunk bears its checksum."""
    return data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]
