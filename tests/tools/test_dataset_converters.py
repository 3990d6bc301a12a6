"""From archives as they are published to the layouts we read; whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import FGVC, VTAB, mini
from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.convert import dense, fgvc, study, tfds, videos, vtab
from mmpetl.datasets.convert import unpack as unpacking
from mmpetl.datasets.convert.files import write_whole
from mmpetl.datasets.convert.members import members
from mmpetl.datasets.mini.storage import STAMP

ROOT = Path(__file__).parents[2]
SETS = (
    'VOC2007',
    'VOC2012',
    'ADEChallengeData2016',
    'coco',
    'CUB_200_2011',
    'cifar',
    'dtd',
    'hmdb51',
)


@pytest.fixture(scope='module')
def official(tmp_path_factory) -> Path:
    """A data root with tiny sets in the layouts that converters must arrive at."""
    root = tmp_path_factory.mktemp('official')
    mini.make(root, SETS, size='tiny')
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != STAMP
    }


def pack(target: Path, files: dict[str, bytes]) -> Path:
    """A zip or tar, by the suffix of its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == '.zip':
        with zipfile.ZipFile(target, 'w') as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return target
    mode = 'w:gz' if target.suffix in ('.gz', '.tgz') else 'w'
    with tarfile.open(target, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target


def under(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f'{prefix}/{name}': content for name, content in files.items()}


def refused(*parts: str):
    """One line that says each of ``parts``."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(PETLError)
            self.caught = self.context.__enter__()

        def __exit__(self, *error):
            result = self.context.__exit__(*error)
            message = str(self.caught.value)
            assert '\n' not in message
            for part in parts:
                assert part in message
            return result

    return Check()


def jpeg(shade: int = 90, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (side, side), (shade, 40, 200 - shade)).save(buffer, 'JPEG')
    return buffer.getvalue()


# --- archives ----------------------------------------------------------------


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


# --- dense sets --------------------------------------------------------------


def voc_archives(official: Path, folder: Path) -> list[Path]:
    """VOC as it is published: trainval and test of 2007 apart, 2012."""
    files = tree(official / 'VOCdevkit')
    test = files['VOC2007/ImageSets/Main/test.txt'].decode().split()

    def is_test(name: str) -> bool:
        stem = Path(name).stem
        return name.startswith('VOC2007') and (stem == 'test' or stem in test)

    parts = {
        'VOCtest_06-Nov-2007.tar': {n: c for n, c in files.items() if is_test(n)},
        'VOCtrainval_06-Nov-2007.tar': {
            n: c for n, c in files.items() if n[:7] == 'VOC2007' and not is_test(n)
        },
        'VOCtrainval_11-May-2012.tar': {
            n: c for n, c in files.items() if n[:7] == 'VOC2012'
        },
    }
    extra = {'VOC2007/SegmentationClass/x.png': png()}
    parts['VOCtrainval_06-Nov-2007.tar'] |= extra
    return [
        pack(folder / name, under('VOCdevkit', part)) for name, part in parts.items()
    ]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('L', (4, 4), 3).save(buffer, 'PNG')
    return buffer.getvalue()


def test_voc_arrives_at_the_layout_we_read(official, tmp_path):
    archives = voc_archives(official, tmp_path)
    counts = dense.convert_voc(archives, tmp_path / 'data', workers=2)
    assert [(name, count) for name, count, _ in counts] == [
        ('trainval2007', 4),
        ('trainval2012', 4),
        ('test2007', 2),
    ]
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    assert got.pop('VOC2007/SegmentationClass/x.png') == png()
    assert got == tree(official / 'VOCdevkit')


def test_voc_archives_may_come_one_by_one(official, tmp_path):
    for archive in voc_archives(official, tmp_path):
        dense.convert_voc([archive], tmp_path / 'data')
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    got.pop('VOC2007/SegmentationClass/x.png')
    assert got == tree(official / 'VOCdevkit')


def test_a_voc_list_without_its_pictures_is_not_written(official, tmp_path):
    files = under('VOCdevkit', tree(official / 'VOCdevkit'))
    gone = next(n for n in files if 'VOC2012/JPEGImages' in n)
    del files[gone]
    archive = pack(tmp_path / 'VOC.tar', files)
    with refused('lists', Path(gone).stem):
        dense.convert_voc([archive], tmp_path / 'data')
    assert not list((tmp_path / 'data').rglob('*.txt'))
    with refused('VOCtrainval_06-Nov-2007.tar'):
        dense.convert_voc([pack(tmp_path / 'x.tar', {'a.txt': b''})], tmp_path / 'd')


def test_ade20k_arrives_at_the_layout_we_read(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    archive = pack(
        tmp_path / 'ADEChallengeData2016.zip',
        under('ADEChallengeData2016', files | {'objectInfo150.txt': b'1 wall'}),
    )
    counts = dense.convert_ade20k([archive], tmp_path / 'data', workers=2)
    assert counts == [('train', 4, 20_210), ('val', 2, 2_000)]
    got = tree(tmp_path / 'data' / 'ADEChallengeData2016')
    assert got.pop('objectInfo150.txt') == b'1 wall'
    assert got == files
    # Called again there is nothing to do, not even to read the archive.
    archive.unlink()
    assert dense.convert_ade20k([archive], tmp_path / 'data') == counts


def test_ade20k_without_a_map_gets_no_name(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    del files['annotations/validation/ADE_val_00000002.png']
    archive = pack(tmp_path / 'ade.zip', under('ADEChallengeData2016', files))
    with refused('ADE_val_00000002', '2 pictures, 1 maps'):
        dense.convert_ade20k([archive], tmp_path / 'data')
    assert not (tmp_path / 'data' / 'ADEChallengeData2016').exists()


def test_coco_arrives_at_the_layout_we_read(official, tmp_path):
    files = tree(official / 'coco')
    parts = {
        'annotations_trainval2017.zip': 'annotations',
        'train2017.zip': 'train2017',
    }
    parts['val2017.zip'] = 'val2017'
    archives = [
        pack(
            tmp_path / name,
            {n: c for n, c in files.items() if n.startswith(start)}
            | ({'annotations/captions_val2017.json': b'{}'} if 'ann' in name else {}),
        )
        for name, start in parts.items()
    ]
    counts = dense.convert_coco(archives, tmp_path / 'data')
    assert counts == [('train', 4, 118_287), ('val', 2, 5_000)]
    assert tree(tmp_path / 'data' / 'coco') == files


def test_a_coco_file_without_its_pictures_is_not_written(official, tmp_path):
    files = tree(official / 'coco')
    gone = next(name for name in files if name.startswith('val2017'))
    archive = pack(tmp_path / 'c.zip', {n: c for n, c in files.items() if n != gone})
    with refused('lists 2 pictures, 1 of which', Path(gone).name):
        dense.convert_coco([archive], tmp_path / 'data')
    assert not list((tmp_path / 'data').rglob('*.json'))
    bad = pack(tmp_path / 'b.zip', {'annotations/instances_val2017.json': b'[]'})
    with refused('instances_val2017.json is not a COCO file'):
        dense.convert_coco([bad], tmp_path / 'data')
    with refused('nothing of COCO 2017'):
        dense.convert_coco([pack(tmp_path / 'x.zip', {'a.jpg': jpeg()})], tmp_path)


# --- stopped and called again ------------------------------------------------


class Stop(BaseException):
    """What a user's Ctrl-C is."""


@pytest.mark.parametrize('after', [1, 5, 15])
@pytest.mark.parametrize('workers', [1, 3])
def test_a_stopped_conversion_ends_equal_when_called_again(
    official, tmp_path, monkeypatch, after, workers
):
    archives = voc_archives(official, tmp_path)
    done = []

    def write(path: Path, content: bytes, durable: bool = False) -> None:
        if len(done) >= after:
            raise Stop
        write_whole(path, content, durable)
        done.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, 'write_whole', write)
        with pytest.raises(Stop):
            dense.convert_voc(archives, tmp_path / 'data', workers)
    assert done
    assert not list((tmp_path / 'data').rglob('*.txt'))
    times = {path: path.stat().st_mtime_ns for path in done}
    dense.convert_voc(archives, tmp_path / 'data', workers)
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    got.pop('VOC2007/SegmentationClass/x.png')
    assert got == tree(official / 'VOCdevkit')
    # What was whole was not written a second time.
    assert times == {path: path.stat().st_mtime_ns for path in done}


KILLED = """
import os, signal, sys
from pathlib import Path
from mmpetl.datasets.convert import dense, files, unpack
left = [4]
look = unpack._look
def kill(member, content):
    left[0] -= 1
    if not left[0]:
        partial = Path(sys.argv[2], '.ADEChallengeData2016.partial')
        part = partial / 'images' / 'x.jpg.part'
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)
    look(member, content)
unpack._look = kill
dense.convert_ade20k([Path(sys.argv[1])], Path(sys.argv[2]))
"""


def test_a_killed_conversion_ends_equal_when_called_again(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    archive = pack(tmp_path / 'ade.zip', under('ADEChallengeData2016', files))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', KILLED, archive, tmp_path / 'data'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    partial = tmp_path / 'data' / '.ADEChallengeData2016.partial'
    assert len(list(partial.rglob('*.*g'))) == 3
    assert not (tmp_path / 'data' / 'ADEChallengeData2016').exists()
    dense.convert_ade20k([archive], tmp_path / 'data')
    assert tree(tmp_path / 'data' / 'ADEChallengeData2016') == files
    assert os.listdir(tmp_path / 'data') == ['ADEChallengeData2016']


# --- FGVC --------------------------------------------------------------------


def cub(official: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    files = tree(official / 'fgvc' / 'CUB_200_2011')
    splits = {n: c for n, c in files.items() if n.endswith('.json')}
    return {n: c for n, c in files.items() if n not in splits}, splits


def test_fgvc_takes_what_the_splits_name(official, tmp_path):
    pictures, splits = cub(official)
    other = {name: json.dumps({'a/b.jpg': 1}).encode() for name in splits}
    jsons = pack(
        tmp_path / 'splits.zip',
        under('FGVC/CUB_200_2011', splits) | under('FGVC/nabirds', other),
    )
    extra = {'images/201.No/x.jpg': jpeg(), 'segmentations/a.png': png()}
    archive = pack(tmp_path / 'CUB.tgz', under('CUB_200_2011', pictures | extra))
    root = tmp_path / 'data'
    counts = fgvc.convert_fgvc('cub_200_2011', jsons, [archive], root, workers=2)
    assert [(n, c) for n, c, _ in counts] == [
        ('train.json', 200),
        ('val.json', 4),
        ('test.json', 4),
    ]
    got = tree(root / 'fgvc' / 'CUB_200_2011')
    for name in splits:
        assert json.loads(got.pop(name)) == json.loads(splits[name])
    assert got == pictures
    assert len(FGVC('cub_200_2011', 'test', root / 'fgvc')) == 4


def test_fgvc_refuses_what_does_not_belong_together(official, tmp_path):
    pictures, splits = cub(official)
    jsons = pack(tmp_path / 'splits.zip', splits)
    root = tmp_path / 'data'
    gone = next(iter(pictures))
    archive = pack(tmp_path / 'c.tar', {n: c for n, c in pictures.items() if n != gone})
    with refused('1 of 208 pictures', gone.removeprefix('images/')):
        fgvc.convert_fgvc('cub_200_2011', jsons, [archive], root)
    assert not (root / 'fgvc' / 'CUB_200_2011').exists()
    cars = {name: b'{"car_ims/000001.jpg": 1}' for name in splits}
    old = pack(tmp_path / 'old.tgz', {'cars_train/00001.jpg': jpeg()})
    with refused('pooled release'):
        fgvc.convert_fgvc(
            'stanford_cars', pack(tmp_path / 'cars.zip', cars), [old], root
        )
    for content, part in (
        (b'[1]', 'no JSON object'),
        (b'{"../../x.jpg": 1}', 'outside of the set'),
    ):
        bad = pack(tmp_path / 'bad.zip', splits | {'val.json': content})
        with refused(part):
            fgvc.convert_fgvc('cub_200_2011', bad, [archive], root)
    lonely = pack(tmp_path / 'few.zip', {'train.json': b'{}'})
    with refused('0 files val.json'):
        fgvc.convert_fgvc('cub_200_2011', lonely, [archive], root)


# --- VTAB-1k -----------------------------------------------------------------


def test_the_processed_vtab_archive_arrives_under_our_names(official, tmp_path):
    tasks = {name: tree(official / 'vtab-1k' / name) for name in ('cifar', 'dtd')}
    archive = pack(
        tmp_path / 'vtab-1k.zip',
        under('vtab-1k/cifar100', tasks['cifar'])
        | under('vtab-1k/dtd', tasks['dtd'])
        | {'vtab-1k/README.txt': b'x', 'vtab-1k/dtd/train800.csv': b'x'},
    )
    root = tmp_path / 'data'
    counts = vtab.convert_processed([archive], root, workers=2)
    assert set(counts) == {'cifar100', 'dtd'}
    joined = tasks['dtd']['train800val200.txt'].decode().count('\n')
    assert counts['dtd'][2] == ('train800val200', joined, 1000)
    for name, files in tasks.items():
        assert tree(root / 'vtab-1k' / name) == files
    assert sorted(os.listdir(root / 'vtab-1k')) == ['cifar', 'dtd']
    read = VTAB('cifar100', 'test', root / 'vtab-1k')
    assert len(read) == tasks['cifar']['test.txt'].decode().count('\n')
    assert vtab.convert_processed([archive], root) == counts


@pytest.mark.parametrize(
    ('name', 'change', 'parts'),
    [
        ('val200.txt', lambda c: c.replace(b' ', b','), ('val200.txt:1', 'is not')),
        ('val200.txt', lambda c: c.replace(b'val200', b'test'), ('val200.txt:1',)),
        ('test.txt', lambda c: b'images/test/000000.jpg 47\n', ('label 47', '0 to 46')),
        ('test.txt', lambda c: c + b'images/test/000999.jpg 3\n', ('000999.jpg',)),
        ('test.txt', None, ('no test.txt',)),
        ('images/test/000003.jpg', lambda c: c[:-200], ('000003.jpg', 'is damaged')),
        ('images/test/000003.jpg', None, ('hold no images/test/000003.jpg',)),
    ],
)
def test_a_task_with_a_fault_gets_no_name(official, tmp_path, name, change, parts):
    files = tree(official / 'vtab-1k' / 'dtd')
    content = files.pop(name)
    if change:
        files[name] = change(content)
    archive = pack(tmp_path / 'v.tar', under('vtab-1k/dtd', files))
    with refused('dtd', *parts):
        vtab.convert_processed([archive], tmp_path / 'data')
    assert not (tmp_path / 'data' / 'vtab-1k' / 'dtd').exists()


def arrays(count: int, seed: int, grey: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (count, 12, 10, 1) if grey else (count, 12, 10, 3)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, 5, count)


SIZES = {'train800': 7, 'val200': 3, 'test': 4}


@pytest.mark.parametrize('grey', [False, True])
def test_arrays_and_class_folders_give_the_same_task(tmp_path, grey):
    name = 'diabetic_retinopathy'
    facts = CATALOG[name]
    drawn = {s: arrays(n, i, grey) for i, (s, n) in enumerate(SIZES.items())}
    for split, (images, labels) in drawn.items():
        path = tmp_path / 'npz' / name / f'{split}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images, labels=labels)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / 'png' / name / split / str(label) / f'{index:05d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if grey else image).save(path)
    npz = vtab.NpzExport(tmp_path / 'npz')
    counts = vtab.convert_export(facts, npz, tmp_path / 'a', workers=2)
    assert [c for _, c, _ in counts] == [7, 3, 10, 4]
    folders = vtab.FolderExport(tmp_path / 'png')
    vtab.convert_export(facts, folders, tmp_path / 'b')
    one, two = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    assert one == two
    stem = f'vtab-1k/{name}'
    lines = one[f'{stem}/train800val200.txt'].decode().splitlines()
    labels = [*drawn['train800'][1], *drawn['val200'][1]]
    assert lines == [
        f'images/train800val200/{i:06d}.jpg {label}' for i, label in enumerate(labels)
    ]
    for part, start in (('train800', 0), ('val200', 7)):
        for i in range(SIZES[part]):
            joined = one[f'{stem}/images/train800val200/{start + i:06d}.jpg']
            assert joined == one[f'{stem}/images/{part}/{i:06d}.jpg']
    # Pillow's defaults, as in the archives that circulate.
    buffer = io.BytesIO()
    picture = drawn['test'][0][2]
    Image.fromarray(picture[..., 0] if grey else picture).convert('RGB').save(
        buffer, 'JPEG'
    )
    assert one[f'{stem}/images/test/000002.jpg'] == buffer.getvalue()


def test_a_stopped_export_ends_equal_when_called_again(tmp_path, monkeypatch):
    facts = CATALOG['svhn']
    for i, (split, count) in enumerate(SIZES.items()):
        images, labels = arrays(count, i)
        path = tmp_path / 'npz' / 'svhn' / f'{split}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images, labels=labels)
    export = vtab.NpzExport(tmp_path / 'npz')
    vtab.convert_export(facts, export, tmp_path / 'whole')
    calls, encode = [], vtab.as_jpeg

    def stop(picture):
        calls.append(1)
        if len(calls) == 9:
            raise Stop
        return encode(picture)

    with monkeypatch.context() as patch:
        patch.setattr(vtab, 'as_jpeg', stop)
        with pytest.raises(Stop):
            vtab.convert_export(facts, export, tmp_path / 'data')
    assert not (tmp_path / 'data' / 'vtab-1k' / 'svhn').exists()
    vtab.convert_export(facts, export, tmp_path / 'data')
    assert tree(tmp_path / 'data') == tree(tmp_path / 'whole')


def test_bad_exports_are_refused(tmp_path):
    facts = CATALOG['eurosat']
    export = vtab.NpzExport(tmp_path)
    with refused('no folder eurosat'):
        vtab.convert_export(facts, export, tmp_path / 'data')
    (tmp_path / 'eurosat').mkdir()
    with refused('train800.npz'):
        vtab.convert_export(facts, export, tmp_path / 'data')
    path = tmp_path / 'eurosat' / 'train800.npz'
    np.savez(path, images=np.zeros((2, 4, 4, 3)), labels=np.zeros(2))
    with refused('uint8'):
        vtab.convert_export(facts, export, tmp_path / 'data')
    np.savez(path, images=np.array([{}], object), labels=np.zeros(1))
    with refused("plain 'images'"):
        vtab.convert_export(facts, export, tmp_path / 'data')
    for split in SIZES:
        np.savez(
            tmp_path / 'eurosat' / f'{split}.npz',
            images=np.zeros((1, 4, 4, 3), np.uint8),
            labels=np.array([10]),
        )
    with refused('label 10, out of range 0 to 9'):
        vtab.convert_export(facts, export, tmp_path / 'data')


# --- TensorFlow Datasets -----------------------------------------------------

OFFICIAL_SIZES = {
    'cifar100': dict(train=50_000, test=10_000),
    'caltech101': dict(train=3_060, test=6_084),
    'eurosat': dict(train=27_000),
    'resisc45': dict(train=31_500),
    'dsprites_loc': dict(train=737_280),
    'smallnorb_azi': dict(train=24_300, test=24_300),
    'clevr_dist': dict(train=70_000, validation=15_000),
    'kitti': dict(train=6_347, validation=423, test=711),
}


@pytest.mark.parametrize(
    ('name', 'val', 'test'),
    [
        ('cifar100', 'train[45000:45200]', 'test'),
        ('caltech101', 'train[2754:2954]', 'test'),
        ('eurosat', 'train[16200:16400]', 'train[21600:]'),
        ('resisc45', 'train[18900:19100]', 'train[25200:]'),
        ('dsprites_loc', 'train[589824:590024]', 'train[663552:]'),
        ('smallnorb_azi', 'test[:200]', 'test[12150:]'),
        ('clevr_dist', 'train[63000:63200]', 'validation'),
        ('kitti', 'validation[:200]', 'test'),
    ],
)
def test_slices_are_those_of_vtab(name, val, test):
    task, sizes = tfds.TFDS_TASKS[name], OFFICIAL_SIZES[name]
    assert tfds.instruction(task, 'train800', sizes) == 'train[:800]'
    assert tfds.instruction(task, 'val200', sizes) == val
    assert tfds.instruction(task, 'test', sizes) == test
    # The size of the test part is the one that the published figures are measured on.
    source, _, start = test.partition('[')
    rest = sizes[source] - int(start.rstrip(':]') or 0)
    assert rest == CATALOG[name].num_test


def test_pools_of_the_study_are_the_whole_training_part():
    for name, expected in (
        ('cifar100', 'train[:50000]'),
        ('resisc45', 'train[:25200]'),
        ('clevr_dist', 'train[:70000]'),
    ):
        task, sizes = tfds.TFDS_TASKS[name], OFFICIAL_SIZES[name]
        assert tfds.instruction(task, 'trainval', sizes) == expected


def test_every_task_has_a_source():
    assert set(tfds.TFDS_TASKS) == set(vtab.TASKS)


def label_of(name: str, **example) -> int:
    return tfds.TFDS_TASKS[name].label(example)


def test_labels_are_those_of_vtab():
    assert label_of('dtd', label=np.int64(7)) == 7
    for count, label in ((3, 0), (10, 7)):
        assert label_of('clevr_count', objects={'size': np.zeros(count)}) == label
    # Six intervals between 0, 8, 8.5, 9, 9.5, 10 and 100, open below.
    for near, label in ((7.9, 0), (8.0, 0), (8.1, 1), (9.2, 3), (10.0, 4), (10.1, 5)):
        coords = np.array([[1, 2, 50.0], [3, 4, near]])
        assert label_of('clevr_dist', objects={'pixel_coords': coords}) == label
        rows = [{'pixel_coords': row} for row in coords]
        assert label_of('clevr_dist', objects=rows) == label
    # Cars, vans and trucks count; a pedestrian (type 3) does not.
    place = np.array([[0, 0, 30.0], [0, 0, 12.0], [0, 0, 2.0]])
    for kinds, label in (
        ([0, 0, 3], 1),
        ([0, 0, 1], 0),
        ([2, 3, 3], 2),
        ([3, 4, 7], 3),
    ):
        objects = {'type': np.array(kinds), 'location': place}
        assert label_of('kitti', objects=objects) == label
    nothing = {'type': np.zeros(0, int), 'location': np.zeros((0, 3))}
    assert label_of('kitti', objects=nothing) == 3
    # 32 positions and 40 orientations in 16 bins.
    for value, label in ((0, 0), (1, 0), (2, 1), (31, 15)):
        assert label_of('dsprites_loc', label_x_position=value) == label
    for value, label in ((0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (39, 15)):
        assert label_of('dsprites_ori', label_orientation=value) == label
    assert label_of('smallnorb_azi', label_azimuth=17) == 17
    assert label_of('smallnorb_ele', label_elevation=8) == 8


def fake_tfds(monkeypatch, kind: str = 'array_record', splits: bool = True) -> list:
    """A stand-in that hands out numbered pictures, and notes what it is asked for."""
    asked = []

    class Builder:
        def __init__(self, name, data_dir):
            asked.append((name, data_dir))
            sizes = {'train': 737_280} if splits else {}
            self.info = types.SimpleNamespace(
                file_format=types.SimpleNamespace(value=kind),
                full_name=name,
                splits={
                    k: types.SimpleNamespace(num_examples=v) for k, v in sizes.items()
                },
            )

        def as_data_source(self, split):
            asked.append(split)
            count = {'train[:800]': 6, 'train[589824:590024]': 2}.get(split, 3)
            return [
                {'image': np.full((4, 4, 1), i % 2, np.uint8), 'label_x_position': i}
                for i in range(count)
            ]

    module = types.ModuleType('tensorflow_datasets')
    module.builder = lambda name, data_dir=None: Builder(name, data_dir)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', module)
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    return asked


def test_tfds_is_read_into_the_processed_layout(tmp_path, monkeypatch):
    asked = fake_tfds(monkeypatch)
    export = tfds.TFDSExport(tmp_path / 'tfds')
    counts = vtab.convert_export(CATALOG['dsprites_loc'], export, tmp_path)
    assert [c for _, c, _ in counts] == [6, 2, 8, 3]
    assert asked[0] == ('dsprites:2.0.0', str(tmp_path / 'tfds'))
    folder = tmp_path / 'vtab-1k' / 'dsprites_loc'
    assert (folder / 'val200.txt').read_text().splitlines() == [
        'images/val200/000000.jpg 0',
        'images/val200/000001.jpg 0',
    ]
    # dSprites stores 0 and 1; black and white is meant.
    pixels = np.asarray(Image.open(folder / 'images' / 'train800' / '000001.jpg'))
    assert pixels.shape == (4, 4, 3)
    assert pixels.min() > 250


def test_what_tfds_lacks_is_one_line(tmp_path, monkeypatch):
    facts, export = CATALOG['dsprites_loc'], tfds.TFDSExport(tmp_path)
    fake_tfds(monkeypatch, kind='tfrecord')
    with refused('stored as tfrecord', 'needs TensorFlow'):
        vtab.convert_export(facts, export, tmp_path)
    fake_tfds(monkeypatch, splits=False)
    with refused('dsprites:2.0.0 is not prepared', 'tfds build dsprites'):
        vtab.convert_export(facts, export, tmp_path)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with refused('pip install tensorflow-datasets array_record'):
        vtab.convert_export(facts, export, tmp_path)


# --- videos ------------------------------------------------------------------


def clip_file(path: Path, frames: int = 6, codec: str = 'VP80', side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), fourcc, 12, (side, side))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((side, side, 3), 20 + 15 * index, np.uint8))
    writer.release()
    return path


@pytest.fixture
def ssv2(tmp_path) -> tuple[Path, Path]:
    """Three clips and their annotations, as published."""
    for number in (3, 12, 7):
        clip_file(tmp_path / 'webm' / f'{number}.webm', frames=number)
    labels = tmp_path / 'labels'
    table = {'Pushing something': '1', 'Dropping something onto something': '0'}
    entries = {
        'train': [
            {'id': '3', 'template': 'Pushing [something]'},
            {'id': '12', 'template': 'Dropping [something] onto [something]'},
        ],
        'validation': [{'id': '7', 'template': 'Pushing [something]'}],
    }
    for name, content in {'labels': table, **entries}.items():
        file = f'something-something-v2-{name}.json'
        write_whole(labels / file, json.dumps(content).encode())
    return tmp_path / 'webm', labels


def test_ssv2_is_re_encoded_and_listed(ssv2, tmp_path):
    root = tmp_path / 'data'
    counts = videos.convert_ssv2(*ssv2, root, 'opencv', workers=2)
    assert counts == [('train', 2, 168_913), ('val', 1, 24_777)]
    folder = root / 'ssv2'
    assert (folder / 'sthv2_train_list_videos.txt').read_text() == '3.mp4 1\n12.mp4 0\n'
    assert (folder / 'sthv2_val_list_videos.txt').read_text() == '7.mp4 1\n'
    for number in (3, 12, 7):
        assert videos.count_frames(folder / 'videos' / f'{number}.mp4') == number
    # What is there needs neither source nor encoder.
    shutil.rmtree(ssv2[0])
    assert videos.convert_ssv2(*ssv2, root) == counts


def test_a_stopped_re_encoding_goes_on(ssv2, tmp_path, monkeypatch):
    root, made = tmp_path / 'data', []
    encode = videos._encode_opencv

    def stop(source: Path, target: Path) -> None:
        encode(source, target)
        if made:
            target.write_bytes(target.read_bytes()[:100])
            raise Stop
        made.append(target)

    monkeypatch.setattr(videos, '_encode_opencv', stop)
    with pytest.raises(Stop):
        videos.convert_ssv2(*ssv2, root, 'opencv')
    folder = root / 'ssv2' / 'videos'
    assert len(os.listdir(folder)) == 1
    assert not list((root / 'ssv2').glob('*.txt'))
    monkeypatch.setattr(videos, '_encode_opencv', encode)
    videos.convert_ssv2(*ssv2, root, 'opencv')
    assert sorted(os.listdir(folder)) == ['12.mp4', '3.mp4', '7.mp4']


FFMPEG = """#!{python}
import pathlib, shutil, sys
log = pathlib.Path({log!r})
with log.open('a') as file:
    print(*sys.argv[1:], file=file)
if sys.argv[1] == '-version':
    print('ffmpeg version {version} Copyright')
else:
    shutil.copyfile({made!r}, sys.argv[-1])
"""


@pytest.mark.parametrize(
    ('version', 'option'), [('4.4.2', '-vsync'), ('n7.1', '-fps_mode')]
)
def test_ffmpeg_is_called_for_h264(tmp_path, monkeypatch, version, option):
    source = clip_file(tmp_path / 'a.webm')
    made = clip_file(tmp_path / 'made.mp4', codec='mp4v')
    program = tmp_path / 'bin' / 'ffmpeg'
    log = tmp_path / 'log'
    text = FFMPEG.format(
        python=sys.executable, log=str(log), version=version, made=str(made)
    )
    write_whole(program, text.encode())
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    encode = videos.find_encoder('ffmpeg')
    assert videos.reencode(source, tmp_path / 'out' / 'a.mp4', encode)
    assert os.listdir(tmp_path / 'out') == ['a.mp4']
    call = log.read_text().splitlines()[-1]
    assert f'-i {source} ' in call
    assert f'{option} passthrough' in call
    assert 'libx264 -crf 18' in call
    # A copy that lost frames is not kept.
    shutil.copyfile(clip_file(tmp_path / 'few.mp4', 4, 'mp4v'), made)
    with refused('has 6 frames, its copy 4'):
        videos.reencode(source, tmp_path / 'out' / 'b.mp4', encode)
    assert os.listdir(tmp_path / 'out') == ['a.mp4']


def test_bad_ssv2_is_refused(ssv2, tmp_path, monkeypatch):
    clips, labels = ssv2
    root = tmp_path / 'data'
    monkeypatch.setenv('PATH', '')
    with refused('ffmpeg is not on the PATH', '--encoder opencv'):
        videos.convert_ssv2(clips, labels, root)
    cut = clips / '12.webm'
    cut.write_bytes(cut.read_bytes()[:60])
    with refused('cannot read the clip', '12.webm'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    cut.unlink()
    with refused('1 of 3 listed clips', '12.webm'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    assert not list((root / 'ssv2').glob('*.txt'))
    bad = [{'id': '3', 'template': 'Eating [something]'}]
    path = labels / 'something-something-v2-train.json'
    path.write_text(json.dumps(bad))
    with refused('train.json', 'Eating something'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    path.unlink()
    with refused('neither train.json nor something-something-v2-train.json'):
        videos.convert_ssv2(clips, labels, root, 'opencv')


def test_kinetics_is_listed_from_folders_and_tables(tmp_path):
    folder = tmp_path / 'kinetics400'
    sound = clip_file(tmp_path / 'x.mp4', codec='mp4v').read_bytes()
    for name in ('riding a bike/a_000001_000011', 'abseiling/b_000002_000012'):
        write_whole(folder / 'videos_train' / f'{name}.mp4', sound)
    write_whole(folder / 'videos_train' / 'abseiling' / 'cut.mp4', sound[:50])
    # The validation clips lie flat, and an id may hold an underscore.
    write_whole(folder / 'videos_val' / 'c_d_000003_000013.mp4', sound)
    table = tmp_path / 'val.csv'
    table.write_text(
        'label,youtube_id,time_start,time_end,split\nriding a bike,c_d,3,13,validate\n'
    )
    counts = videos.convert_kinetics400(tmp_path, {'val': table}, workers=2)
    assert counts == [('train', 2, None), ('val', 1, None)]
    lines = (folder / 'kinetics400_train_list_videos.txt').read_text().splitlines()
    assert lines == [
        'abseiling/b_000002_000012.mp4 0',
        'riding_a_bike/a_000001_000011.mp4 1',
    ]
    text = (folder / 'kinetics400_val_list_videos.txt').read_text()
    assert text == 'c_d_000003_000013.mp4 1\n'
    left_out = folder / 'kinetics400_train_unreadable.txt'
    assert left_out.read_text() == 'abseiling/cut.mp4\n'
    (folder / 'videos_train' / 'abseiling' / 'cut.mp4').unlink()
    videos.convert_kinetics400(tmp_path, {'val': table})
    assert not left_out.exists()
    with refused('the class of', 'give the CSV'):
        videos.convert_kinetics400(tmp_path)
    table.write_text('a,b\n1,2\n')
    with refused('has no columns'):
        videos.convert_kinetics400(tmp_path, {'val': table})
    shutil.rmtree(folder / 'videos_val')
    with refused('there is no', 'videos_val'):
        videos.convert_kinetics400(tmp_path)


def test_hmdb51_has_three_splits(official, tmp_path):
    source = official / 'hmdb51' / 'videos'
    clips = sorted(p.relative_to(source) for p in source.rglob('*.mp4'))[:3]
    splits = tmp_path / 'splits'
    parts = {1: (1, 2, 0), 2: (2, 1, 1), 3: (0, 1, 2)}
    for number, codes in parts.items():
        for clip, code in zip(clips, codes, strict=True):
            path = splits / f'{clip.parent}_test_split{number}.txt'
            old = path.read_text() if path.exists() else ''
            write_whole(path, f'{old}{clip.name} {code} \n'.encode())
    counts = videos.convert_hmdb51(source, splits, tmp_path, workers=2)
    assert [(n, c) for n, c, _ in counts] == [
        ('train', 1),
        ('val', 1),
        ('train_2', 2),
        ('val_2', 1),
        ('train_3', 1),
        ('val_3', 1),
    ]
    folder = tmp_path / 'hmdb51'
    labels = sorted({clip.parent.name for clip in clips})
    line = (folder / 'hmdb51_val_split_1_videos.txt').read_text()
    assert line == f'{clips[1]} {labels.index(clips[1].parent.name)}\n'
    for clip in clips:
        assert (folder / 'videos' / clip).read_bytes() == (source / clip).read_bytes()
    (folder / 'videos' / clips[0]).unlink()
    with refused('1 of 3 listed clips', 'rar'):
        videos.convert_hmdb51(tmp_path / 'none', splits, tmp_path)
    write_whole(splits / 'x_test_split1.txt', b'a.avi 5\n')
    with refused('x_test_split1.txt:1'):
        videos.convert_hmdb51(source, splits, tmp_path)
    with refused('unpack test_train_splits.rar'):
        videos.convert_hmdb51(source, tmp_path / 'webm', tmp_path)


# --- the study ---------------------------------------------------------------


def test_cifar100_comes_from_its_binary_version(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (('train', 5), ('test', 2)):
        rows = rng.integers(0, 256, (count, study.RECORD), np.uint8)
        rows[:, 1] = rng.integers(0, 100, count)
        files[f'cifar-100-binary/{name}.bin'] = rows.tobytes()
        if name == 'train':
            first = rows[0]
    archive = pack(tmp_path / 'cifar-100-binary.tar.gz', files)
    parts = study.read_cifar100(archive)
    counts = study.convert_pool('cifar100', parts, tmp_path, workers=2)
    assert counts == [('train', 5, 50_000), ('test', 2, 10_000)]
    folder = tmp_path / 'many_shot' / 'cifar100'
    line = (folder / 'train.txt').read_text().splitlines()[0]
    assert line == f'images/train/000000.png {first[1]}'
    pixels = np.asarray(Image.open(folder / 'images/train/000000.png'))
    # The first plane is red, row by row.
    assert pixels[0, 1].tolist() == [first[3], first[3 + 1024], first[3 + 2048]]
    assert pixels[1, 0, 0] == first[2 + 32]
    python = pack(
        tmp_path / 'cifar-100-python.tar.gz',
        {'cifar-100-python/train': pickle.dumps({'data': b''})},
    )
    with refused('binary version', 'can run code'):
        study.read_cifar100(python)


def test_imagenet_is_listed_by_sorted_class_ids(tmp_path):
    folder = tmp_path / 'imagenet'
    for name in (
        'train/n02/b.JPEG',
        'train/n01/a.JPEG',
        'train/n01/c.JPEG',
        'val/n02/v.JPEG',
    ):
        write_whole(folder / name, jpeg())
    counts = study.list_imagenet(tmp_path, check=True)
    assert counts == [('train', 3, 1_281_167), ('val', 1, 50_000)]
    assert (folder / 'train.txt').read_text().splitlines() == [
        'train/n01/a.JPEG 0',
        'train/n01/c.JPEG 0',
        'train/n02/b.JPEG 1',
    ]
    assert (folder / 'val.txt').read_text() == 'val/n02/v.JPEG 1\n'
    write_whole(folder / 'val/n03/v.JPEG', jpeg())
    with refused('n03', 'train lacks'):
        study.list_imagenet(tmp_path)
    shutil.rmtree(folder / 'val' / 'n03')
    write_whole(folder / 'val/n02/w.JPEG', jpeg(side=64)[:-300])
    with refused('cannot decode', 'w.JPEG'):
        study.list_imagenet(tmp_path, check=True)


@pytest.mark.parametrize(
    ('name', 'members_', 'place'),
    [
        ('imagenet_v2', 'imagenetv2-matched-frequency-format-val/{}/a.jpeg', '17'),
        ('imagenet_r', 'imagenet-r/{}/art_0.jpg', 'n01443537'),
        ('imagenet_a', 'imagenet-a/{}/0.03 a _ b 0.99.jpg', 'n01498041'),
        ('imagenet_sketch', 'data/sketch/{}/sketch_0.JPEG', 'n01440764'),
    ],
)
def test_variants_keep_their_class_folders(tmp_path, name, members_, place):
    path = members_.format(place)
    files = {path: jpeg(), 'imagenet-r/README.txt': b'x', 'other/pic.jpg': jpeg()}
    archive = pack(tmp_path / 'a.tar', files)
    counts = study.convert_variant(name, [archive], tmp_path / 'data')
    facts = CATALOG[name]
    assert counts == [
        ('test', 1, facts.split('test').size),
        ('classes', 1, facts.num_present),
    ]
    assert tree(tmp_path / 'data' / facts.path) == {
        f'{place}/{Path(path).name}': jpeg()
    }
    with refused(f'they are not {facts.title}'):
        study.convert_variant(
            name, [pack(tmp_path / 'b.zip', {'x/y.jpg': jpeg()})], tmp_path / 'none'
        )


# --- the tools ---------------------------------------------------------------


def run_tool(monkeypatch, capsys, name: str, *args: object) -> tuple[int, str, str]:
    path = ROOT / 'tools' / 'dataset_converters' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'converter_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
    code = 0
    try:
        module.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


TOOLS = sorted((ROOT / 'tools' / 'dataset_converters').glob('*.py'))


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_every_tool_has_help_with_an_example(path, monkeypatch, capsys):
    code, out, _ = run_tool(monkeypatch, capsys, path.stem, '--help')
    assert code == 0
    assert f'python tools/dataset_converters/{path.name}' in out


def test_tools_convert_and_tell_counts(official, tmp_path, monkeypatch, capsys):
    root = ('--data-root', tmp_path / 'data', '--workers', 2)
    code, out, _ = run_tool(
        monkeypatch, capsys, 'voc', *voc_archives(official, tmp_path), *root
    )
    assert code == 0
    assert 'trainval2012' in out
    assert '(the official set has 11,540)' in out
    task = pack(
        tmp_path / 'v.zip', under('vtab-1k/dtd', tree(official / 'vtab-1k' / 'dtd'))
    )
    code, out, _ = run_tool(monkeypatch, capsys, 'vtab1k', '--processed', task, *root)
    assert code == 0
    assert 'train800val200' in out
    pictures, splits = cub(official)
    code, out, _ = run_tool(
        monkeypatch,
        capsys,
        'fgvc',
        'cub_200_2011',
        pack(tmp_path / 'c.zip', pictures),
        '--splits',
        pack(tmp_path / 's.zip', splits),
        *root,
    )
    assert code == 0
    assert 'train.json' in out


@pytest.mark.parametrize(
    ('args', 'part'),
    [
        (('voc', 'none.tar'), 'there is no archive'),
        (('vtab1k', '--npz', 'none', '--tasks', 'cifar1000'), 'none of the 19'),
        (('many_shot', 'resisc45'), 'give --tfds'),
        (('imagenet', 'lists'), 'there is no'),
        (('kinetics400',), 'put the clips of the release there'),
        (('hmdb51', '--videos', 'x', '--splits', 'y'), 'test_train_splits.rar'),
        (('ssv2', '--videos', 'x', '--labels', 'y'), 'labels.json'),
    ],
)
def test_tools_say_one_line(tmp_path, monkeypatch, capsys, args, part):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_tool(monkeypatch, capsys, *args, '--data-root', tmp_path)
    assert code == 1
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert part in err
