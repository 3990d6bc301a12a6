"""Lists, class folders, videos: what is read, and what bad input says."""

from __future__ import annotations

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import ImageList, StudyImages, VideoList, check_dataset
from mmpetl.datasets.image_list import imagenet_wnids, subset_of


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 4)).save(path)


def labels(data):
    return [data.get_data_info(i)['gt_label'] for i in range(len(data))]


def test_a_line_is_split_at_its_last_blank(tmp_path):
    picture(tmp_path / 'n01498041/0.01_a ray or 2.jpg')
    (tmp_path / 'list.txt').write_text('n01498041/0.01_a ray or 2.jpg 6\n')
    data = ImageList(tmp_path, 1000, 'list.txt')
    assert labels(data) == [6]
    assert data.get_data_info(0)['img_path'].endswith('a ray or 2.jpg')


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a.jpg 3', r'list.txt:1: label 3 is out of range, classes are 0 to 2'),
        ('b.jpg 1', r"list.txt:1: there is no file '.*b.jpg'"),
        ('a.jpg', r"list.txt:1: 'a.jpg' is not '<image path> <label>'"),
        ('', 'list.txt. is empty'),
    ],
)
def test_bad_lines(tmp_path, line, message):
    picture(tmp_path / 'a.jpg')
    (tmp_path / 'list.txt').write_text(line + '\n')
    with pytest.raises(PETLError, match=message):
        ImageList(tmp_path, 3, 'list.txt')
    cfg = dict(type='mmpetl.ImageList', data_root=str(tmp_path), num_classes=3)
    with pytest.raises(PETLError, match=message):
        check_dataset(cfg | dict(ann_file='list.txt'))


def test_class_folders_are_wordnet_ids_or_numbers(tmp_path):
    for name in ('n01443537', 'n01440764', 'n15075141'):
        picture(tmp_path / 'ids' / name / 'a.JPEG')
    # the first, second and last of ImageNet's thousand
    assert labels(ImageList(tmp_path / 'ids', 1000)) == [0, 1, 999]
    for name in ('10', '2', '0'):
        picture(tmp_path / 'numbers' / name / 'a.jpeg')
    assert labels(ImageList(tmp_path / 'numbers', 1000)) == [0, 2, 10]
    (tmp_path / 'ids/notes').mkdir()
    with pytest.raises(PETLError, match="ids/notes' is no class folder"):
        ImageList(tmp_path / 'ids', 1000)


def test_wordnet_ids_are_in_alphabetical_order():
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert sorted(wnids) == sorted(wnids, key=wnids.get)
    assert len(subset_of('imagenet_r')) == len(subset_of('imagenet_a')) == 200


def test_a_subset_keeps_the_labels_of_all_classes(tiny_root):
    data = StudyImages('imagenet_r', 'test', tiny_root)
    assert data.metainfo['subset'] == subset_of('imagenet_r')
    assert set(labels(data)) == set(subset_of('imagenet_r'))
    with pytest.raises(PETLError, match='holds 200 classes, expected 100'):
        ImageList(tiny_root / 'imagenet-r', 1000, subset=100)
    assert 'subset' not in StudyImages('imagenet_v2', 'test', tiny_root).metainfo


def test_folds_are_read_by_name(tiny_root):
    names = [f'val_fold{k}' for k in range(1, 6)]
    folds = [StudyImages('cifar100_500', name, tiny_root) for name in names]
    paths = [{d.get_data_info(i)['img_path'] for i in range(len(d))} for d in folds]
    whole = StudyImages('cifar100_500', 'trainval', tiny_root)
    assert sum(map(len, paths)) == len(set().union(*paths)) == len(whole)
    with pytest.raises(PETLError, match="no split 'val_fold6'"):
        StudyImages('cifar100_500', 'val_fold6', tiny_root)
    with pytest.raises(PETLError, match="no split 'val_fold1'"):
        StudyImages('cifar100_1k', 'val_fold1', tiny_root)
    with pytest.raises(
        PETLError, match="'imagenet_sketc'. Did you mean 'imagenet_sketch'"
    ):
        StudyImages('imagenet_sketc', 'train', tiny_root)


# --- videos ------------------------------------------------------------------


@pytest.mark.parametrize('mark', [' ', ',', ', ', '\t'])
def test_video_lists_with_blank_or_comma(tmp_path, mark):
    (tmp_path / 'brush hair').mkdir()
    (tmp_path / 'brush hair/a, b.mp4').touch()
    (tmp_path / 'list.csv').write_text(f'brush hair/a, b.mp4{mark}3\n')
    data = VideoList(tmp_path / 'list.csv', tmp_path, 51)
    info = data.get_data_info(0)
    assert info['filename'] == str(tmp_path / 'brush hair/a, b.mp4')
    assert (info['label'], info['start_index'], info['modality']) == (3, 0, 'RGB')


def test_absolute_paths_stay(tmp_path):
    (tmp_path / 'a.mp4').touch()
    (tmp_path / 'list.csv').write_text(f'{tmp_path}/a.mp4,0\n')
    (tmp_path / 'elsewhere').mkdir()
    data = VideoList(tmp_path / 'list.csv', tmp_path / 'elsewhere', 2)
    assert data.get_data_info(0)['filename'] == f'{tmp_path}/a.mp4'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a.mp4 51', r'list.txt:1: label 51 is out of range, classes are 0 to 50'),
        ('b.mp4 1', r"list.txt:1: there is no file '.*b.mp4'"),
        ('a.mp4', r"list.txt:1: 'a.mp4' is not '<video path> <label>'"),
    ],
)
def test_bad_video_lines(tmp_path, line, message):
    (tmp_path / 'a.mp4').touch()
    (tmp_path / 'list.txt').write_text(line + '\n')
    with pytest.raises(PETLError, match=message):
        VideoList(tmp_path / 'list.txt', tmp_path, 51)


def test_frames_are_read_as_mmaction_reads_them(tiny_root):
    from mmaction import datasets

    folder = tiny_root / 'hmdb51_frames'
    ann_file = folder / 'hmdb51_train_split_1_rawframes.txt'
    pipeline = [
        dict(type='mmaction.SampleFrames', clip_len=4, frame_interval=2, num_clips=1),
        dict(type='mmaction.RawFrameDecode'),
    ]
    ours = VideoList(ann_file, folder / 'rawframes', 51, True, pipeline=pipeline)
    theirs = datasets.RawframeDataset(
        ann_file=str(ann_file),
        data_prefix=dict(img=str(folder / 'rawframes')),
        pipeline=pipeline,
        start_index=1,
    )
    assert len(ours) == len(theirs) == 4
    for index in range(4):
        mine, other = ours.get_data_info(index), theirs.get_data_info(index)
        assert {key: mine[key] for key in other} == other
    assert ours[0]['imgs'][0].shape == (80, 80, 3)
