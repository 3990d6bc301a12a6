"""Sets with several dense annotations, and the drawn one."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmpetl.core import PETLError
from mmpetl.datasets import DenseTasks, check_dataset
from mmpetl.datasets.mini import multi_task
from mmpetl.datasets.mini.scenes import Scene, Thing


@pytest.fixture(scope='module')
def drawn(tiny_data) -> Path:
    return tiny_data('nyud_mt') / 'nyud_mt'


@pytest.fixture
def root(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / 'nyud_mt'))


def test_samples_name_an_image_and_a_map_per_task(drawn):
    dataset = DenseTasks('train', drawn)
    assert len(dataset) == 4
    assert len(DenseTasks('val', drawn)) == 2
    sample = dataset.get_data_info(0)
    image = cv2.imread(sample['img_path'])
    labels = cv2.imread(sample['seg_map_path'], cv2.IMREAD_UNCHANGED)
    depth = cv2.imread(sample['depth_map_path'], cv2.IMREAD_UNCHANGED)
    assert image.shape[:2] == labels.shape == depth.shape
    assert depth.dtype == np.uint16
    assert dataset.num_classes == 40
    assert set(np.unique(labels)) <= {*range(40), 255}


def test_one_task_alone_does_not_ask_for_the_files_of_the_other(root):
    shutil.rmtree(root / 'depth')
    sample = DenseTasks('val', root, tasks=['segmentation']).get_data_info(0)
    assert 'depth_map_path' not in sample
    with pytest.raises(PETLError, match='nyud_mt/depth'):
        DenseTasks('val', root)


def test_the_pipeline_of_the_recipe_gives_metres(drawn):
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        steps = ['LoadImageFromFile', 'LoadAnnotations']
        pipeline = [dict(type=step) for step in steps]
        pipeline += [dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3)]
        pipeline += [dict(type='PackSegInputs')]
        dataset = DenseTasks('train', drawn, pipeline=pipeline)
    sample = dataset[0]['data_samples']
    raw = cv2.imread(dataset.get_data_info(0)['depth_map_path'], -1)
    depth = sample.gt_depth_map.data
    assert depth.shape == sample.gt_sem_seg.data.shape == (1, *raw.shape)
    np.testing.assert_allclose(depth[0], raw / 1000, rtol=1e-6)
    assert 1 < depth.max() <= 10


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(tasks=['dept']), r"no task 'dept'. Did you mean 'depth'\? There are"),
        (dict(split='test'), r"no list '.*test.txt' for split test"),
    ],
)
def test_what_does_not_exist_is_named(drawn, change, message):
    with pytest.raises(PETLError, match=message) as error:
        DenseTasks(**{'split': 'train', 'data_root': drawn} | change)
    assert '\n' not in str(error.value)


def test_a_missing_map_is_named_with_its_line(root):
    (root / 'depth' / '0002.png').unlink()
    cfg = dict(type='mmpetl.DenseTasks', data_root=str(root), split='train')
    with pytest.raises(PETLError, match=r"train.txt:2: there is no file '.*0002.png'"):
        check_dataset(cfg)
    assert check_dataset({**cfg, 'split': 'val'}) == 2


def test_an_empty_list_is_refused(root):
    (root / 'splits' / 'val.txt').write_text('\n')
    with pytest.raises(PETLError, match='is empty'):
        DenseTasks('val', root)


def test_drawn_depth_follows_the_ground():
    height, width, edge = 100, 40, 50
    ground = np.zeros((height, width), np.uint8)
    ground[edge:] = 2
    mask = np.zeros((height, width), bool)
    mask[30:70, 10:20] = True
    scene = Scene(
        np.zeros((height, width, 3), np.uint8),
        ground,
        (Thing(3, mask, (10, 30, 20, 70)),),
    )
    depth = multi_task.depth_map(scene)
    assert depth[10, 5] == 6.0  # the wall
    assert depth[edge, 5] == pytest.approx(0.9 / 0.15)
    assert depth[80, 5] == pytest.approx(0.9 / (0.3 + 0.15))
    # A thing stands where its lowest row touches the ground.
    assert depth[40, 15] == pytest.approx(0.9 / (0.19 + 0.15))
    assert not depth[0].any()
    assert not depth[:, -1].any()
    labels = multi_task.nyu_labels(scene)
    assert labels[40, 15] == multi_task.NYU_THINGS[3]
    assert (labels[10, 5], labels[80, 5], labels[0, 5]) == (0, 1, 255)


def test_a_depth_map_of_another_form_is_refused(root):
    from mmengine.registry import DefaultScope

    from mmpetl.datasets import guard_reading

    steps = ('LoadImageFromFile', 'LoadAnnotations', 'LoadDepthAnnotation')
    with DefaultScope.overwrite_default_scope('mmseg'):
        pipeline = [dict(type=step) for step in steps]
        dataset = DenseTasks('val', root, pipeline=pipeline, test_mode=True)
    guard_reading(dataset)
    assert dataset[0]['gt_depth_map'].ndim == 2
    path = Path(dataset.get_data_info(0)['depth_map_path'])
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    for spoilt, part in (
        (depth[:-1], 'its picture'),
        (np.stack([depth] * 3, -1), 'has 3 values a pixel'),
    ):
        cv2.imwrite(str(path), spoilt)
        with pytest.raises(PETLError, match=part) as caught:
            dataset[0]
        assert f"Map '{path}'" in str(caught.value)
