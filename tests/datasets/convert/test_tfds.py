"""VTAB-1k's draw from TensorFlow Datasets."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from converter_files import refused
from PIL import Image

from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.convert import tfds, vtab

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


def fake_tfds(
    monkeypatch,
    kind: str = 'array_record',
    splits: bool = True,
    offered: Mapping[str, tuple[str, ...]] | None = None,
    dtype: type = np.uint8,
) -> list:
    """A stand-in that hands out numbered pictures, and notes what it is asked for."""
    asked = []

    def check(name: str) -> None:
        """What the package does where a version is gone."""
        base, _, version = name.partition(':')
        if offered is not None and version not in offered[base]:
            there = ', '.join(offered[base])
            raise AssertionError(f'{base} cannot be loaded at {version}, only: {there}')

    class Builder:
        def __init__(self, name, data_dir):
            asked.append((name, data_dir))
            check(name)
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
                {'image': np.full((4, 4, 1), i % 2, dtype), 'label_x_position': i}
                for i in range(count)
            ]

        def as_dataset(self, split, shuffle_files, read_config):
            asked.append(read_config)
            return self.as_data_source(split)

    module = types.ModuleType('tensorflow_datasets')
    module.ReadConfig = dict
    module.as_numpy = list
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
    with refused('dsprites is not prepared', 'tfds build dsprites:2.0.0'):
        vtab.convert_export(facts, export, tmp_path)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with refused('pip install tensorflow-datasets array_record'):
        vtab.convert_export(facts, export, tmp_path)


# What tensorflow-datasets 4.9.10 offers; measured by asking its builders.
OFFERED = {
    'cifar100': ('3.0.2',),
    'caltech101': ('3.0.2',),
    'dtd': ('3.0.1',),
    'oxford_flowers102': ('2.1.1',),
    'oxford_iiit_pet': ('4.0.0',),
    'svhn_cropped': ('3.1.0',),
    'sun397/tfds': ('4.0.0',),
    'patch_camelyon': ('2.0.0',),
    'eurosat/rgb': ('2.0.0',),
    'resisc45': ('3.0.0',),
    'diabetic_retinopathy_detection/btgraham-300': ('3.0.0',),
    'clevr': ('3.1.0', '3.0.0'),
    'dmlab': ('2.0.1',),
    'kitti': ('3.3.0', '3.2.0', '3.1.0'),
    'dsprites': ('2.0.0', '2.1.0'),
    'smallnorb': ('2.0.0', '2.1.0'),
}


@pytest.mark.parametrize('name', tfds.TFDS_TASKS)
def test_every_task_is_drawn_from_a_version_of_today(name, monkeypatch):
    task = tfds.TFDS_TASKS[name]
    fake_tfds(monkeypatch, offered=OFFERED)
    export = tfds.TFDSExport(Path('prepared'))
    base, _, version = export.origin(CATALOG[name]).partition(':')
    assert base == task.builder
    assert version in set(task.versions) & set(OFFERED[base])


def test_a_prepared_old_version_is_read_first(monkeypatch):
    old = {'caltech101': ('3.0.1', '3.0.2')}
    fake_tfds(monkeypatch, offered=old)
    assert tfds.TFDSExport().origin(CATALOG['caltech101']) == 'caltech101:3.0.1'


@pytest.mark.parametrize(
    ('name', 'build'), [('kitti', 'kitti:3.2.0'), ('caltech101', 'caltech101:3.0.2')]
)
def test_the_version_to_prepare_is_named_beside_what_is_there(
    tmp_path, monkeypatch, name, build
):
    (tmp_path / name / '1.0.0').mkdir(parents=True)
    fake_tfds(monkeypatch, splits=False, offered=OFFERED)
    export = tfds.TFDSExport(tmp_path)
    with refused('versions there: 1.0.0', f'tfds build {build} ', str(tmp_path)):
        export.split(CATALOG[name], 'test')
    fake_tfds(monkeypatch, splits=False, offered={name: ('9.0.0',)})
    with refused('not offered by what is installed', 'only: 9.0.0'):
        export.split(CATALOG[name], 'test')


def test_every_format_is_read_file_after_file(tmp_path, monkeypatch):
    """Taking turns, as the package does by default, would give another order."""
    asked = fake_tfds(monkeypatch, kind='tfrecord')
    monkeypatch.setitem(sys.modules, 'tensorflow', types.ModuleType('tensorflow'))
    tfds.TFDSExport(tmp_path).split(CATALOG['dsprites_loc'], 'train800')
    assert {'interleave_cycle_length': 1} in asked


def test_pictures_of_other_depth_are_refused(tmp_path, monkeypatch):
    fake_tfds(monkeypatch, dtype=np.uint16)
    with refused('dsprites', 'uint16, not uint8'):
        vtab.convert_export(
            CATALOG['dsprites_loc'], tfds.TFDSExport(tmp_path), tmp_path
        )
