"""Converters take no more memory than is stated, and labels that are integers."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from converter_files import jpeg, pack, refused

from mmpetl.datasets.catalog import CATALOG, facts_of
from mmpetl.datasets.convert import fgvc, vtab
from mmpetl.datasets.convert.files import look_into
from mmpetl.datasets.convert.members import members
from mmpetl.datasets.convert.npz import read_examples
from mmpetl.datasets.convert.unpack import unpack
from mmpetl.datasets.convert.vtab import FolderExport


def zip_that_says(path, name: str, size: int):
    """A zip of one small member whose size is said to be another."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b'\0' * 1000)
    data = bytearray(path.read_bytes())
    where = data.index(b'PK\x01\x02')
    struct.pack_into('<I', data, where + 24, size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ('name', 'size', 'limit'),
    [('a.jpg', 300 << 20, '256 MiB'), ('a.json', 2000 << 20, '1024 MiB')],
)
def test_members_are_bounded_before_they_are_read(tmp_path, name, size, limit):
    (member,) = members(zip_that_says(tmp_path / 'a.zip', name, size))
    with refused(name, f'{size:,} bytes', limit):
        member.read()


def test_the_limit_of_other_files_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_MAX_TEXT_MIB', '1')
    (member,) = members(zip_that_says(tmp_path / 'a.zip', 'a.json', 3 << 20))
    with refused('a.json', 'MMPETL_MAX_TEXT_MIB=N raises it'):
        member.read()
    monkeypatch.setenv('MMPETL_MAX_TEXT_MIB', '4')
    with refused('damaged'):  # by what is there, not by what is said
        member.read()


def test_a_zip_of_another_packing_is_unpacked_first(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_BZIP2) as archive:
        archive.writestr('a.txt', b'x')
    (member,) = members(tmp_path / 'a.zip')
    with refused('a.txt', 'give the folder'):
        member.read()


def test_a_tar_that_unpacks_to_far_more_is_refused(tmp_path):
    entry = tarfile.TarInfo('a.txt')
    entry.size = 8 << 30
    (tmp_path / 'a.tgz').write_bytes(gzip.compress(entry.tobuf() + b'\0' * 10_000))
    with refused('a.tgz', 'more than 100 times its size'):
        list(members(tmp_path / 'a.tgz'))


def test_a_tar_with_a_name_that_takes_all_memory_is_refused(tmp_path):
    entry = tarfile.TarInfo('././@LongLink')
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
    data = entry.tobuf(tarfile.GNU_FORMAT) + b'\0' * (2 << 20) + b'\0' * 1024
    (tmp_path / 'a.tar').write_bytes(data)
    with refused('a.tar', 'a name or header of 2,097,152 bytes'):
        list(members(tmp_path / 'a.tar'))


def garble(path, name: bytes):
    data = bytearray(path.read_bytes())
    where = data.index(name) + len(name) + 20
    data[where : where + 20] = b'\xff' * 20
    path.write_bytes(data)
    return path


def splits(value='1') -> dict[str, bytes]:
    return {
        name: f'{{"{name[:2]}.jpg": {value}}}'.encode()
        for name in ('train.json', 'val.json', 'test.json')
    }


def test_garbled_members_are_one_line(tmp_path):
    path = tmp_path / 's.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in splits():
            archive.writestr(name, json.dumps({f'{i}.jpg': i for i in range(200)}))
    with refused('s.zip', 'damaged'):
        fgvc.read_splits(facts_of('oxford_flowers'), garble(path, b'val.json'))


@pytest.mark.parametrize(
    'value', ['1.7', '1.0', 'true', 'Infinity', '[1]', '"a"', '9' * 400, '2147483648']
)
def test_class_ids_of_splits_are_integers(tmp_path, value):
    path = pack(tmp_path / 's.zip', splits(value))
    with refused('train.json of', 'is not a JSON object {image path: class id}'):
        fgvc.read_splits(facts_of('oxford_flowers'), path)


def test_splits_of_nothing_and_pictures_that_are_no_files_are_refused(tmp_path):
    files = {'train.json': b'{}', 'val.json': b'{}', 'test.json': b'{}'}
    with refused('train.json of', 'it names no picture'):
        path = pack(tmp_path / 's.zip', files)
        fgvc.read_splits(facts_of('oxford_flowers'), path)
    folder = tmp_path / 'patch_camelyon' / 'test' / '0'
    folder.mkdir(parents=True)
    os.mkfifo(folder / 'a.png')
    with refused('a.png is a device, FIFO or socket'):
        FolderExport(tmp_path).split(facts_of('patch_camelyon'), 'test')


@pytest.mark.parametrize(
    ('images', 'labels', 'part'),
    [
        (np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1.9, 2]), 'labels float64'),
        (np.zeros((3, 4, 4, 3), np.uint8), np.full(3, np.nan), 'labels float64'),
        (
            np.zeros((3, 4, 4, 3), np.uint8),
            np.zeros((3, 1), int),
            'labels int64 (3, 1)',
        ),
        (np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, bool), 'labels bool'),
        (np.zeros((3, 4, 4, 3), np.uint8), np.zeros(2, int), 'labels int64 (2,)'),
        (np.zeros(3, np.uint8), np.zeros(3, int), 'images uint8 (3,)'),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), 'images uint8 (0,'),
        (np.zeros((3, 4, 4, 2), np.uint8), np.zeros(3, int), 'images uint8'),
        (np.zeros((3, 4, 4, 3), np.uint16), np.zeros(3, int), 'images uint16'),
        (np.array([{}] * 3), np.zeros(3, int), 'holds object'),
    ],
)
def test_arrays_have_their_types_and_shapes(tmp_path, images, labels, part):
    np.savez(tmp_path / 'train800.npz', images=images, labels=labels)
    with refused('train800.npz', part):
        read_examples(tmp_path / 'train800.npz')


def npy(shape: tuple, descr: str = '|u1', body: bytes = b'') -> bytes:
    head = repr({'descr': descr, 'fortran_order': False, 'shape': shape})
    head = head.encode().ljust(117) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head + body


def test_arrays_that_say_more_than_they_hold_are_refused_by_their_head(tmp_path):
    path = tmp_path / 'a.npz'
    files = {'labels.npy': npy((3,), '<i8', b'\0' * 24)}
    pack(tmp_path / 'a.zip', {**files, 'images.npy': npy((2**53, 1))}).replace(path)
    with refused('a.npz', '9,007,199,254,740,992 bytes, and has 0'):
        read_examples(path)
    head = npy((2 << 30, 1, 1))
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('labels.npy', files['labels.npy'])
        archive.writestr('images.npy', head)
    data = bytearray(path.read_bytes())
    where = data.rindex(b'PK\x01\x02')
    struct.pack_into('<I', data, where + 24, len(head) + (2 << 30))
    path.write_bytes(data)
    with refused('a.npz', 'more than 100 times'):
        read_examples(path)


def test_what_is_no_npz_is_one_line(tmp_path):
    path = tmp_path / 'a.npz'
    with refused('there is no', 'a.npz'):
        read_examples(path)
    for content in (b'', b'PK\x03\x04', b'\x80\x04.', npy((3,), '<i8', b'\0' * 24)):
        path.write_bytes(content)
        with refused('a.npz', 'is no npz file'):
            read_examples(path)
    pack(tmp_path / 'b.zip', {'images.npy': b'x'}).replace(path)
    with refused('a.npz', 'is no npz file'):
        read_examples(path)
    path.unlink()
    path.mkdir()
    with refused('a.npz', 'is a folder'):
        read_examples(path)


def test_grey_and_colour_arrays_are_taken(tmp_path):
    for number, shape in enumerate([(3, 4, 4), (3, 4, 4, 1), (3, 4, 4, 3)]):
        save = np.savez_compressed if number else np.savez
        save(tmp_path / 'a.npz', images=np.ones(shape, np.uint8), labels=np.arange(3))
        images, labels = read_examples(tmp_path / 'a.npz')
        assert images.shape == shape
        assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize('name', ['²', '１', '-1'])
def test_folders_of_labels_have_ascii_names(tmp_path, name):
    place = tmp_path / 'svhn' / 'test' / name
    place.mkdir(parents=True)
    (place / 'a.jpg').write_bytes(jpeg())
    with refused('is not called by its label'):
        vtab.FolderExport(tmp_path).split(CATALOG['svhn'], 'test')


def test_json_of_any_depth_is_looked_into():
    from pathlib import PurePath

    assert not look_into(PurePath('a.json'), b'{"a": [1, {"b": null}]}')
    assert look_into(PurePath('a.json'), b'[' * 100_000)
    assert look_into(PurePath('a.json'), b'{"a": NaN}')
    assert 'UTF-16' in look_into(PurePath('a.txt'), 'a'.encode('utf-16'))


def test_a_header_that_never_ends_is_refused(tmp_path):
    path = tmp_path / 'a.npz'
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 2, 2), np.uint8))
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('images', 'labels'):
            data = buffer.getvalue().replace(b'(3, 2, 2)', b'(((((((((')
            archive.writestr(f'{name}.npy', data)
    with refused('a.npz', 'is no npz file'):
        read_examples(path)


def test_names_that_no_folder_can_hold_are_refused(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo('a.txt')
        entry.pax_headers = {'path': 'a\0b.txt'}
        archive.addfile(entry)
    with refused('a.tar', 'which no file can be called'):
        list(members(path))
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('a', b'x')
        archive.writestr('a/b', b'x')
    with refused('cannot write', 'a/b'):
        unpack([tmp_path / 'a.zip'], tmp_path / 'out', lambda place: place)


@pytest.mark.parametrize('size', [b'\xff' + bytes(11), b'\x80' + b'\xff' * 11])
@pytest.mark.parametrize('place', [0, 3 * 512])
def test_a_size_beyond_the_machine_is_refused(tmp_path, size, place):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as archive:
        for name in ('x' * 150, 'y' * 150):
            archive.addfile(tarfile.TarInfo(name))
    data = bytearray(path.read_bytes())
    data[place + 124 : place + 136] = size
    data[place + 148 : place + 156] = b' ' * 8
    total = sum(data[place : place + 512])
    data[place + 148 : place + 156] = b'%06o\0 ' % total
    path.write_bytes(data)
    with refused('a.tar', 'damaged'):
        list(members(path))
