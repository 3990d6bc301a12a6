"""An undecodable file is named in one line, from this process and from a worker."""

from __future__ import annotations

import struct
import zlib

import mmcv.transforms
import numpy as np
import pytest
from mmengine.dataset import Compose, RepeatDataset, pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmpetl.core import PETLError
from mmpetl.datasets import VTAB, UnreadableFileError, guard_reading
from mmpetl.datasets.reading import GuardedPipeline


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
    from mmaction.datasets import VideoDataset, transforms

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


@pytest.fixture
def scenes(tmp_path):
    """Builds a guarded segmentation set of two pictures, 6 px wide and 4 high."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    labels = np.arange(24, dtype=np.uint8).reshape(4, 6) % 5
    for folder, suffix in (('images', '.jpg'), ('maps', '.png')):
        (tmp_path / folder).mkdir()
        for name in 'ab':
            Image.fromarray(labels).save(tmp_path / folder / (name + suffix))

    def build(backend='pillow', first=()):
        load = [
            mmcv.transforms.LoadImageFromFile(),
            LoadAnnotations(imdecode_backend=backend),
        ]
        built = BaseSegDataset(
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images', seg_map_path='maps'),
            metainfo=dict(classes=tuple('vwxyz')),
            pipeline=load[:1] + list(first) + load[1:],
            test_mode=True,
        )
        guard_reading(built)
        return built

    build.map = tmp_path / 'maps' / 'b.png'
    build.labels = labels
    return build


def refusal(dataset) -> str:
    assert dataset[0]['gt_seg_map'].shape == (4, 6)
    with pytest.raises(UnreadableFileError) as caught:
        dataset[1]
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_maps_of_another_size_are_refused(scenes):
    Image.fromarray(scenes.labels[:3]).save(scenes.map)
    assert refusal(scenes()) == f"Map '{scenes.map}' is 6 x 3, its picture 6 x 4."


def test_resized_pictures_keep_their_maps(scenes):
    """Test pipelines resize the picture before the map is read."""
    resize = mmcv.transforms.Resize(scale=(12, 8))
    assert scenes(first=[resize])[1]['gt_seg_map'].shape == (4, 6)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_colours_are_no_labels(scenes, backend):
    Image.fromarray(np.stack([scenes.labels] * 3, -1)).save(scenes.map)
    assert f"'{scenes.map}' holds colours (mode RGB), not labels" in refusal(
        scenes(backend)
    )


def test_indices_of_a_palette_are_labels_unless_they_are_read_as_colours(scenes):
    picture = Image.fromarray(scenes.labels)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
    picture.save(scenes.map)
    np.testing.assert_array_equal(scenes()[1]['gt_seg_map'], scenes.labels)
    assert "read them with imdecode_backend='pillow'" in refusal(scenes('cv2'))


def test_lossy_maps_are_refused(scenes):
    Image.fromarray(scenes.labels).save(scenes.map, format='JPEG')
    assert 'is a JPEG, whose loss changes labels' in refusal(scenes())


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_labels_that_do_not_fit_into_8_bits_are_refused(scenes, backend):
    """256 and 300 become 0 and 44 in the reader, and 0 is a class."""
    deep = scenes.labels.astype(np.uint16)
    Image.fromarray(deep).save(scenes.map)
    np.testing.assert_array_equal(scenes(backend)[1]['gt_seg_map'], scenes.labels)
    deep[0, 0] = 256
    Image.fromarray(deep).save(scenes.map)
    assert 'holds label 256, of which readers keep 8 bits: 0.' in refusal(
        scenes(backend)
    )


# --- pictures of 16 bits -----------------------------------------------------


@pytest.fixture
def deep_picture(tmp_path):
    """A grey picture of 16 bits, mean 66 of 255, and its shades in 8 bits."""
    shades = np.linspace(0, 132, 64 * 64).reshape(64, 64)
    values = (shades * 256).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'deep.png')
    return tmp_path / 'deep.png', (values // 256).astype(np.uint8)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('flag', ['color', 'grayscale'])
def test_pictures_of_16_bits_keep_their_shades(deep_picture, backend, flag):
    path, shades = deep_picture
    for read in (
        mmcv.imread(path, flag=flag, backend=backend),
        mmcv.transforms.LoadImageFromFile(color_type=flag, imdecode_backend=backend)(
            {'img_path': str(path)}
        )['img'],
    ):
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read.reshape(64, 64, -1)[..., 0], shades)
    assert abs(shades.mean() - 66) < 1


def test_deep_pictures_stay_deep_where_that_is_asked_for(deep_picture):
    read = mmcv.imread(deep_picture[0], flag='unchanged', backend='pillow')
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read // 256, deep_picture[1])


def test_our_sets_read_them_through_the_pipeline_of_a_recipe(dataset, deep_picture):
    path = dataset.folder / 'images/test/000001.jpg'
    path.write_bytes(deep_picture[0].read_bytes())
    np.testing.assert_array_equal(dataset[1]['img'][..., 1], deep_picture[1])


def test_exported_pictures_keep_their_shades(deep_picture, tmp_path):
    from mmpetl.datasets.catalog import CATALOG
    from mmpetl.datasets.convert import vtab

    place = tmp_path / 'svhn' / 'test' / '3' / 'a.png'
    place.parent.mkdir(parents=True)
    place.write_bytes(deep_picture[0].read_bytes())
    export = vtab.FolderExport(tmp_path).split(CATALOG['svhn'], 'test')
    picture, label = export[0]
    np.testing.assert_array_equal(picture[..., 2], deep_picture[1])
    assert label == 3


def test_demos_draw_them_in_their_shades(deep_picture, tmp_path):
    from mmpetl.apis.draw import draw_detection

    path, shades = deep_picture
    out = draw_detection(path, [], tmp_path / 'out.png')
    drawn = np.asarray(Image.open(out).convert('L'), float)
    assert abs(drawn.mean() - shades.mean()) < 2


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_pictures_of_32_bits_are_refused(dataset, dtype):
    path = dataset.folder / 'images/test/000001.jpg'
    values = np.linspace(0, 70_000, 64).reshape(8, 8).astype(dtype)
    Image.fromarray(values).save(path, format='TIFF')
    with pytest.raises(UnreadableFileError, match='values have 32 bits'):
        dataset[1]


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (2 * b'\x00\x00\x00\x20', 2 * b'\x00\x0f\x00\x20'),
        (b'IHDR', b'IH'),
        (b'IDAT', b'ID'),
    ],
)
def test_demos_refuse_what_cannot_be_drawn(tmp_path, old, new):
    from mmpetl.apis.draw import draw_detection

    path = tmp_path / 'a.png'
    Image.fromarray(np.ones((32, 32, 3), np.uint8)).save(path)
    data = path.read_bytes()
    assert old in data
    data = data.replace(old, new)
    sealed = data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]
    path.write_bytes(sealed if old[:1] == b'\0' else data)
    with pytest.raises(PETLError, match='cannot read'):
        draw_detection(path, [], tmp_path / 'out.png')
    with pytest.raises(PETLError, match='there is no picture'):
        draw_detection(tmp_path / 'none.png', [], tmp_path / 'out.png')


def test_demos_draw_thin_pictures_in_bounds(tmp_path):
    from mmpetl.apis.draw import draw_detection

    path = tmp_path / 'a.png'
    Image.fromarray(np.ones((1, 20_000, 3), np.uint8)).save(path)
    out = draw_detection(path, [], tmp_path / 'out.png')
    assert Image.open(out).size == (20_000, 1)


def test_a_picture_that_pillow_does_not_know_is_told_without_an_address(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(b'abc')
    load = mmcv.transforms.LoadImageFromFile(imdecode_backend='pillow')
    guarded = GuardedPipeline(Compose([load]))
    with pytest.raises(UnreadableFileError) as caught:
        guarded(dict(img_path=str(path)))
    assert str(caught.value) == (
        f"Cannot read '{path}' (LoadImageFromFile: UnidentifiedImageError: "
        'cannot identify image file).'
    )
