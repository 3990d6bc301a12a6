"""The stock dataset classes read the mini sets as they read the official ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmpetl  # noqa: F401  the stock packages import after it
from mmpetl.datasets import CATALOG, FGVC, VTAB, StudyImages, VideoList
from mmpetl.datasets.mini import dense


@pytest.fixture(scope='module')
def root(tiny_root) -> Path:
    return tiny_root


def test_mmpretrain_reads_a_vtab_list(root):
    from mmpretrain import datasets

    data = datasets.CustomDataset(
        data_root=str(root / 'vtab-1k/svhn'),
        ann_file='train800val200.txt',
        pipeline=[dict(type='mmpretrain.LoadImageFromFile')],
    )
    assert len(data) == 10 + 4  # every class once, and the validation pictures
    assert data[0]['img'].shape == (64, 64, 3)


def test_mmaction_decodes_the_clips(root):
    from mmaction import datasets

    data = datasets.VideoDataset(
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
    from mmdet import datasets

    data = datasets.CocoDataset(
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
    from mmdet import datasets

    for year, split, count in ((2007, 'test', 2), (2012, 'trainval', 4)):
        data = datasets.VOCDataset(
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
    from mmseg import datasets

    data = datasets.ADE20KDataset(
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


def test_mmseg_reads_the_maps_of_voc(root):
    from mmseg import datasets

    labels = set()
    for split, count in (('train', 3), ('val', 1)):
        data = datasets.PascalVOCDataset(
            data_root=str(root / 'VOCdevkit/VOC2012'),
            ann_file=f'ImageSets/Segmentation/{split}.txt',
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
            pipeline=[
                dict(type='mmseg.LoadImageFromFile'),
                dict(type='mmseg.LoadAnnotations'),
            ],
        )
        assert len(data) == count
        for sample in data:
            assert sample['gt_seg_map'].shape == sample['img'].shape[:2]
            labels |= set(np.unique(sample['gt_seg_map']).tolist())
    assert {0, 255} < labels <= {*range(21), 255}


def test_masks_of_voc_show_the_things_of_their_boxes(root):
    from xml.etree import ElementTree

    from PIL import Image

    folder = root / 'VOCdevkit/VOC2012'
    for path in sorted((folder / 'SegmentationClass').iterdir()):
        with Image.open(path) as picture:
            assert picture.mode == 'P'
            labels = np.asarray(picture)
            # the first colours of the official palette: dark red, dark green, olive
            assert picture.getpalette()[3:12] == [128, 0, 0, 0, 128, 0, 128, 128, 0]
        tree = ElementTree.parse(folder / 'Annotations' / f'{path.stem}.xml')
        named = {entry.text for entry in tree.iter('name')}
        drawn = {dense.VOC_CLASSES[k - 1] for k in np.unique(labels) if 0 < k < 255}
        assert drawn == named


OURS = [f for f in CATALOG.values() if f.layout in ('vtab', 'fgvc', 'list', 'classes')]


@pytest.mark.parametrize('facts', OURS, ids=lambda facts: facts.id)
def test_our_classes_read_every_image_set(root, facts):
    for split in facts.splits:
        if facts.benchmark == 'vtab':
            data = VTAB(facts.id, split.name, root / facts.base)
        elif facts.benchmark == 'fgvc':
            data = FGVC(facts.id, split.name, root / facts.base)
        else:
            data = StudyImages(facts.id, split.name, root)
        assert len(data) > 0
        assert data.num_classes == facts.num_classes == len(data.metainfo['classes'])
        assert data.metainfo['dataset'] == facts.id
        assert data.metainfo['split'] == split.name
        if split is facts.splits[0] and facts.id != 'imagenet_v2':
            labels = [data.get_data_info(i)['gt_label'] for i in range(len(data))]
            few = facts.id == 'imagenet_sketch'
            assert len(set(labels)) == (40 if few else facts.num_present)


@pytest.mark.parametrize('id', ['kinetics400', 'ssv2', 'hmdb51'])
def test_our_class_reads_every_video_list(root, id):
    facts = CATALOG[id]
    for split in facts.splits:
        folder = root / facts.path
        data = VideoList(folder / split.file, folder / split.images, facts.num_classes)
        assert len(data) == (4 if split.name.startswith('train') else 2)
        assert Path(data[0]['filename']).is_file()
