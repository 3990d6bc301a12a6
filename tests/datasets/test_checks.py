"""check_dataset: each kind of layout, whole and damaged."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import check_config, check_dataset

VOC_XML = '<annotation><object><name>{}</name></object></annotation>'


def video_cfg(root, line='a.mp4 1', **kwargs):
    (root / 'videos').mkdir(exist_ok=True)
    (root / 'videos/a.mp4').touch()
    (root / 'list.txt').write_text(line + '\n')
    return dict(
        type='VideoDataset',
        ann_file=str(root / 'list.txt'),
        data_prefix=dict(video=str(root / 'videos')),
        **kwargs,
    )


def test_video_list(tmp_path):
    assert check_dataset(video_cfg(tmp_path), 'mmaction', 2) == 1
    assert check_dataset(video_cfg(tmp_path, 'a.mp4,1', delimiter=','), 'mmaction') == 1


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('b.mp4 1', r"list.txt:1: there is no file '.*videos/b.mp4'"),
        ('a.mp4 2', r'list.txt:1: label 2 is out of range, classes are 0 to 1'),
        ('a.mp4 -1', r'list.txt:1: label -1 is out of range'),
        ('a.mp4', r"list.txt:1: 'a.mp4' is not '<video path> <label>'"),
        ('a.mp4 x', r"is not '<video path> <label>'"),
        ('', r'list.txt. is empty'),
    ],
)
def test_bad_video_line(tmp_path, line, message):
    with pytest.raises(PETLError, match=message):
        check_dataset(video_cfg(tmp_path, line), 'mmaction', 2)


def test_missing_list_and_folder(tmp_path):
    cfg = video_cfg(tmp_path)
    with pytest.raises(PETLError, match=r"needs the file '.*gone.txt'"):
        check_dataset({**cfg, 'ann_file': str(tmp_path / 'gone.txt')}, 'mmaction')
    with pytest.raises(PETLError, match=r"needs the folder '.*nowhere'.*MMPETL_DATA"):
        check_dataset({**cfg, 'ann_file': str(tmp_path / 'nowhere/l.txt')}, 'mmaction')
    with pytest.raises(PETLError, match=r"needs the folder '.*nowhere'"):
        check_dataset(
            {**cfg, 'data_prefix': dict(video=str(tmp_path / 'nowhere'))}, 'mmaction'
        )


@pytest.fixture
def ade(tmp_path):
    for folder, suffix in (('images', '.jpg'), ('annotations', '.png')):
        (tmp_path / folder / 'training').mkdir(parents=True)
        for name in ('x', 'y'):
            path = tmp_path / folder / 'training' / (name + suffix)
            Image.new('L', (4, 4)).save(path)
    return dict(
        type='ADE20KDataset',
        data_root=str(tmp_path),
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
    )


def test_segmentation_folders(ade, tmp_path):
    assert check_dataset(ade, 'mmseg') == 2
    (tmp_path / 'annotations/training/y.png').unlink()
    with pytest.raises(PETLError, match=r"y.jpg: there is no map '.*y.png'"):
        check_dataset(ade, 'mmseg')
    with pytest.raises(PETLError, match=r"needs the folder '.*images/validation'"):
        check_dataset(
            {**ade, 'data_prefix': dict(img_path='images/validation')}, 'mmseg'
        )


@pytest.fixture
def coco(tmp_path):
    (tmp_path / 'img').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'img/1.jpg')
    content = dict(
        images=[dict(id=1, file_name='1.jpg')],
        categories=[dict(id=7, name='cat'), dict(id=9, name='dog')],
        annotations=[dict(id=5, image_id=1, category_id=7)],
    )
    cfg = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='ann.json',
        data_prefix=dict(img='img/'),
        metainfo=dict(classes=('cat', 'dog')),
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    return tmp_path, cfg, content


def test_coco_file(coco):
    root, cfg, content = coco
    assert check_dataset(cfg, 'mmdet') == 1
    with pytest.raises(PETLError, match=r'lacks 78 of the classes of CocoDataset'):
        check_dataset({k: v for k, v in cfg.items() if k != 'metainfo'}, 'mmdet')
    content['annotations'][0]['category_id'] = 8
    (root / 'ann.json').write_text(json.dumps(content))
    with pytest.raises(PETLError, match='annotation 5 has category 8'):
        check_dataset(cfg, 'mmdet')


def test_coco_missing_image_and_broken_file(coco):
    root, cfg, _ = coco
    (root / 'img/1.jpg').unlink()
    with pytest.raises(PETLError, match=r"image 1 names a missing file '.*1.jpg'"):
        check_dataset(cfg, 'mmdet')
    (root / 'ann.json').write_text('{')
    with pytest.raises(PETLError, match='is not a COCO file'):
        check_dataset(cfg, 'mmdet')


def test_voc_list_inside_repeat_and_concat(tmp_path):
    year = tmp_path / 'VOC2007'
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (year / folder).mkdir(parents=True)
    (year / 'ImageSets/Main/trainval.txt').write_text('000001\n')
    Image.new('RGB', (4, 4)).save(year / 'JPEGImages/000001.jpg')
    xml = year / 'Annotations/000001.xml'
    xml.write_text(VOC_XML.format('cat'))
    part = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
    )
    cfg = dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(type='ConcatDataset', datasets=[part, part]),
    )
    assert check_dataset(cfg, 'mmdet') == 2
    xml.write_text(VOC_XML.format('unicorn'))
    with pytest.raises(PETLError, match=r"txt:1: .*holds class 'unicorn'.*20 classes"):
        check_dataset(cfg, 'mmdet')
    xml.write_text('<annotation>')
    with pytest.raises(PETLError, match='is not readable XML'):
        check_dataset(cfg, 'mmdet')
    xml.unlink()
    with pytest.raises(PETLError, match=r"txt:1: there is no file '.*000001.xml'"):
        check_dataset(cfg, 'mmdet')


def test_config_knows_the_classes_of_its_head(tmp_path):
    cfg = dict(
        default_scope='mmaction',
        model=dict(cls_head=dict(num_classes=1)),
        train_dataloader=dict(dataset=video_cfg(tmp_path)),
        val_dataloader=None,
    )
    with pytest.raises(PETLError, match='label 1 is out of range'):
        check_config(cfg, ('train', 'val'))
    cfg['model']['cls_head']['num_classes'] = 2
    assert check_config(cfg, ('train', 'val')) == {'train': 1}
