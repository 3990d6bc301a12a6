"""check_dataset: each kind of layout, whole and damaged."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import check_config, check_dataset

VOC_XML = (
    '<annotation><size><width>4</width><height>4</height></size><object>'
    '<name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax>'
    '</bndbox></object></annotation>'
)


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
        images=[dict(id=1, file_name='1.jpg', height=4, width=4)],
        categories=[dict(id=7, name='cat'), dict(id=9, name='dog')],
        annotations=[
            dict(id=5, image_id=1, category_id=7, bbox=[0, 0, 3, 3.5], area=9)
        ],
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


def of(content, change):
    """A copy with one change: a path of keys, and a value, or None to drop it."""
    content = json.loads(json.dumps(content))
    *path, last, value = change
    node = content
    for key in path:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return content


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('annotations', None), 'has no annotations'),
        (('annotations', []), 'has no annotations'),
        (('annotations', 0, 'category_id', None), 'annotations.0.: .*category_id'),
        (('annotations', 0, 'category_id', True), 'expected int, got bool'),
        (('annotations', 0, 'category_id', 7.5), 'expected int, got float'),
        (('annotations', 0, 'image_id', 3), 'belongs to image 3, which is not listed'),
        (('annotations', 0, 'bbox', [0, 0, 3]), 'bbox: expected array of length 4'),
        (('annotations', 0, 'bbox', [0, 0, -3, 3]), 'of negative width or height'),
        (('annotations', 0, 'bbox', [9, 0, 3, 3]), 'outside of its picture of 4 x 4'),
        (('annotations', 0, 'bbox', [0, 0, 3, float('nan')]), 'no number of JSON'),
        (('annotations', 0, 'area', None), 'area'),
        (('annotations', 0, 'iscrowd', 1), 'no box that counts: all 1 are of crowds'),
        (('annotations', 0, 'segmentation', 'x'), 'segmentation that is neither'),
        (('images', 0, 'file_name', 1), 'file_name: expected str, got int'),
        (('images', 0, 'height', None), 'missing required field height'),
        (('images', 0, 'height', 0), 'image 1 is 4 x 0'),
        (('categories', 0, 'id', 9), 'category id 9 is there 2 times'),
        (('categories', 0, 'name', 'dog'), "category 'dog' is there 2 times"),
        (('images', 1), 'expected array, got int'),
    ],
)
def test_bad_coco_files_are_one_line(coco, change, message):
    root, cfg, content = coco
    (root / 'ann.json').write_text(json.dumps(of(content, change)))
    with pytest.raises(PETLError, match=message) as caught:
        check_dataset(cfg, 'mmdet')
    assert 'ann.json' in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('key', ['images', 'annotations'])
def test_coco_ids_are_given_once(coco, key):
    root, cfg, content = coco
    content[key] *= 2
    (root / 'ann.json').write_text(json.dumps(content))
    with pytest.raises(PETLError, match='id [15] is there 2 times'):
        check_dataset(cfg, 'mmdet')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (b'{"images": ' + b'[' * 100_000, 'nested'),
        (b'{"images": [], "images": []}', "the key 'images' twice"),
        ('{"images": []}'.encode('utf-16'), 'UTF-16'),
        (b'\xef\xbb\xbf{}', 'byte order mark'),
        (b'[1, 2', 'no JSON'),
    ],
)
def test_coco_files_that_are_no_json(coco, text, message):
    root, cfg, _ = coco
    (root / 'ann.json').write_bytes(text)
    with pytest.raises(PETLError, match=message):
        check_dataset(cfg, 'mmdet')


def test_coco_files_of_test_sets_need_no_annotations_where_nothing_is_scored(coco):
    root, cfg, content = coco
    del content['annotations']
    (root / 'ann.json').write_text(json.dumps(content))
    loader = {'dataset': {**cfg, 'test_mode': True}}
    whole = dict(default_scope='mmdet', test_dataloader=loader)
    with pytest.raises(PETLError, match='has no annotations'):
        check_config(whole, ('test',))
    evaluator = dict(type='CocoMetric', format_only=True)
    found = check_config({**whole, 'test_evaluator': evaluator}, ('test',))
    assert found == {'test': 1}


def test_good_coco_boxes_are_taken_and_odd_ones_remarked(coco):
    """Official files hold boxes without extent, crowds, and masks of both kinds."""
    root, cfg, content = coco
    box = dict(image_id=1, category_id=9, area=0.0, more={'a': [1]})
    content['annotations'] += [
        dict(box, id=6, bbox=[1, 1, 0, 2]),
        dict(box, id=7, bbox=[0, 0, 4, 4], segmentation=[[0, 0, 1, 1, 1, 0]]),
        dict(
            box,
            id=8,
            bbox=[0.0, 0.0, 4.5, 4.0],
            iscrowd=1,
            segmentation={'counts': [16], 'size': [4, 4]},
        ),
    ]
    (root / 'ann.json').write_text(json.dumps(content))
    remarks = []
    assert check_dataset(cfg, 'mmdet', remarks=remarks) == 1
    (line,) = remarks
    assert '1 boxes are smaller than a pixel and are left out, annotation 6' in line
    remarks.clear()
    content['annotations'][1]['bbox'] = [1, 1, 9, 2]
    content['annotations'][2]['segmentation'] = [[0, 0, 1], [1, 1, 1, 0]]
    content['images'].append(dict(content['images'][0], id=2))
    (root / 'ann.json').write_text(json.dumps(content))
    assert check_dataset(cfg, 'mmdet', remarks=remarks) == 2
    assert '1 boxes reach beyond their picture' in remarks[0]
    assert '1 segmentations have no polygon of three points' in remarks[1]
    assert "1 files are listed more than once, '1.jpg'" in remarks[2]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('<xmax>3', '<xmax>nan', 'expected finite numbers'),
        ('<xmax>3', '<xmax>1e400', 'expected finite numbers'),
        ('<xmax>3', '<xmax>wide', 'xmax: expected float, got str'),
        ('<xmax>3</xmax>', '', 'xmax: expected float, got null'),
        ('<xmax>3', '<xmax>0', 'end lies before its beginning'),
        ('<xmin>1</xmin><ymin>1', '<xmin>3</xmin><ymin>5', 'before its beginning'),
        ('<width>4', '<width>0', 'a size of 0 x 4'),
        ('<width>4', '<width>4.5', "'4.5', expected a whole number"),
        ('<width>4</width>', '', 'None, expected a whole number'),
        ('<name>cat</name>', '', 'object 1 has no name'),
        ('</bndbox>', '</bndbox><difficult>x</difficult>', "is 'x', expected a whole"),
        ('</bndbox>', '</bndbox><difficult>1</difficult>', 'no object that counts'),
        ('</bndbox>', '</bndbox><difficult>7</difficult>', 'difficult 7, expected 0'),
        ('<xmin>1', '<xmin>2', None),
        ('<width>4', '<width>1', None),
    ],
)
def test_voc_numbers(tmp_path, old, new, message):
    year = tmp_path / 'VOC2007'
    for folder in ('Annotations', 'JPEGImages'):
        (year / folder).mkdir(parents=True)
    (year / 'list.txt').write_text('a\n')
    Image.new('RGB', (4, 4)).save(year / 'JPEGImages/a.jpg')
    text = VOC_XML.format('cat')
    assert old in text
    (year / 'Annotations/a.xml').write_text(text.replace(old, new, 1))
    cfg = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='VOC2007/list.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
    )
    if message is None:  # a size that lies is seen when the picture is read
        assert check_dataset(cfg, 'mmdet') == 1
        return
    with pytest.raises(PETLError, match=message) as caught:
        check_dataset(cfg, 'mmdet')
    assert 'a.xml' in str(caught.value) or 'list.txt' in str(caught.value)
    size = text[text.index('<size>') : text.index('</size>') + len('</size>')]
    (year / 'Annotations/a.xml').write_text(text.replace(size, ''))
    remarks = []
    assert check_dataset(cfg, 'mmdet', remarks=remarks) == 1
    assert 'state no size' in remarks[0]


def test_a_voc_box_beyond_its_picture_is_remarked(tmp_path):
    year = tmp_path / 'VOC2007'
    for folder in ('Annotations', 'JPEGImages'):
        (year / folder).mkdir(parents=True)
    (year / 'list.txt').write_text('a\n')
    Image.new('RGB', (4, 4)).save(year / 'JPEGImages/a.jpg')
    text = VOC_XML.format('cat').replace('<xmax>3', '<xmax>999', 1)
    (year / 'Annotations/a.xml').write_text(text)
    cfg = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='VOC2007/list.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
    )
    remarks = []
    assert check_dataset(cfg, 'mmdet', remarks=remarks) == 1
    assert '1 annotations have boxes beyond their picture' in remarks[0]


def test_maps_without_pictures_or_labels_are_remarked(tmp_path):
    for folder in ('images', 'maps'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'images/a.jpg')
    for name in 'ab':
        Image.new('L', (4, 4), 0).save(tmp_path / f'maps/{name}.png')
    cfg = dict(
        type='ADE20KDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
    )
    remarks = []
    assert check_dataset(cfg, 'mmseg', remarks=remarks) == 1
    assert "1 maps have no picture, 'b.png' for one" in remarks[0]
    assert 'none of the 1 maps that were looked at holds a label' in remarks[1]
    remarks.clear()
    (tmp_path / 'maps/b.png').unlink()
    Image.new('L', (4, 4), 3).save(tmp_path / 'maps/a.png')
    assert check_dataset(cfg, 'mmseg', remarks=remarks) == 1
    assert not remarks


def test_lists_of_upstream_bear_no_mark(tmp_path):
    cfg = video_cfg(tmp_path)
    (tmp_path / 'list.txt').write_text('a.mp4 1\n', 'utf-8-sig')
    with pytest.raises(PETLError, match='byte order mark'):
        check_dataset(cfg, 'mmaction', 2)
    (tmp_path / 'list.txt').write_text('a.mp4 1\n', 'utf-16')
    with pytest.raises(PETLError, match='is UTF-16'):
        check_dataset(cfg, 'mmaction', 2)
    (tmp_path / 'list.txt').unlink()
    (tmp_path / 'list.txt').mkdir()
    with pytest.raises(PETLError, match='is a folder'):
        check_dataset(cfg, 'mmaction', 2)


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
