"""Masks beside pictures: found, refused, trained on, counted."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from drawn_scenes import NAMES, write_masks
from PIL import Image

from mmpetl.apis import open_run
from mmpetl.benchmark.job_config import compose_job
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError
from mmpetl.datasets.own import find_masks, keep_splits, kind_of
from mmpetl.evaluation import LabelMaps
from mmpetl.own import map_trunk_of, prepare, train_own, write_page

MINI = str(Path(__file__).parents[2] / 'configs' / 'mini' / 'ade20k.py')
COLOURS = [(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250)]
ALL = ('ground', *NAMES)


def rewrite(folder: Path, change) -> None:
    """Every mask anew."""
    for path in sorted((folder / 'masks').glob('*.png')):
        with Image.open(path) as mask:
            change(np.asarray(mask)).save(path)


def coloured(labels: np.ndarray) -> Image.Image:
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLOURS)] = COLOURS
    table[255] = (9, 9, 9)
    return Image.fromarray(table[labels])


def with_palette(labels: np.ndarray) -> Image.Image:
    mask = Image.fromarray(labels)
    # Of fewer colours the file would hold fewer bits a pixel, and no 255.
    mask.putpalette([v for colour in COLOURS for v in colour] + [9] * (768 - 12))
    return mask


def test_numbers_palettes_and_colours_are_the_same_labels(tmp_path):
    folder = write_masks(tmp_path / 'data', 6)
    assert kind_of(folder) == 'masks'
    numbers = find_masks(folder)
    assert numbers.found.names == ALL
    assert numbers.palette is None
    path = numbers.found.pictures[0].path
    labels = numbers.labels(path)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 255}
    shown = {ALL[i] for i in np.unique(labels) if i != 255}
    assert numbers.found.shows[path] == shown
    rewrite(folder, with_palette)
    palette = find_masks(folder)
    assert palette.palette == [list(colour) for colour in COLOURS]
    assert np.array_equal(palette.labels(path), labels)
    rewrite(folder, coloured)
    (folder / 'classes.txt').unlink()
    with pytest.raises(PETLError, match='hold 5 colours .*nothing says of which'):
        find_masks(folder)
    lines = [f'{n} {r} {g} {b}' for n, (r, g, b) in zip(ALL, COLOURS, strict=True)]
    (folder / 'classes.txt').write_text('\n'.join(lines))
    with pytest.raises(PETLError, match=r'1 colours that .*: 9 9 9 \(in 6 masks\)'):
        find_masks(folder)
    (folder / 'classes.txt').write_text('\n'.join([*lines, 'ignore 9 9 9']))
    colours = find_masks(folder)
    assert colours.found.names == ALL
    assert np.array_equal(colours.labels(path), labels)


def shuffled(labels: np.ndarray, number: int) -> Image.Image:
    """A mask whose colours are numbered in an order of its own."""
    order = np.roll(np.arange(4), number)
    table = np.full(256, 255, np.uint8)
    table[order] = np.arange(4)
    mask = Image.fromarray(table[labels])
    palette = [*np.array(COLOURS)[order].ravel().tolist(), *[9] * (768 - 12)]
    mask.putpalette(palette)
    return mask


def test_palettes_are_read_by_their_colours_where_these_are_named(tmp_path):
    folder = write_masks(tmp_path / 'data', 6)
    numbers = find_masks(folder)
    wanted = {p.path: numbers.labels(p.path) for p in numbers.found.pictures}
    rewritten = iter(range(6))
    rewrite(folder, lambda labels: shuffled(labels, next(rewritten)))
    with pytest.raises(PETLError, match='is the colour .* in masks/000.png and .* own'):
        find_masks(folder)
    lines = [f'{n} {r} {g} {b}' for n, (r, g, b) in zip(ALL, COLOURS, strict=True)]
    for named in (lines, [*lines, 'ignore 9 9 9']):  # 255 does not count
        (folder / 'classes.txt').write_text('\n'.join(named))
        found = find_masks(folder)
        assert found.by_palette
        assert found.found.names == ALL
        for path, labels in wanted.items():
            assert np.array_equal(found.labels(path), labels)
    (folder / 'classes.txt').write_text('\n'.join(lines[:-1]))
    with pytest.raises(PETLError, match='1 colours that .*: 0 0 250'):
        find_masks(folder)


@pytest.mark.parametrize(
    'shown', [COLOURS, [(1, 2, 3), (4, 5, 6), (7, 8, 9), (3, 3, 3)]]
)
def test_a_palette_for_the_eye_leaves_numbers_alone(tmp_path, shown):
    """In the order of classes.txt or of other colours, and beside masks without one."""
    folder = write_masks(tmp_path / 'data', 6)
    plain = find_masks(folder)
    wanted = {p.path: plain.labels(p.path) for p in plain.found.pictures}
    lines = [f'{n} {r} {g} {b}' for n, (r, g, b) in zip(ALL, shown, strict=True)]
    (folder / 'classes.txt').write_text('\n'.join(lines))
    for rewritten in (6, 3):
        for path, labels in list(wanted.items())[:rewritten]:
            mask = with_palette(labels) if rewritten == 6 else Image.fromarray(labels)
            mask.save(folder / 'masks' / Path(path).name)
        found = find_masks(folder)
        assert found.found.names == ALL
        assert not found.by_palette
        for path, labels in wanted.items():
            assert np.array_equal(found.labels(path), labels)


def test_a_colour_without_a_class_does_not_make_numbers_of_the_others(tmp_path):
    """The background unnamed, or one strange colour: what is said is which."""
    folder = write_masks(tmp_path / 'data', 6)
    rewrite(folder, with_palette)
    lines = [f'{n} {r} {g} {b}' for n, (r, g, b) in zip(ALL, COLOURS, strict=True)]
    (folder / 'classes.txt').write_text('\n'.join(lines[1:]))
    first = ' '.join(map(str, COLOURS[0]))
    with pytest.raises(PETLError, match=f'1 colours that .*: {first} '):
        find_masks(folder)
    swapped = [lines[1], lines[0], lines[2], f'{ALL[3]} 7 7 7']
    (folder / 'classes.txt').write_text('\n'.join(swapped))
    strange = ' '.join(map(str, COLOURS[3]))
    with pytest.raises(PETLError, match=f'1 colours that .*: {strange} '):
        find_masks(folder)


def test_colours_of_255_are_not_compared(tmp_path):
    folder = write_masks(tmp_path / 'data', 6)
    numbers = iter(range(6))

    def other_rim(labels: np.ndarray) -> Image.Image:
        mask = with_palette(labels)
        mask.putpalette([*mask.getpalette()[:765], next(numbers), 77, 77])
        return mask

    rewrite(folder, other_rim)
    assert find_masks(folder).found.names == ALL


def test_a_palette_in_another_order_is_read_by_its_colours(tmp_path):
    """Among masks of colours too; 255 counts where it alone has a class's colour."""
    folder = write_masks(tmp_path / 'data', 6)
    plain = find_masks(folder)
    wanted = {p.path: plain.labels(p.path) for p in plain.found.pictures}
    lines = [f'{n} {r} {g} {b}' for n, (r, g, b) in zip(ALL, COLOURS, strict=True)]
    (folder / 'classes.txt').write_text('\n'.join([*lines, 'ignore 9 9 9']))

    def same() -> None:
        found = find_masks(folder)
        assert found.by_palette
        assert found.found.names == ALL
        for path, labels in wanted.items():
            assert np.array_equal(found.labels(path), labels)

    rewrite(folder, lambda labels: shuffled(labels, 1))
    same()
    with Image.open(folder / 'masks' / '000.png') as mask:
        mask.convert('RGB').save(folder / 'masks' / '000.png')
    same()

    def last_is_255(labels: np.ndarray) -> Image.Image:
        table = np.arange(256, dtype=np.uint8)
        table[[3, 255]] = 255, 4
        mask = Image.fromarray(table[labels])
        colours = [*COLOURS[:3], *[(9, 9, 9)] * 252, COLOURS[3]]
        mask.putpalette([v for colour in colours for v in colour])
        return mask

    for path, labels in wanted.items():
        last_is_255(labels).save(folder / 'masks' / Path(path).name)
    same()


def test_masks_behind_links_and_beside_a_work_folder_are_found(tmp_path):
    folder = write_masks(tmp_path / 'data', 6)
    for kind in ('images', 'masks'):
        (tmp_path / kind / 'more').mkdir(parents=True)
        for number in (4, 5):
            file = folder / kind / f'{number:03d}.png'
            file.rename(tmp_path / kind / 'more' / file.name)
        (folder / kind / 'more').symlink_to(tmp_path / kind / 'more')
    assert len(find_masks(folder).found.pictures) == 6
    work = folder / 'images' / 'work'
    work.mkdir()
    shutil.copy(folder / 'images' / '000.png', work / 'shown.png')
    assert kind_of(folder, work) == 'masks'
    assert len(find_masks(folder, work).found.pictures) == 6


def test_parts_may_lie_within_or_around(tmp_path):
    write_masks(tmp_path / 'whole', 8)
    for part, first, last in (('train', 0, 5), ('val', 5, 8)):
        for kind in ('images', 'masks'):
            for folder in (f'in/{kind}/{part}', f'around/{part}/{kind}'):
                (tmp_path / folder).mkdir(parents=True)
                for i in range(first, last):
                    file = tmp_path / 'whole' / kind / f'{i:03d}.png'
                    shutil.copy(file, tmp_path / folder)
    for name in ('in', 'around'):
        shutil.copy(tmp_path / 'whole' / 'classes.txt', tmp_path / name)
        found = find_masks(tmp_path / name).found
        splits = keep_splits(found, tmp_path / f'{name}.json')
        assert not splits.drawn
        assert {p: len(e) for p, e in splits.parts.items()} == {
            'train': 5,
            'val': 0,
            'test': 3,
        }


def test_classes_without_names_are_numbers(tmp_path):
    folder = write_masks(tmp_path / 'data', 5)
    (folder / 'classes.txt').unlink()
    assert find_masks(folder).found.names == tuple(f'class {i}' for i in range(4))
    thing = lambda labels: np.where((labels > 0) & (labels < 9), 255, 0)  # noqa: E731
    rewrite(folder, lambda labels: Image.fromarray(thing(labels).astype(np.uint8)))
    found = find_masks(folder)
    assert found.found.names == ('class 0', 'class 255')
    assert '255 is a class here' in found.found.notes[0]


@pytest.mark.parametrize(
    ('spoil', 'match'),
    [
        (lambda f: (f / 'masks/000.png').unlink(), '1 pictures without a mask: 000'),
        (lambda f: (f / 'images/000.png').unlink(), '1 files of no picture: 000.png'),
        (
            lambda f: shutil.copy(f / 'masks/000.png', f / 'masks/000.bmp'),
            'several files of one stem: 000',
        ),
        (
            lambda f: Image.new('L', (3, 4)).save(f / 'masks/000.png'),
            'masks/000.png is 3 x 4, its picture',
        ),
        (
            lambda f: (f / 'masks/000.png').write_bytes(b'none'),
            r'masks/000.png is no picture that can be read',
        ),
        (lambda f: (f / 'classes.txt').write_text('a\nb'), 'does not name: 2 .in'),
        (lambda f: (f / 'classes.txt').write_text('a\na'), 'name a twice'),
        (lambda f: (f / 'classes.txt').write_text('a 1 2 999'), 'is no class'),
        (
            lambda f: rewrite(f, lambda m: Image.fromarray(0 * m)),
            r'hold 1 class \(ground\); two are needed',
        ),
        (
            lambda f: (
                coloured(np.zeros((3, 4), int)).save(f / 'masks/000.png')
                or Image.new('RGB', (4, 3)).save(f / 'images/000.png')
            ),
            'some hold numbers .masks/001.png. and some colours',
        ),
        (
            lambda f: [p.rename(p.with_suffix('.txt')) for p in f.glob('masks/*')],
            'boxes as YOLO or VOC',
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, spoil, match):
    folder = write_masks(tmp_path / 'data', 5)
    spoil(folder)
    with pytest.raises(PETLError, match=match) as error:
        find_masks(folder)
    assert '\n' not in str(error.value)


def test_label_maps_score_as_mmseg_does():
    from mmengine.structures import PixelData
    from mmseg.evaluation import IoUMetric
    from mmseg.structures import SegDataSample

    rng = np.random.default_rng(0)
    ours, theirs = LabelMaps(), IoUMetric(iou_metrics=['mIoU'])
    for metric in (ours, theirs):
        metric.dataset_meta = {'classes': ('a', 'b', 'c', 'absent')}
    said = []
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 255], (1, 9, 7))
        called = rng.integers(0, 3, (1, 9, 7))
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth))
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(called))
        said.append(called[0])
        for metric in (ours, theirs):
            metric.process({}, [sample.to_dict()])
    with Image.open(io.BytesIO(ours.results[1]['labels'])) as kept:
        assert np.array_equal(np.asarray(kept), said[1])
    expected = theirs.evaluate(3)
    for name, value in ours.evaluate(3).items():
        assert value == pytest.approx(expected[name], abs=0.006)  # theirs is rounded


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('masks')
    return prepare(
        write_masks(folder / 'data', 10),
        backbone=MINI,
        size=64,
        work_dir=folder / 'work',
        epochs=1,
        batch_size=8,
        augmentation='strong',
    )


def test_a_plain_trunk_has_a_pyramid_in_front_of_the_head(task):
    from mmengine.registry import MODELS

    plain = replace(task, trunk=map_trunk_of('timm/test_vit', 'random', 64))
    config = compose_job(plain.job('LoRA'), 'unused')
    with scope_of(config):
        model = MODELS.build(config.model).eval()
    x = torch.zeros(1, 3, 64, 64)
    assert [y.shape[-1] for y in model.extract_feat(x)] == [16, 8, 4, 2]
    assert model.encode_decode(x, [{'img_shape': (64, 64)}]).shape == (
        1,
        len(ALL),
        64,
        64,
    )


def test_another_division_and_other_channels_are_another_run(task):
    drawn = replace(task, splits=msgspec.structs.replace(task.splits, digest='f' * 64))
    drawn.data_folder.mkdir()
    shutil.copy(task.data_folder / 'palette.json', drawn.data_folder)
    assert drawn.job('LoRA').id != task.job('LoRA').id
    for rgb in (True, False):
        other = replace(task, trunk=replace(task.trunk, rgb=rgb))
        job = other.job('LoRA')
        assert any(key.endswith('_rgb') for key in job.options) is not rgb
        assert compose_job(job, 'unused').model.data_preprocessor.bgr_to_rgb is rgb


def test_a_step_leaves_a_delta_that_names_pixels(task):
    run = train_own(task, 'lora')
    assert (run.record.status, run.record.steps, run.record.test_reads) == (
        'done',
        1,
        1,
    )
    found = run.results
    assert 100 * found.score == pytest.approx(run.record.score)
    assert sum(one.pixels for one in found.pictures) == sum(
        one.tested for one in found.classes
    )
    assert open_run(run.delta).config.test_dataloader
    facts = json.loads(run.delta.with_suffix('.json').read_text())
    assert facts['classes'] == list(ALL)
    text = write_page(run).read_text(encoding='utf-8')
    assert text.count('<img src="data:') == 2 * len(found.worst) > 0
    assert f'<dd>{100 * found.score:.1f} %</dd>' in text
    assert train_own(task, 'lora').record.finished == run.record.finished
