"""Pictures decoded once: equal pixels, bounded, and safe to write into."""

from __future__ import annotations

import mmcv.transforms  # noqa: F401  # what STEPS names is registered
import numpy as np
import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets import LoadOnce

STEPS = [
    {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'},
    {
        'type': 'Resize',
        'scale': (20, 16),
        'backend': 'pillow',
        'interpolation': 'bicubic',
    },
]


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for index in range(4):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        made.append(tmp_path / f'{index}.jpg')
        Image.fromarray(pixels).save(made[-1])
    return [str(path) for path in made]


def sample(path):
    return {'img_path': path, 'gt_label': 3}


def test_pixels_are_those_of_reading_anew(paths):
    from mmengine.dataset import Compose

    plain, cached = Compose(STEPS), LoadOnce(STEPS)
    for _ in range(2):
        for path in paths:
            right, found = plain(sample(path)), cached(sample(path))
            assert set(found) == set(right)
            assert np.array_equal(found['img'], right['img'])
            assert {k: v for k, v in found.items() if k != 'img'} == {
                k: v for k, v in right.items() if k != 'img'
            }


def test_files_are_read_once(paths, tmp_path):
    cached = LoadOnce(STEPS)
    first = [cached(sample(path))['img'] for path in paths]
    for path in tmp_path.glob('*.jpg'):
        path.unlink()
    again = [cached(sample(path))['img'] for path in paths]
    for before, after in zip(first, again, strict=True):
        assert np.array_equal(before, after)


def test_later_steps_may_write_into_a_picture(paths):
    cached = LoadOnce(STEPS)
    right = cached(sample(paths[0]))['img'].copy()
    for _ in range(3):
        found = cached(sample(paths[0]))
        assert np.array_equal(found['img'], right)
        found['img'][:] = 0
        found['label'] = 7


@pytest.mark.parametrize(
    ('limits', 'kept'),
    [
        ({'max_images': 2}, 2),
        ({'max_bytes': 3 * 20 * 16 * 3}, 3),
        ({'max_images': 0}, 0),
        ({'max_bytes': 0}, 0),
        ({}, 4),
    ],
)
def test_what_is_kept_is_bounded(paths, tmp_path, limits, kept):
    cached = LoadOnce(STEPS, **limits)
    for path in paths * 2:
        cached(sample(path))
    for path in tmp_path.glob('*.jpg'):
        path.unlink()
    for path in paths[:kept]:
        cached(sample(path))
    for path in paths[kept:]:
        with pytest.raises(FileNotFoundError):
            cached(sample(path))


def test_limits_are_checked():
    with pytest.raises(PETLError, match='max_images of at least 0'):
        LoadOnce(STEPS, max_images=-1)


def test_a_broken_picture_is_named_through_the_cache(tmp_path):
    from mmengine.dataset import BaseDataset

    from mmpetl.datasets import UnreadableFileError, guard_reading

    path = tmp_path / 'broken.jpg'
    path.write_bytes(b'no picture')

    class One(BaseDataset):
        def load_data_list(self):
            return [sample(str(path))]

    data = One(pipeline=[LoadOnce(STEPS)])
    guard_reading(data)
    with pytest.raises(UnreadableFileError, match='broken.jpg'):
        data[0]
