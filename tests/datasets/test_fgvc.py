"""FGVC JSON splits: the class map comes from all three files, whichever is read."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import FGVC, FGVC_SETS

SPLITS = {
    # ids with gaps, 10 sorts before 9 as text, and val lacks class 9
    'train': {'a/1.jpg': 9, 'b/2.jpg': 10, 'c/3.jpg': 300},
    'val': {'b/4.jpg': 10, 'c/5.jpg': 300},
    'test': {'c/6.jpg': 300, 'a/7.jpg': 9},
}


@pytest.fixture
def root(tmp_path):
    """A stand-in for CUB-200-2011 with three classes; returns the folder fgvc."""
    folder = tmp_path / 'CUB_200_2011'
    for split, entries in SPLITS.items():
        for key in entries:
            path = folder / 'images' / key
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8)).save(path)
        (folder / f'{split}.json').write_text(json.dumps(entries))
    return tmp_path


def labels(dataset):
    return [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]


def test_published_sizes():
    # class counts of the FGVC suite in VPT: mean head 768 x C + C is 180,407
    heads = [769 * entry.num_classes for entry in FGVC_SETS.values()]
    assert round(sum(heads) / len(heads)) == 180_407


def test_class_map_is_the_sorted_union(root):
    for split, expected in (
        ('train', [0, 1, 2]),
        ('val', [1, 2]),
        ('test', [2, 0]),
        ('trainval', [0, 1, 2, 1, 2]),
    ):
        dataset = FGVC('cub_200_2011', split, root, num_classes=3)
        assert labels(dataset) == expected
    assert dataset.metainfo['classes'] == ('a', 'b', 'c')


def test_class_count_is_checked(root):
    with pytest.raises(PETLError, match='has 3 classes, expected 200'):
        FGVC('cub_200_2011', 'train', root)


def test_missing_image_names_entry_and_file(root):
    (root / 'CUB_200_2011/images/c/6.jpg').unlink()
    with pytest.raises(PETLError, match=r"test.json: entry 'c/6.jpg' names a missing"):
        FGVC('cub_200_2011', 'test', root, num_classes=3)


def test_missing_and_broken_files(root, tmp_path):
    (root / 'CUB_200_2011/val.json').write_text('[1, 2')
    with pytest.raises(PETLError, match=r"val.json' is not a JSON object"):
        FGVC('cub_200_2011', 'train', root, num_classes=3)
    (root / 'CUB_200_2011/val.json').unlink()
    with pytest.raises(PETLError, match=r"has no '.*val.json'"):
        FGVC('cub_200_2011', 'train', root, num_classes=3)
    with pytest.raises(PETLError, match=r"folder '.*nabirds'.*MMPETL_DATA"):
        FGVC('nabirds', 'train', tmp_path)


def test_unknown_names_list_what_there_is(root):
    with pytest.raises(PETLError, match="no FGVC set 'cub'; there are cub_200_2011"):
        FGVC('cub', 'train', root)
    with pytest.raises(PETLError, match="no split 'dev'; there are train, val"):
        FGVC('cub_200_2011', 'dev', root)


@pytest.mark.parametrize('folder', ['CUB-200-2011', 'cub200', 'CUB', 'cub_200 2011'])
@pytest.mark.parametrize('pictures', ['images', 'Images', ''])
def test_spellings_of_other_releases_are_read(root, folder, pictures, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmpetl.datasets.folders.print_log', lambda text, **_: said.append(text)
    )
    (root / 'CUB_200_2011').rename(root / folder)
    if pictures == '':
        for path in (root / folder / 'images').iterdir():
            path.rename(root / folder / path.name)
        (root / folder / 'images').rmdir()
    else:
        (root / folder / 'images').rename(root / folder / pictures)
    dataset = FGVC('cub_200_2011', 'test', root, num_classes=3)
    assert labels(dataset) == [2, 0]
    assert said == [f"FGVC cub_200_2011 is read from '{root / folder}'"]


def test_what_is_looked_for_is_listed(tmp_path):
    with pytest.raises(PETLError, match=r'StanfordDogs.*nor is one called .*dogs') as e:
        FGVC('stanford_dogs', 'test', tmp_path)
    assert '\n' not in str(e.value)
    for name in ('CUB', 'cub-200'):
        (tmp_path / name).mkdir()
    with pytest.raises(PETLError, match=r'several folders of cub_200_2011 \(CUB, cub-'):
        FGVC('cub_200_2011', 'test', tmp_path)


def test_the_official_folder_goes_first(root):
    (root / 'cub').mkdir()
    assert labels(FGVC('cub_200_2011', 'test', root, num_classes=3)) == [2, 0]
