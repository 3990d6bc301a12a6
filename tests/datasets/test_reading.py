"""An undecodable file is named in one line, from this process and from a worker."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.dataset import RepeatDataset, pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmpetl.core import PETLError
from mmpetl.datasets import VTAB, UnreadableFileError, guard_reading

mmcv = pytest.importorskip('mmcv')


@pytest.fixture
def dataset(tmp_path):
    """Two images of a VTAB task; the second can be damaged by the test."""
    from mmcv.transforms import LoadImageFromFile

    images = tmp_path / 'cifar/images/test'
    images.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for index in range(2):
        Image.fromarray(pixels).save(images / f'{index:06d}.jpg')
    lines = [f'images/test/{index:06d}.jpg 0\n' for index in range(2)]
    (tmp_path / 'cifar/test.txt').write_text(''.join(lines))
    built = VTAB(
        'cifar100',
        'test',
        tmp_path,
        pipeline=[LoadImageFromFile(imdecode_backend='pillow')],
        test_mode=True,
    )
    guard_reading(built)
    return built


def damage(dataset, how):
    path = dataset.folder / 'images/test/000001.jpg'
    whole = path.read_bytes()
    path.write_bytes({'noise': b'\x07' * 99, 'cut': whole[:-200], 'empty': b''}[how])
    return path


@pytest.mark.parametrize('how', ['noise', 'cut', 'empty'])
def test_damaged_image_is_named(dataset, how):
    path = damage(dataset, how)
    assert dataset[0]['img'].shape == (32, 32, 3)
    with pytest.raises(PETLError, match=rf"^Cannot read '{path}'") as caught:
        dataset[1]
    assert '\n' not in str(caught.value)


def test_one_line_comes_through_a_worker(dataset):
    path = damage(dataset, 'noise')
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(UnreadableFileError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"Cannot read '{path}' (LoadImageFromFile:")
    assert '\n' not in str(caught.value)


def test_wrapped_sets_are_guarded_and_twice_is_once(dataset):
    before = dataset.pipeline
    guard_reading(RepeatDataset(dataset, times=2))
    assert dataset.pipeline is before


def test_faults_of_other_transforms_are_not_disguised(dataset):
    def broken(data):
        raise KeyError('scale')

    dataset.pipeline.transforms.append(broken)
    with pytest.raises(KeyError):
        dataset[0]


@pytest.mark.parametrize('reader', ['DecordInit', 'OpenCVInit'])
def test_damaged_video_is_named(tmp_path, reader):
    transforms = pytest.importorskip('mmaction.datasets.transforms')
    from mmaction.datasets import VideoDataset

    (tmp_path / 'a.mp4').write_bytes(b'\x00\x00\x00\x18ftypmp42' + b'\x01' * 500)
    (tmp_path / 'list.txt').write_text('a.mp4 0\n')
    videos = VideoDataset(
        str(tmp_path / 'list.txt'),
        pipeline=[getattr(transforms, reader)()],
        data_prefix=dict(video=str(tmp_path)),
        test_mode=True,
    )
    guard_reading(videos)
    with pytest.raises(PETLError, match=rf"^Cannot read '{tmp_path}/a.mp4' \({reader}"):
        videos[0]


def test_map_with_a_foreign_label_is_named(tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.datasets import ADE20KDataset
    from mmseg.datasets.transforms import LoadAnnotations

    for folder, suffix in (('images', '.jpg'), ('maps', '.png')):
        (tmp_path / folder).mkdir()
        for name, label in (('a', 150), ('b', 151)):
            image = Image.fromarray(np.full((4, 4), label, np.uint8))
            image.save(tmp_path / folder / (name + suffix))
    scenes = ADE20KDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        pipeline=[LoadAnnotations(reduce_zero_label=True)],
        test_mode=True,
    )
    guard_reading(scenes)
    assert scenes[0]['gt_seg_map'].max() == 149
    with pytest.raises(PETLError, match=r"b.png' holds label 150 .* 0 to 149"):
        scenes[1]
