"""VTAB-1k lists: what is read, and what each kind of bad input says."""

from __future__ import annotations

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import VTAB, VTAB_TASKS


def write_task(root, folder='cifar', labels=(0, 99), split='test'):
    """A task folder with one image and list line per label; returns the list."""
    task = root / folder
    images = task / 'images' / split
    images.mkdir(parents=True)
    lines = []
    for index, label in enumerate(labels):
        name = f'images/{split}/{index:06d}.jpg'
        Image.new('RGB', (8, 8), (index, 0, 0)).save(task / name)
        lines.append(f'{name} {label}')
    list_file = task / f'{split}.txt'
    list_file.write_text('\n'.join(lines) + '\n')
    return list_file


def test_table_matches_the_benchmark():
    # Zhai et al.: 7 natural, 4 specialised, 8 structured tasks; 940 classes in all
    groups = [task.group for task in VTAB_TASKS.values()]
    assert groups == ['natural'] * 7 + ['specialised'] * 4 + ['structured'] * 8
    assert sum(task.num_classes for task in VTAB_TASKS.values()) == 940


def test_reads_paths_and_labels(tmp_path):
    write_task(tmp_path, labels=(3, 99, 0))
    dataset = VTAB('cifar100', 'test', tmp_path)
    assert [dataset.get_data_info(i)['gt_label'] for i in range(3)] == [3, 99, 0]
    path = dataset.get_data_info(1)['img_path']
    assert path == str(tmp_path / 'cifar/images/test/000001.jpg')
    assert len(dataset.metainfo['classes']) == 100


@pytest.mark.parametrize(
    ('asked', 'folder'),
    [('cifar', 'cifar_100'), ('cifar_100', 'cifar'), ('pets', 'oxford_iiit_pet')],
)
def test_aliases_name_the_same_task(tmp_path, asked, folder):
    write_task(tmp_path, folder=folder, labels=(0,))
    dataset = VTAB(asked, 'test', tmp_path)
    assert dataset.task in ('cifar100', 'oxford_iiit_pet')
    assert len(dataset) == 1


def test_own_task_takes_a_class_count(tmp_path):
    write_task(tmp_path, folder='digits', labels=(9,))
    assert len(VTAB('digits', 'test', tmp_path, num_classes=10)) == 1
    with pytest.raises(PETLError, match='none of the 19 VTAB-1k tasks.*num_classes'):
        VTAB('digits', 'test', tmp_path)


def test_unknown_split_lists_the_splits(tmp_path):
    with pytest.raises(PETLError, match="no split 'train'; there are train800, val200"):
        VTAB('cifar100', 'train', tmp_path)


def test_label_out_of_range_names_file_and_line(tmp_path):
    list_file = write_task(tmp_path, labels=(0, 100))
    with pytest.raises(PETLError) as caught:
        VTAB('cifar100', 'test', tmp_path)
    assert str(caught.value) == (
        f'{list_file}:2: label 100 is out of range, cifar100 has classes 0 to 99.'
    )


def test_missing_image_names_file_and_line(tmp_path):
    list_file = write_task(tmp_path, labels=(0, 1, 2))
    gone = tmp_path / 'cifar/images/test/000002.jpg'
    gone.unlink()
    with pytest.raises(PETLError) as caught:
        VTAB('cifar100', 'test', tmp_path)
    assert str(caught.value) == f"{list_file}:3: there is no file '{gone}'."


@pytest.mark.parametrize('line', ['images/test/000000.jpg', 'images/a.jpg one'])
def test_malformed_line_is_quoted(tmp_path, line):
    list_file = write_task(tmp_path, labels=(0,))
    list_file.write_text(line + '\n')
    with pytest.raises(PETLError, match=rf"test.txt:1: '{line}' is not '<image path>"):
        VTAB('cifar100', 'test', tmp_path)


def test_missing_list_and_missing_folder(tmp_path, monkeypatch):
    write_task(tmp_path)
    with pytest.raises(PETLError, match=r"no list '.*val200.txt' for split val200"):
        VTAB('cifar100', 'val200', tmp_path)
    monkeypatch.delenv('MMPETL_DATA', raising=False)
    with pytest.raises(PETLError, match=r"folder '.*dtd'.*MMPETL_DATA.*is not set"):
        VTAB('dtd', 'test', tmp_path)
    monkeypatch.setenv('MMPETL_DATA', '/somewhere')
    with pytest.raises(PETLError, match="MMPETL_DATA, which is '/somewhere'"):
        VTAB('dtd', 'test', tmp_path)
