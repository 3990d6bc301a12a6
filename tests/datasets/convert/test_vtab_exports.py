"""VTAB-1k from processed archives, arrays and folders."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from converter_files import Stop, pack, refused, tree, under
from PIL import Image

from mmpetl.datasets import VTAB
from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.convert import vtab


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
