"""Members of archives: read alike, none leads outside, each looked into."""

from __future__ import annotations

import stat
import tarfile
import zipfile

import numpy as np
import pytest
from converter_files import jpeg, pack, refused

from mmpetl.datasets.convert import unpack as unpacking
from mmpetl.datasets.convert.files import write_whole
from mmpetl.datasets.convert.members import members


@pytest.mark.parametrize('kind', ['a.zip', 'a.tar', 'a.tar.gz', 'a.tgz', 'folder'])
def test_members_are_read_alike_from_every_container(tmp_path, kind):
    files = {'x/a.txt': b'one', 'x/y/b.txt': b'two'}
    if kind == 'folder':
        for name, content in files.items():
            write_whole(tmp_path / kind / name, content)
    else:
        pack(tmp_path / kind, files | {'__MACOSX/x/._a.txt': b'', 'x/._b': b'junk'})
    found = {str(m.path): m.read() for m in members(tmp_path / kind)}
    assert found == files


@pytest.mark.parametrize('name', ['../out.txt', '/out.txt', 'x/../../out.txt'])
@pytest.mark.parametrize('kind', ['evil.zip', 'evil.tar'])
def test_no_member_leads_outside(tmp_path, kind, name):
    archive = pack(tmp_path / kind, {'x/a.txt': b'one', name: b'evil'})
    with refused(kind, 'leads outside'):
        unpacking.unpack([archive], tmp_path / 'target', lambda path: path)
    assert not (tmp_path / 'out.txt').exists()


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / 'evil.tar', 'w') as archive:
        entry = tarfile.TarInfo('x/a.jpg')
        entry.type, entry.linkname = kind, '/etc/passwd'
        archive.addfile(entry)
    with refused('evil.tar', 'a link or a device'):
        unpacking.unpack([tmp_path / 'evil.tar'], tmp_path / 't', lambda path: path)
    entry = zipfile.ZipInfo('x/a.jpg')
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as archive:
        archive.writestr(entry, '/etc/passwd')
    with refused('evil.zip', 'holds the link'):
        unpacking.unpack([tmp_path / 'evil.zip'], tmp_path / 't', lambda path: path)
    assert not (tmp_path / 't').exists()


@pytest.mark.parametrize('kind', ['a.zip', 'a.tar', 'a.tgz'])
def test_cut_archives_are_one_line(tmp_path, kind):
    noise = np.random.default_rng(0).bytes(60_000)
    parts = {'x/a.bin': noise[:30_000], 'x/b.bin': noise[30_000:]}
    archive = pack(tmp_path / kind, parts)
    archive.write_bytes(archive.read_bytes()[:35_000])
    with refused(kind, 'damaged'):
        unpacking.unpack([archive], tmp_path / 't', lambda path: path)
    assert not (tmp_path / 't' / 'x' / 'b.bin').exists()


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / 'a.zip'
    for content, part in (
        (b'<!DOCTYPE html><html>', 'is a web page'),
        (b'Rar!\x1a\x07\x01\x00', 'is a rar archive'),
        (b'nothing', 'neither a zip nor a tar'),
    ):
        path.write_bytes(content)
        with refused('a.zip', part):
            list(members(path))
    with refused('no archive or folder'):
        list(members(tmp_path / 'none.zip'))


def test_each_file_is_looked_into(tmp_path):
    for name, content in (
        ('a.jpg', jpeg(side=64)[:-300]),
        ('b.json', b'{'),
        ('c.xml', b'<a>'),
        ('d.png', b'no picture'),
    ):
        archive = pack(tmp_path / 'a.zip', {f'x/{name}': content})
        with refused(f'x/{name}', 'is damaged'):
            unpacking.unpack([archive], tmp_path / 't', lambda path: path)
        assert not (tmp_path / 't' / 'x' / name).exists()


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = pack(tmp_path / 'inner.zip', {'inner.txt': b'x'}).read_bytes()
    archive = pack(tmp_path / 'a.tar', {'a.txt': b'one', 'b.zip': inner})
    assert {str(m.path): m.read() for m in members(archive)} == {
        'a.txt': b'one',
        'b.zip': inner,
    }
