"""Damaged pictures are seen, whole ones are taken, whatever reads them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmpetl.datasets import VTAB, LoadOnce, UnreadableFileError, guard_reading
from mmpetl.datasets.convert.files import look_into
from mmpetl.datasets.soundness import fault_of_picture, lacks_its_end


def noisy(side: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(form: str, seed: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    noisy(seed=seed).save(buffer, form, **options)
    return buffer.getvalue()


def garbled(data: bytes, seed: int = 0, count: int = 30) -> bytes:
    middle = len(data) // 2
    noise = np.random.default_rng(seed + 1).bytes(count)
    return data[:middle] + noise + data[middle + count :]


@pytest.mark.parametrize(
    ('form', 'options'),
    [
        ('JPEG', {'quality': 95}),
        ('JPEG', {'progressive': True}),
        ('PNG', {}),
        ('WEBP', {}),
        ('BMP', {}),
        ('GIF', {}),
        ('TIFF', {}),
    ],
)
def test_whole_pictures_pass(form, options):
    data = encoded(form, **options)
    assert fault_of_picture(data) is None
    assert fault_of_picture(data + b'\0' * 100) is None


def test_grey_and_four_colour_jpegs_pass():
    for mode in ('L', 'CMYK'):
        buffer = io.BytesIO()
        noisy().convert(mode).save(buffer, 'JPEG')
        assert fault_of_picture(buffer.getvalue()) is None


def test_garbled_jpegs_are_seen():
    """Not each: where the codes fit again, nothing tells. Ours are noise, as 95 is."""
    seen = [
        fault_of_picture(garbled(encoded('JPEG', seed, quality=95), seed))
        for seed in range(20)
    ]
    assert sum(fault is not None for fault in seen) >= 19
    assert '(its decoder says: Corrupt JPEG data' in next(filter(None, seen))


def test_a_jpeg_may_lack_its_end_and_nothing_else():
    data = encoded('JPEG')
    assert lacks_its_end(data[:-2])
    assert not lacks_its_end(data)
    assert fault_of_picture(data[:-2]) is None
    for cut in (data[:-40], data[: len(data) // 2]):
        assert fault_of_picture(cut).startswith('is cut')
    assert not look_into(io_path('a.jpg'), data[:-2])
    assert look_into(io_path('a.jpg'), data[:-200]).startswith('is cut')


def io_path(name):
    from pathlib import PurePath

    return PurePath(name)


def test_pngs_and_webps_are_held_to_what_they_state():
    data = encoded('PNG')
    assert 'checksum' in fault_of_picture(garbled(data))
    assert fault_of_picture(data[: len(data) // 2]).startswith('is cut')
    assert fault_of_picture(encoded('WEBP')[:-10]).startswith('is cut')


def test_bombs_are_refused_by_their_head():
    def part(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', check)

    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n' + part(b'IHDR', head) + part(b'IDAT', b'x')
    assert 'pixels' in fault_of_picture(bomb)
    assert 'pixels' in look_into(io_path('a.png'), bomb)


@pytest.fixture(params=['pillow', 'cv2'])
def dataset(request, tmp_path):
    images = tmp_path / 'own/images'
    images.mkdir(parents=True)
    for name in 'ab':
        (images / f'{name}.jpg').write_bytes(encoded('JPEG', quality=95))
    lines = ''.join(f'images/{name}.jpg 0\n' for name in 'ab')
    (tmp_path / 'own/test.txt').write_text(lines)

    def build(cached=False):
        step = dict(type=LoadImageFromFile, imdecode_backend=request.param)
        steps = [LoadOnce([step])] if cached else [step]
        built = VTAB('own', 'test', tmp_path, 1, pipeline=steps, test_mode=True)
        guard_reading(built)
        return built

    build.second = images / 'b.jpg'
    return build


@pytest.mark.parametrize('cached', [False, True])
def test_a_jpeg_without_its_end_is_read_whole(dataset, cached):
    whole = dataset()[1]['img']
    dataset.second.write_bytes(dataset.second.read_bytes()[:-2])
    built = dataset(cached)
    for _ in range(2):
        sample = built[1]
        np.testing.assert_array_equal(sample['img'], whole)
        assert sample['img_path'] == str(dataset.second)
        assert 'listed_path' not in sample


@pytest.mark.parametrize('how', ['half', 'garbled', 'png', 'half png'])
def test_damage_stops_every_reader(dataset, how):
    data = dataset.second.read_bytes()
    png = encoded('PNG')
    dataset.second.write_bytes(
        {
            'half': data[: len(data) // 2],
            'garbled': garbled(data),
            'png': garbled(png),
            'half png': png[: len(png) // 2],
        }[how]
    )
    built = dataset()
    assert built[0]['img'].shape == (64, 64, 3)
    for _ in range(2):
        with pytest.raises(UnreadableFileError, match='it is (cut|damaged)') as caught:
            built[1]
        assert str(dataset.second) in str(caught.value)


def test_files_are_looked_at_once_in_a_run(dataset, monkeypatch):
    from mmpetl.datasets import reading

    looked = []
    look = reading.fault_of_file
    monkeypatch.setattr(
        reading, 'fault_of_file', lambda path: looked.append(path) or look(path)
    )
    built = dataset()
    for _ in range(3):
        built[0]
    assert len(looked) == 1
