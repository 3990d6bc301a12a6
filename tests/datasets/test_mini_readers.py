"""The stock dataset classes read the mini sets as they read the official ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmpetl  # noqa: F401  the stock packages import after it
from mmpetl.datasets import mini
from mmpetl.datasets.mini import dense


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('readers')
    names = ['svhn', 'hmdb51', 'coco', 'VOCdevkit', 'ADEChallengeData2016']
    mini.make(folder, names, 'tiny')
    return folder


def test_mmpretrain_reads_a_vtab_list(root):
    mmpretrain = pytest.importorskip('mmpretrain.datasets')
    data = mmpretrain.CustomDataset(
        data_root=str(root / 'vtab-1k/svhn'),
        ann_file='train800val200.txt',
        pipeline=[dict(type='mmpretrain.LoadImageFromFile')],
    )
    assert len(data) == 12
    assert data[0]['img'].shape == (64, 64, 3)


def test_mmaction_decodes_the_clips(root):
    mmaction = pytest.importorskip('mmaction.datasets')
    pytest.importorskip('decord')
    data = mmaction.VideoDataset(
        ann_file=str(root / 'hmdb51/hmdb51_train_split_1_videos.txt'),
        data_prefix=dict(video=str(root / 'hmdb51/videos')),
        pipeline=[
            dict(type='mmaction.DecordInit'),
            dict(type='mmaction.SampleFrames', clip_len=8, frame_interval=4),
            dict(type='mmaction.DecordDecode'),
        ],
    )
    frames = data[0]['imgs']
    assert len(frames) == 8
    assert frames[0].shape == (80, 80, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # things move


def test_mmdet_reads_coco_with_masks(root):
    mmdet = pytest.importorskip('mmdet.datasets')
    data = mmdet.CocoDataset(
        data_root=str(root / 'coco'),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    assert len(data) == 4
    sample = data[0]
    boxes = sample['gt_bboxes'].tensor.numpy()
    masks = sample['gt_masks'].to_ndarray()
    assert len(boxes) == len(masks) == len(sample['gt_bboxes_labels']) > 0
    for (left, top, right, bottom), mask in zip(boxes, masks, strict=True):
        rows, cols = mask.nonzero()
        assert abs(rows.min() - top) <= 1
        assert abs(rows.max() + 1 - bottom) <= 1
        assert abs(cols.min() - left) <= 1
        assert abs(cols.max() + 1 - right) <= 1


def test_mmdet_reads_both_years_of_voc(root):
    mmdet = pytest.importorskip('mmdet.datasets')
    for year, split, count in ((2007, 'test', 2), (2012, 'trainval', 4)):
        data = mmdet.VOCDataset(
            data_root=str(root / 'VOCdevkit'),
            ann_file=f'VOC{year}/ImageSets/Main/{split}.txt',
            data_prefix=dict(sub_data_root=f'VOC{year}/'),
            pipeline=[],
        )
        assert len(data) == count
        info = data[0]
        assert info['instances']
        assert Path(info['img_path']).is_file()
        for instance in info['instances']:
            left, top, right, bottom = instance['bbox']
            assert 0 <= left < right <= info['width']
            assert 0 <= top < bottom <= info['height']


def test_mmseg_reduces_the_label_zero(root):
    mmseg = pytest.importorskip('mmseg.datasets')
    data = mmseg.ADE20KDataset(
        data_root=str(root / 'ADEChallengeData2016'),
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=[
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
        ],
    )
    assert len(data) == 4
    labels = np.unique(data[0]['gt_seg_map'])
    official = {*dense.ADE_GROUNDS.values(), *dense.ADE_THINGS}
    assert 255 in labels
    assert {int(label) + 1 for label in labels if label != 255} <= official


def test_our_own_datasets_read_all_image_sets(tmp_path):
    from mmpetl.datasets.fgvc import FGVC, FGVC_SETS
    from mmpetl.datasets.mini.images import VTAB_CLASSES
    from mmpetl.datasets.vtab import VTAB, VTAB_SPLITS

    mini.make(tmp_path, ['vtab-1k', 'fgvc'], 'tiny')
    for task, classes in VTAB_CLASSES.items():
        for split in VTAB_SPLITS:
            data = VTAB(task, split, data_root=tmp_path / 'vtab-1k')
            assert data.num_classes == classes
            assert len(data) > 0
    for name, facts in FGVC_SETS.items():
        data = FGVC(name, 'train', data_root=tmp_path / 'fgvc')
        assert len(data.metainfo['classes']) == facts.num_classes
        labels = {data.get_data_info(index)['gt_label'] for index in range(len(data))}
        assert labels == set(range(facts.num_classes))
