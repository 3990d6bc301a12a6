"""What a line of a list is: ends, blanks, labels, encodings, repeats."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import VTAB, ImageList, VideoList, check_config
from mmpetl.datasets.annotations import parse_classes
from mmpetl.datasets.lines import as_label, repeats


@pytest.fixture
def task(tmp_path):
    """Writes the list of a VTAB task of one picture and reads it."""
    picture = tmp_path / 'own/images/a.jpg'
    picture.parent.mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(picture)

    def read(data: bytes, name: str = 'images/a.jpg'):
        path = tmp_path / 'own' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(picture, path)
        (tmp_path / 'own/test.txt').write_bytes(data)
        return VTAB('own', 'test', tmp_path, num_classes=5)

    read.root = tmp_path
    return read


@pytest.mark.parametrize(
    ('data', 'name'),
    [
        (b'\xef\xbb\xbfimages/a.jpg 3\n', 'images/a.jpg'),
        (b'images/a.jpg 3\r\n\r\n', 'images/a.jpg'),
        (b'images/a.jpg 3\r', 'images/a.jpg'),
        (b'images/a.jpg 3  \t\n', 'images/a.jpg'),
        (b'  images/a.jpg  3', 'images/a.jpg'),
        (b' images/a.jpg 3\n', ' images/a.jpg'),
        (b'images/a\x0c.jpg 3\n', 'images/a\x0c.jpg'),
        ('images/a\u2028\x85.jpg 3\n'.encode(), 'images/a\u2028\x85.jpg'),
        (b'images/a b .jpg 3\n', 'images/a b .jpg'),
    ],
)
def test_good_lists_are_taken(task, data, name):
    found = task(data, name)
    assert found.get_data_info(0)['gt_label'] == 3
    assert found.get_data_info(0)['img_path'] == str(task.root / 'own' / name)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ('images/a.jpg 3\n'.encode('utf-16'), 'is UTF-16; save it as UTF-8'),
        (b'images/a.jpg 3\n\xff\n', 'byte 0xff in line 2'),
        ('images/a.jpg ²\n'.encode(), 'is not .<image path> <label>'),
        ('images/a.jpg ３\n'.encode(), 'is not .<image path> <label>'),
        (b'images/a.jpg +3\n', 'is not .<image path> <label>'),
        (b'images/a.jpg 3.0\n', 'is not .<image path> <label>'),
        (b'images/a.jpg ' + b'1' * 5000, 'is not .<image path> <label>'),
        (b'images/\x00.jpg 3\n', 'there is no file'),
        (b'x' * 5000 + b' 3\n', 'there is no file'),
        (b' 3\n', 'is not .<image path> <label>'),
    ],
)
def test_bad_lists_are_one_line(task, data, message):
    with pytest.raises(PETLError, match=message) as caught:
        task(data)
    assert '\n' not in str(caught.value)


def test_a_list_is_a_file(task, tmp_path):
    task(b'images/a.jpg 0\n')
    (tmp_path / 'own/val200.txt').mkdir()
    with pytest.raises(PETLError, match='val200.txt is a folder'):
        VTAB('own', 'val200', tmp_path, num_classes=5)
    os.mkfifo(tmp_path / 'own/train800.txt')
    with pytest.raises(PETLError, match='is a device, FIFO or socket'):
        VTAB('own', 'train800', tmp_path, num_classes=5)


def test_video_lists_keep_to_ascii_digits_and_blanks_of_names(tmp_path):
    (tmp_path / ' a\x0c.mp4').touch()
    (tmp_path / 'list.txt').write_text('\ufeff a\x0c.mp4, 1\n', 'utf-8')
    assert len(VideoList(tmp_path / 'list.txt', tmp_path, 2)) == 1
    (tmp_path / 'list.txt').write_text(' a\x0c.mp4 １\n', 'utf-8')
    with pytest.raises(PETLError, match='is not .<video path> <label>'):
        VideoList(tmp_path / 'list.txt', tmp_path, 2)


def test_labels():
    assert [as_label(text) for text in ('0', '-1', '007')] == [0, -1, 7]
    assert [as_label(text) for text in ('', '²', '३', '1.0', ' 1', '1_0')] == [None] * 6


def test_class_folders_with_odd_digits_are_no_classes(tmp_path):
    (tmp_path / '²').mkdir()
    with pytest.raises(PETLError, match='is no class folder'):
        ImageList(tmp_path, 5)


def test_repeats_and_torn_labels_are_told():
    entries = [('a', 1), ('b', 2), ('a', 1), ('a', 1), ('b', 3), ('c', 1)]
    torn, twice = repeats(entries, 'x.txt')
    assert torn.startswith("x.txt: 1 files bear two labels, 'b' 2 and 3")
    assert twice.startswith("x.txt: 1 files are listed more than once, 'a'")
    assert repeats([('a', 1), ('b', 1)], 'x.txt') == []


def test_a_run_is_told_of_them_through_wrappers(task):
    task(b'images/a.jpg 3\nimages/a.jpg 3\nimages/a.jpg 2\n')
    inner = dict(
        type='mmpetl.VTAB',
        task='own',
        split='test',
        data_root=str(task.root),
        num_classes=5,
    )
    cfg = dict(
        model=dict(head=dict(num_classes=5)),
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=inner)),
    )
    remarks = []
    assert check_config(cfg, ('train',), remarks) == {'train': 3}
    assert len(remarks) == 2
    assert 'bear two labels' in remarks[0]
    assert '3 and 2' in remarks[0]


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ('{"a": 1.7}', 'expected .*got float'),
        ('{"a": 1.0}', 'expected .*got float'),
        ('{"a": true}', 'expected .*got bool'),
        ('{"a": null}', 'expected .*got null'),
        ('{"a": Infinity}', 'no number of JSON'),
        ('{"a": "1.5"}', "class id '1.5', expected an integer"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('[' * 100_000, 'nested'),
        ('[1]', 'expected object, got array'),
        ('{"a": 1' + '0' * 5000 + '}', 'no JSON'),
    ],
)
def test_class_ids_are_integers(value, message):
    with pytest.raises(PETLError, match=message) as caught:
        parse_classes(value.encode(), 'train.json')
    assert str(caught.value).startswith('train.json is not a JSON object {image path')
    assert '\n' not in str(caught.value)


def test_class_ids_may_be_written_as_text():
    """Where ids are text, their order is still that of numbers."""
    found = parse_classes(json.dumps({'a': '10', 'b': '9', 'c': 3}).encode(), 'x')
    assert found == {'a': 10, 'b': 9, 'c': 3}
