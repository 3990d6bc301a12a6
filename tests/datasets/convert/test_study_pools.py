"""CIFAR-100 in its binary version, ImageNet and its variants."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from converter_files import jpeg, pack, refused, tree
from PIL import Image

from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.convert import study
from mmpetl.datasets.convert.files import write_whole


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


# Tench, goldfish and the last of the 1,000 classes.
TENCH, GOLDFISH, TISSUE = 'n01440764', 'n01443537', 'n15075141'


def test_imagenet_is_listed_by_the_official_class_ids(tmp_path):
    folder = tmp_path / 'imagenet'
    for name in (
        f'train/{TISSUE}/b.JPEG',
        f'train/{GOLDFISH}/a.JPEG',
        f'train/{GOLDFISH}/c.JPEG',
        f'val/{TISSUE}/v.JPEG',
    ):
        write_whole(folder / name, jpeg())
    counts = study.list_imagenet(tmp_path, check=True)
    assert counts == [('train', 3, 1_281_167), ('val', 1, 50_000)]
    # Two of the classes are there; labels are those of all.
    assert (folder / 'train.txt').read_text().splitlines() == [
        f'train/{GOLDFISH}/a.JPEG 1',
        f'train/{GOLDFISH}/c.JPEG 1',
        f'train/{TISSUE}/b.JPEG 999',
    ]
    assert (folder / 'val.txt').read_text() == f'val/{TISSUE}/v.JPEG 999\n'
    write_whole(folder / f'val/{TENCH}/v.JPEG', jpeg())
    with refused(TENCH, 'train lacks'):
        study.list_imagenet(tmp_path)
    shutil.rmtree(folder / 'val' / TENCH)
    write_whole(folder / 'train/part_0/w.JPEG', jpeg())
    with refused('part_0 is no class of ImageNet-1k'):
        study.list_imagenet(tmp_path)
    shutil.rmtree(folder / 'train' / 'part_0')
    write_whole(folder / f'val/{TISSUE}/w.JPEG', jpeg(side=64)[:-300])
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


@pytest.mark.parametrize(
    ('name', 'title', 'wnid'),
    [
        ('imagenet_r', 'ImageNet-R', 'n01558993'),  # the robin, of ImageNet-A alone
        ('imagenet_a', 'ImageNet-A', 'n01443537'),  # the goldfish, of ImageNet-R alone
        ('imagenet_sketch', 'ImageNet-Sketch', 'n00004475'),  # of ImageNet-21k alone
    ],
)
def test_archives_of_another_set_are_refused(tmp_path, name, title, wnid):
    archive = pack(tmp_path / 'a.tar', {f'x/{wnid}/a.jpg': jpeg()})
    with refused(f'{wnid} is no class of {title}', 'another set'):
        study.convert_variant(name, [archive], tmp_path / 'data')
    assert not list(tmp_path.rglob('*.jpg'))


def test_an_archive_with_two_training_files_is_refused(tmp_path):
    rows = bytes(study.RECORD)
    files = {'a/train.bin': rows, 'b/train.bin': 2 * rows, 'a/test.bin': rows}
    with refused('a.tgz holds train.bin twice'):
        study.read_cifar100(pack(tmp_path / 'a.tgz', files))
