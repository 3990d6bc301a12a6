"""Boxes in files of COCO: found, refused, divided, trained on, counted."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from drawn_scenes import NAMES, coco, draw, save, write_boxes, write_masks
from PIL import Image

from mmpetl.apis.draw import with_boxes
from mmpetl.apis.predict import Box
from mmpetl.benchmark.job_config import compose_job
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError
from mmpetl.datasets.own import find_boxes, keep_splits, kind_of, read_splits
from mmpetl.own import map_trunk_of, prepare, run_line, train_own, write_page
from mmpetl.own.boxes import Said, _matched, box_results

MINI = str(Path(__file__).parents[2] / 'configs' / 'mini' / 'coco.py')


def marks(boxes) -> list:
    """What a picture shows, whatever it is called."""
    return sorted(
        sorted((boxes.found.names[m.label], m.box) for m in boxes.marks[p.path])
        for p in boxes.found.pictures
    )


def test_boxes_are_found_in_every_layout(tmp_path):
    whole = find_boxes(write_boxes(tmp_path / 'one', 9))
    assert whole.found.names == NAMES
    assert 'without a box were left aside: glyphs' in whole.found.notes[0]
    assert sum(map(len, marks(whole))) == sum(len(s.things) for s in draw(9))
    alone = find_boxes(tmp_path / 'one' / 'annotations.json')
    assert marks(alone) == marks(whole)
    scenes = draw(9)
    parts = {'train': scenes[:6], 'valid': scenes[6:8], 'test': scenes[8:]}
    for name, part in parts.items():
        folder = tmp_path / 'roboflow' / name
        data = coco(part, save(part, folder))
        (folder / '_annotations.coco.json').write_text(json.dumps(data))
        data = coco(part, save(part, tmp_path / 'coco' / 'images' / f'{name}2017'))
        file = tmp_path / 'coco' / 'annotations' / f'instances_{name}2017.json'
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(data))
    for folder in ('roboflow', 'coco'):
        assert kind_of(tmp_path / folder) == 'boxes'
        found = find_boxes(tmp_path / folder)
        counts = Counter(p.part for p in found.found.pictures)
        assert counts == {'train': 6, 'val': 2, 'test': 1}
        assert marks(found) == marks(whole)


def test_a_fifth_is_drawn_and_every_class_stays_trained(tmp_path):
    boxes = find_boxes(write_boxes(tmp_path / 'data', 21))
    splits = keep_splits(boxes.found, tmp_path / 'splits.json', 1)
    counts = {part: len(entries) for part, entries in splits.parts.items()}
    assert counts == {'train': 17, 'val': 0, 'test': 4}
    assert splits.drawn == ['test']
    shown = {n for e in splits.parts['train'] for n in boxes.found.shows[e.path]}
    assert shown == set(NAMES)
    assert read_splits(tmp_path / 'splits.json') == splits
    assert keep_splits(boxes.found, tmp_path / 'other.json', 2).parts != splits.parts
    file = tmp_path / 'data' / 'annotations.json'
    data = json.loads(file.read_text())
    data['annotations'][0]['bbox'][0] += 1
    file.write_text(json.dumps(data))
    with pytest.raises(PETLError, match='1 have another content'):
        keep_splits(find_boxes(tmp_path / 'data').found, tmp_path / 'splits.json')


def test_the_only_picture_of_a_class_is_not_drawn(tmp_path):
    write_boxes(tmp_path / 'data', 6)
    file = tmp_path / 'data' / 'annotations.json'
    data = json.loads(file.read_text())
    data['annotations'] = [
        {**one, 'image_id': i, 'category_id': 1 + (i > 0)}
        for i, one in enumerate(data['annotations'][:6])
    ]
    for one in data['annotations']:
        one['bbox'] = [1, 1, 20, 20]
    file.write_text(json.dumps(data))
    found = find_boxes(tmp_path / 'data').found
    for seed in range(6):
        splits = keep_splits(found, tmp_path / f'{seed}.json', seed)
        assert [e.path for e in splits.parts['test']] != ['images/000.png']


def _spoil(key, number, **values):
    def change(data):
        data[key][number].update(values)

    return change


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (_spoil('images', 0, file_name='gone.png'), 'not there: gone.png'),
        (_spoil('images', 0, file_name='../out.png'), 'pictures lie below'),
        (_spoil('images', 0, file_name='001.png'), 'lists images/001.png twice'),
        (_spoil('images', 0, width=7000), 'stated are 7000 x'),
        (_spoil('annotations', 0, bbox=[900, 0, 5, 5]), 'outside of its picture'),
        (_spoil('annotations', 0, category_id=9), 'category 9, which is not among'),
        (_spoil('annotations', 0, image_id=99), 'image 99, which is not listed'),
        (_spoil('annotations', 0, bbox='box'), 'bbox: expected array'),
        (lambda data: data['annotations'].clear(), 'no picture has a box of any'),
        (lambda data: data['images'].clear(), 'not listed'),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, change, match):
    file = write_boxes(tmp_path / 'data', 5) / 'annotations.json'
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(PETLError, match=match) as error:
        find_boxes(tmp_path / 'data')
    assert '\n' not in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    file = write_boxes(tmp_path / 'data', 5) / 'annotations.json'
    file = file.rename(file.with_name('instances.json'))
    file.write_text(file.read_text()[:40])
    assert kind_of(tmp_path / 'data') == 'boxes'
    with pytest.raises(PETLError, match=r'instances.json.* is not a COCO file'):
        find_boxes(tmp_path / 'data')
    other = tmp_path / 'other.json'
    other.write_text('[]')
    with pytest.raises(PETLError, match='is not a COCO file'):
        find_boxes(other)


def test_boxes_are_cut_at_the_border(tmp_path):
    file = write_boxes(tmp_path / 'data', 5) / 'annotations.json'
    data = json.loads(file.read_text())
    data['annotations'][0]['bbox'] = [-5, 10, 25, 20]
    data['annotations'][1]['bbox'] = [3, 3, 0.2, 9]
    file.write_text(json.dumps(data))
    found = find_boxes(tmp_path / 'data')
    path = f'images/{data["annotations"][0]["image_id"]:03d}.png'
    assert (0.0, 10, 20.0, 20) in [mark.box for mark in found.marks[path]]
    said = ' '.join(found.found.notes)
    assert '1 boxes reach beyond' in said
    assert '1 boxes are smaller' in said


def test_pictures_are_read_as_their_exif_turns_them(tmp_path):
    file = write_boxes(tmp_path / 'data', 5) / 'annotations.json'
    data = json.loads(file.read_text())
    path = tmp_path / 'data' / 'images' / '000.png'
    with Image.open(path) as picture:
        wide = picture.resize((40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(path, exif=exif)
    data['images'][0] |= {'width': 20, 'height': 40}
    data['annotations'] = [a for a in data['annotations'] if a['image_id']]
    file.write_text(json.dumps(data))
    assert find_boxes(tmp_path / 'data').sizes['images/000.png'] == (20, 40)
    assert with_boxes(path, [], side=40).size == (20, 40)


def test_each_thing_is_found_once():
    there = [(0, (0, 0, 10, 10), False), (0, (40, 0, 10, 10), True)]
    said = [
        Said(1, 1, (0, 1, 10, 10), 0.9),  # 9 of 11 rows are common
        Said(1, 1, (0, 0, 10, 10), 0.8),  # taken already
        Said(1, 1, (42, 2, 4, 4), 0.7),  # within the crowd
        Said(1, 2, (0, 0, 10, 10), 0.6),  # of another class
    ]
    taken, counted = _matched(there, said)
    assert taken == [0]
    assert counted == [said[0], said[1], said[3]]


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('boxes')
    return prepare(
        write_boxes(folder / 'a <b>set</b>', 10),
        backbone=MINI,
        size=64,
        work_dir=folder / 'work',
        epochs=1,
        batch_size=8,
        augmentation='strong',
    )


@pytest.fixture(scope='module')
def run(task):
    return train_own(task, 'lora')


def test_a_step_leaves_a_delta_that_finds_named_things(run, task):
    from mmpetl.apis import init_model, open_run, predict_detection

    assert (run.record.status, run.record.steps, run.record.test_reads) == (
        'done',
        1,
        1,
    )
    assert run.record.data['train'].count == 8
    # Upstream gives no metric where nothing was found.
    upstream = run.record.metrics.get('coco/bbox_mAP', 0.0)
    assert run.results.score == pytest.approx(upstream, abs=1e-3)
    assert open_run(run.delta).config.test_dataloader
    facts = json.loads(run.delta.with_suffix('.json').read_text())
    assert facts['classes'] == list(NAMES)
    picture = task.root / task.splits.parts['test'][0].path
    model = init_model(str(run.config), run.delta, 'cpu')
    boxes = predict_detection(model, picture, 0.0)
    assert {box.name for box in boxes} <= set(NAMES)


def test_the_page_shows_the_worst_beside_what_is_there(run):
    text = write_page(run).read_text(encoding='utf-8')
    assert '<b>set' not in text
    assert f'<dd>{100 * run.results.score:.1f} %</dd>' in text
    wrong = len(run.results.worst)
    assert text.count('class="pair"') == wrong > 0
    assert text.count('<img src="data:') == 2 * wrong
    assert all(f'id="{name}"' in text for name in ('classes', 'worst', 'training'))


def test_perfect_boxes_score_one_and_missing_ones_are_counted(task):
    from mmpetl.datasets.annotations import read_coco

    truth = read_coco(task.ann_file('test'))
    said = [Said(a.image_id, a.category_id, a.bbox, 0.9) for a in truth.annotations]
    found = box_results(task, said)
    assert (found.score, found.ap50) == pytest.approx((1, 1))
    assert not found.worst
    less = box_results(task, said[1:])
    assert (less.worst[0].missed, less.worst[0].extra) == (1, 0)
    first = less.worst[0].truth[0]
    assert isinstance(first, Box)
    assert math.isnan(first.score)
    assert less.score < 1
    nothing = box_results(task, [])
    assert nothing.score == 0
    with pytest.raises(PETLError, match='other pictures or classes'):
        box_results(task, [Said(1, 9, (0, 0, 1, 1), 0.5)])


def test_a_plain_trunk_has_levels_of_the_strides_that_anchors_have(task):
    from mmengine.registry import MODELS

    plain = replace(task, trunk=map_trunk_of('timm/test_vit', 'random', 64))
    config = compose_job(plain.job('LoRA'), 'unused')
    with scope_of(config):
        model = MODELS.build(config.model).eval()
    maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
    strides = config.model.bbox_head.anchor_generator.strides
    assert strides == [8, 16, 32, 64, 128]
    assert [y.shape[-1] for y in maps] == [8, 4, 2, 1, 1]


def test_another_division_and_other_channels_are_another_run(task):
    drawn = replace(task, splits=msgspec.structs.replace(task.splits, digest='f' * 64))
    assert drawn.ann_file('test') != task.ann_file('test')
    assert drawn.job('LoRA').id != task.job('LoRA').id
    for rgb in (True, False):
        other = replace(task, trunk=replace(task.trunk, rgb=rgb))
        config = compose_job(other.job('LoRA'), 'unused')
        assert config.model.data_preprocessor.bgr_to_rgb is rgb


def test_a_work_folder_is_no_part(tmp_path):
    data = write_boxes(tmp_path / 'data', 6)
    work = data / 'train'
    shutil.copytree(data / 'images', work)
    shutil.copy(data / 'annotations.json', work)
    assert len(find_boxes(data, work).found.pictures) == 6


def test_a_search_is_for_classifiers(task):
    with pytest.raises(PETLError, match='holds boxes; name a method'):
        run_line(task, 'auto', say=lambda line: None)


def test_the_page_fits_windows(run):
    from mmpetl.benchmark.report.browser import NAMES as BROWSERS
    from mmpetl.benchmark.report.browser import browser, find_browser

    if find_browser() is None:
        pytest.skip(f'no browser: none of {", ".join(BROWSERS)} is on the PATH')
    pytest.importorskip('playwright.sync_api')
    page, said = write_page(run), []
    with browser() as chromium:
        for width in (390, 1400):
            window = chromium.new_page(viewport={'width': width, 'height': 800})
            window.on('console', lambda message: said.append(message.text))
            window.goto(page.as_uri())
            assert window.evaluate('document.documentElement.scrollWidth') == width
    assert not said


@pytest.mark.slow
@pytest.mark.parametrize(
    ('write', 'name'), [(write_boxes, 'coco'), (write_masks, 'ade20k')]
)
def test_a_line_trains_and_its_run_predicts_and_is_tested(
    write, name, tmp_path, capsys
):
    from mmpetl.cli.commands import predict, publish, test, train

    data, work = write(tmp_path / 'data', 20), tmp_path / 'work'
    line = ['lora', str(data), '--backbone', MINI.replace('coco', name), '--report']
    given = ['--size', '64', '--epochs', '20', '--lr', '1e-3', '--batch-size', '4']
    more = ['--augmentation', 'none', '--work-dir', str(work), '--device', 'cpu']
    train.main([*line, *given, *more])
    assert (work / 'lora.html').is_file()
    (folder,) = (work / 'runs').iterdir()
    picture = str(data / 'images' / '000.png')
    delta, config = str(work / 'lora.safetensors'), str(work / 'lora.py')
    for run in (str(folder), delta):
        predict.main([run, picture, '--out', str(tmp_path / 'out.png')])
        assert 'written to' in capsys.readouterr().out
    publish.main([str(folder), str(tmp_path / 'published')])
    assert json.loads((tmp_path / 'published.json').read_text())['classes']
    out = tmp_path / 'metrics.json'
    test.main([config, delta, '--out', str(out)])
    record = json.loads((folder / 'record.json').read_text())
    found = json.loads(out.read_text())
    metric = record['primary']
    assert found[metric] == pytest.approx(record['metrics'][metric], abs=1e-3)
    assert record['metrics'][metric] > 0
