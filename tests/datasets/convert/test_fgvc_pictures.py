"""Fine-grained sets: what the splits name, under the names of any release."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from converter_files import cub, jpeg, pack, png, refused, tree, under
from scipy.io import savemat

from mmpetl.core import PETLError
from mmpetl.datasets import FGVC
from mmpetl.datasets.convert import fgvc
from mmpetl.datasets.convert.files import write_whole
from mmpetl.datasets.convert.matlab import read_table


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
    with refused('pooled release', 'cars_annos.mat', 'cars_train_annos.mat'):
        fgvc.convert_fgvc(
            'stanford_cars', pack(tmp_path / 'cars.zip', cars), [old], root
        )
    for content, part in (
        (b'[1]', 'not a JSON object'),
        (b'{"../../x.jpg": 1}', 'outside of the set'),
    ):
        bad = pack(tmp_path / 'bad.zip', splits | {'val.json': content})
        with refused(part):
            fgvc.convert_fgvc('cub_200_2011', bad, [archive], root)
    lonely = pack(tmp_path / 'few.zip', {'train.json': b'{"001/a.jpg": 1}'})
    with refused('0 files val.json'):
        fgvc.convert_fgvc('cub_200_2011', lonely, [archive], root)


def test_splits_of_another_release_are_found_by_their_folder(official, tmp_path):
    pictures, splits = cub(official)
    other = {name: json.dumps({'a/b.jpg': 1}).encode() for name in splits}
    jsons = pack(
        tmp_path / 'splits.zip',
        under('FGVC/CUB-200-2011', splits) | under('FGVC/Stanford-dogs', other),
    )
    archive = pack(tmp_path / 'CUB.tgz', pictures)
    root = tmp_path / 'data'
    # What lies there in another spelling is the set: nothing is written beside it.
    (root / 'fgvc' / 'cub200').mkdir(parents=True)
    fgvc.convert_fgvc('cub_200_2011', jsons, [archive], root)
    assert sorted(path.name for path in (root / 'fgvc').iterdir()) == ['cub200']
    assert len(FGVC('cub_200_2011', 'test', root / 'fgvc')) == 4


# --- Stanford Cars -----------------------------------------------------------

FIELDS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class')


def annotations(rows: list[tuple], *last: str) -> bytes:
    """An annotation file of the devkit: a MATLAB struct array."""
    names = (*FIELDS, *last)
    table = np.empty((1, len(rows)), [(name, object) for name in names])
    for index, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            cell = np.array([value]) if isinstance(value, str) else np.array([[value]])
            table[name][0, index] = cell
    buffer = io.BytesIO()
    savemat(buffer, {'annotations': table})
    return buffer.getvalue()


@pytest.fixture
def cars(tmp_path) -> tuple[Path, list[Path], dict[str, bytes]]:
    """Splits, a copy with its annotations, and what each pooled picture must show.

    Pooled numbers 1 to 6; the copy numbers both parts anew and in another order.
    """
    box = {k: (10 * k, 5, 300 + k, 200) for k in range(1, 7)}
    box[6] = box[5]  # of another class, so that the box alone would not tell
    label = {1: 4, 2: 9, 3: 4, 4: 9, 5: 7, 6: 4}
    part = {1: 'train', 2: 'test', 3: 'train', 4: 'train', 5: 'test', 6: 'test'}
    copy = {'train': [4, 1, 3], 'test': [6, 5, 2]}  # pooled number by place
    shows = {f'car_ims/{k:06d}.jpg': jpeg(20 * k) for k in box}
    pooled = [
        (*box[k], label[k], f'car_ims/{k:06d}.jpg', int(part[k] == 'test')) for k in box
    ]
    files, mats = (
        {},
        {'cars_annos.mat': annotations(pooled, 'relative_im_path', 'test')},
    )
    for name, order in copy.items():
        rows = []
        for place, k in enumerate(order, start=1):
            rows.append((*box[k], label[k], f'{place:05d}.jpg'))
            files[f'cars_{name}/{place:05d}.jpg'] = shows[f'car_ims/{k:06d}.jpg']
        tail = 'train_annos' if name == 'train' else 'test_annos_withlabels'
        mats[f'cars_{tail}.mat'] = annotations(rows, 'fname')
    splits = {'train.json': (1, 4), 'val.json': (3,), 'test.json': (2, 5, 6)}
    jsons = {
        file: json.dumps({f'car_ims/{k:06d}.jpg': label[k] for k in numbers}).encode()
        for file, numbers in splits.items()
    }
    for name, content in mats.items():
        write_whole(tmp_path / 'devkit' / name, content)
    sources = [pack(tmp_path / 'cars.tgz', files), tmp_path / 'devkit']
    return pack(tmp_path / 'splits.zip', jsons), sources, shows


def test_copies_of_cars_are_matched_by_class_and_box(cars, tmp_path):
    splits, sources, shows = cars
    fgvc.convert_fgvc('stanford_cars', splits, sources, tmp_path / 'data')
    got = tree(tmp_path / 'data' / 'fgvc' / 'StanfordCars')
    assert {k: v for k, v in got.items() if k.endswith('.jpg')} == shows


def test_annotation_files_may_be_named_one_by_one(cars, tmp_path):
    splits, (pictures, devkit), shows = cars
    sources = [pictures, *sorted(devkit.glob('*.mat'))]
    fgvc.convert_fgvc('stanford_cars', splits, sources, tmp_path / 'data')
    got = tree(tmp_path / 'data' / 'fgvc' / 'StanfordCars')
    assert {k: v for k, v in got.items() if k.endswith('.jpg')} == shows
    with refused('there is no file', 'none.mat'):
        fgvc.convert_fgvc('stanford_cars', splits, [Path('none.mat')], tmp_path / 'e')


def test_the_pooled_release_needs_no_annotations(cars, tmp_path):
    splits, _, shows = cars
    archive = pack(tmp_path / 'car_ims.tgz', shows)
    fgvc.convert_fgvc('stanford_cars', splits, [archive], tmp_path / 'data')
    got = tree(tmp_path / 'data' / 'fgvc' / 'StanfordCars')
    assert {k: v for k, v in got.items() if k.endswith('.jpg')} == shows


def test_annotations_that_do_not_belong_together_are_refused(cars, tmp_path):
    splits, sources, _ = cars
    devkit, root = sources[1], tmp_path / 'data'
    whole = (devkit / 'cars_annos.mat').read_bytes()
    row = (1, 2, 3, 4, 4, 'car_ims/000001.jpg', 0)
    other = annotations([row], 'relative_im_path', 'test')
    for content, parts in (
        (other, ('class 9', '00001.jpg for one', 'do not belong together')),
        (b'MATLAB', ('cars_annos.mat does not hold annotations',)),
        (annotations([row[:5]]), ('cars_annos.mat does not hold', 'relative_im_path')),
    ):
        (devkit / 'cars_annos.mat').write_bytes(content)
        with refused(*parts):
            fgvc.convert_fgvc('stanford_cars', splits, sources, root)
    (devkit / 'cars_annos.mat').unlink()
    with refused('6 of 6 pictures', 'give cars_annos.mat, too'):
        fgvc.convert_fgvc('stanford_cars', splits, sources, root)
    (devkit / 'cars_annos.mat').write_bytes(whole)
    fgvc.convert_fgvc('stanford_cars', splits, sources, root)


_CRASH = (
    'eNpTUKA/YIABRk9fPiBVwczAwAakOYCYCSrFCuUzQsVANDcQJ+bl5ZcklmTm5xVD1bHA1RkAcVJSfkV8'
    'hSGEroTSFUZQvhFDck5iMUhnWl5ibiqQBtlvwYCwnw+L/TAMAjxI4gwU6GeiUD8zhfpZKNTPikM/Cxb9'
    'rEj6BaB8A72sgvQBCH+u0fAH8w2h4Q8AVOItQw=='
)
"""A file of MATLAB, one byte of it changed: SciPy's reader dies of it."""


def test_annotations_that_kill_their_reader_are_refused():
    content = zlib.decompress(base64.b64decode(_CRASH))
    with pytest.raises(PETLError, match='a.mat does not hold annotations with fname'):
        read_table('a.mat', content, 'annotations', ('fname',))


def test_annotations_that_are_not_read_say_why():
    newer = b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM' + bytes(400)
    with refused('cars_annos.mat', 'version 7.3', 'save it again with -v7'):
        read_table('cars_annos.mat', newer, 'annotations', ('fname',))
    rows = [(1, 2, 3, 4, 4.7, '00001.jpg')]
    with refused('a.mat', '4.7 is no whole number'):
        read_table('a.mat', annotations(rows, 'fname'), 'annotations', ('class',))


def test_annotation_files_that_differ_are_refused(cars, tmp_path):
    splits, (pictures, devkit), _ = cars
    (tmp_path / 'new').mkdir()
    other = annotations([(1, 2, 3, 4, 4, '00001.jpg')], 'fname')
    (tmp_path / 'new' / 'cars_train_annos.mat').write_bytes(other)
    same = devkit / 'cars_train_annos.mat'
    for more, parts in (
        (tmp_path / 'new', ('another cars_train_annos.mat',)),
        (tmp_path / 'new' / same.name, ('another cars_train_annos.mat',)),
    ):
        with refused(*parts):
            sources = [pictures, devkit, more]
            fgvc.convert_fgvc('stanford_cars', splits, sources, tmp_path / 'data')
    sources = [pictures, devkit, same]
    fgvc.convert_fgvc('stanford_cars', splits, sources, tmp_path / 'data')
