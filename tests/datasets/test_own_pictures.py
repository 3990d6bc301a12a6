"""A person's own pictures: what is found, what is refused, and how they are divided."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets.own import OwnPictures, find_pictures, keep_splits, read_splits
from mmpetl.datasets.own.splits import divide

CLASSES = ('ant', 'bee', 'cat')


def draw(folder: Path, count: int, first: int = 0, classes=CLASSES) -> Path:
    """So many pictures a class, each of a colour of its own."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            colour = (ord(name[0]), number, 0)
            Image.new('RGB', (4, 4), colour).save(folder / name / f'{number:02d}.png')
    return folder


def refused(data: Path, match: str) -> None:
    with pytest.raises(PETLError, match=match):
        find_pictures(data)


def test_folders_are_classes_and_each_gives_a_fifth(tmp_path):
    found = find_pictures(draw(tmp_path / 'data', 10))
    assert found.classes == CLASSES
    splits = keep_splits(found, tmp_path / 'splits.json')
    assert splits.counts() == {'train': [6] * 3, 'val': [2] * 3, 'test': [2] * 3}
    assert splits.drawn == ['test', 'val']
    paths = [e.path for entries in splits.parts.values() for e in entries]
    assert sorted(paths) == [p.path for p in found.pictures]
    other = keep_splits(found, tmp_path / 'other.json', seed=1)
    assert other.parts['test'] != splits.parts['test']
    assert keep_splits(found, tmp_path / 'again.json') == splits


def test_a_division_is_kept_and_other_pictures_are_refused(tmp_path):
    data, path = draw(tmp_path / 'data', 6), tmp_path / 'splits.json'
    splits = keep_splits(find_pictures(data), path, seed=3)
    assert keep_splits(find_pictures(data), path) == splits == read_splits(path)
    with pytest.raises(PETLError, match='drawn with seed 3, and 0 is asked'):
        keep_splits(find_pictures(data), path, seed=0)
    (data / 'ant' / '00.png').rename(data / 'ant' / 'new.png')
    with pytest.raises(PETLError, match=r'1 are new \(ant/new.png.*1 are gone'):
        keep_splits(find_pictures(data), path)
    (data / 'ant' / 'new.png').rename(data / 'ant' / '00.png')
    Image.new('RGB', (4, 4), 'white').save(data / 'bee' / '01.png')
    with pytest.raises(PETLError, match=r'another content or class \(bee/01.png'):
        keep_splits(find_pictures(data), path)


def test_an_edited_division_is_refused(tmp_path):
    path = tmp_path / 'splits.json'
    keep_splits(find_pictures(draw(tmp_path / 'data', 6)), path)
    data = json.loads(path.read_text())
    data['parts']['train'].append(data['parts']['test'].pop())
    path.write_text(json.dumps(data))
    with pytest.raises(PETLError, match='was edited'):
        read_splits(path)


def test_a_given_layout_is_respected(tmp_path):
    for number, part in enumerate(('train', 'Validation', 'test')):
        draw(tmp_path / 'data' / part, 4, first=10 * number)
    splits = keep_splits(find_pictures(tmp_path / 'data'), tmp_path / 's.json')
    assert splits.drawn == []
    assert splits.counts() == {part: [4] * 3 for part in ('train', 'val', 'test')}
    assert {e.path.partition('/')[0] for e in splits.parts['val']} == {'Validation'}


def test_val_without_test_is_what_is_scored(tmp_path):
    draw(tmp_path / 'data' / 'train', 5)
    draw(tmp_path / 'data' / 'val', 2, first=20)
    path = tmp_path / 's.json'
    splits = keep_splits(find_pictures(tmp_path / 'data'), path)
    assert splits.drawn == ['val']
    assert splits.counts() == {'train': [4] * 3, 'val': [1] * 3, 'test': [2] * 3}
    assert 'the given val is what is scored' in splits.notes[0]
    assert keep_splits(find_pictures(tmp_path / 'data'), path) == splits


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = 'utf-8') -> Path:
    with open(path, 'w', newline='', encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(folder: Path, **more: str) -> list[dict[str, str]]:
    files = sorted(folder.rglob('*.png'))
    base = folder.parent
    return [
        {'path': f.relative_to(base).as_posix(), 'label': f.parent.name, **more}
        for f in files
    ]


def test_a_csv_says_the_same_as_its_folders(tmp_path):
    data = draw(tmp_path / 'data', 6)
    rows = rows_of(data)
    # As Excel saves it, with a byte order mark; the order of lines does not matter.
    path = write_csv(tmp_path / 'list.csv', rows[::-1], 'utf-8-sig')
    splits = keep_splits(find_pictures(path), tmp_path / 's.json')
    known = keep_splits(find_pictures(data), tmp_path / 'folders.json')
    assert splits.counts() == known.counts()
    assert splits.classes == known.classes
    for row, part in zip(rows, ['train', 'train', 'dev', 'test'] * 5, strict=False):
        row['split'] = part
    given = keep_splits(
        find_pictures(write_csv(tmp_path / 'given.csv', rows)), tmp_path / 'g.json'
    )
    assert given.drawn == []
    assert [len(given.parts[p]) for p in ('train', 'val', 'test')] == [10, 4, 4]


def spoil(rows, **changes):
    return [{**rows[0], **changes}, *rows[1:]]


def test_a_csv_with_a_fault_is_one_line(tmp_path):
    rows = rows_of(draw(tmp_path / 'data', 6))
    path = tmp_path / 'list.csv'
    renamed = [{'path': r['path'], 'kind': r['label']} for r in rows]
    refused(write_csv(path, renamed), 'no column label or class; .* path, kind')
    gone = spoil(rows, path='data/ant/99.png')
    refused(write_csv(path, gone), r'names 1 files .*data/ant/99.png \(line 2\)')
    refused(write_csv(path, spoil(rows, label='')), 'list.csv:2: label is empty')
    torn = [*rows, {**rows[0], 'label': 'bee'}]
    refused(
        write_csv(path, torn), 'data/ant/00.png is ant in line 2 and bee in line 20'
    )
    odd = [{**row, 'split': 'train'} for row in rows]
    refused(write_csv(path, spoil(odd, split='later')), "split 'later' is none of")


@pytest.mark.parametrize('between', [';', '\t'])
def test_a_list_of_a_spreadsheet_is_read(between, tmp_path):
    draw(tmp_path, 5)
    paths = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*.png'))
    lines = [f'"{p.as_posix()}"{between}{p.parts[0]}, a' for p in paths]
    path = tmp_path / 'list.csv'
    path.write_text('\n'.join([f'Path{between}"Label"', *lines]))
    assert find_pictures(path).classes == ('ant, a', 'bee, a', 'cat, a')
    path.write_text(f'{paths[0]}{between}ant')
    refused(path, r'which names the columns \(path,label\), says')


def test_what_systems_put_beside_is_no_class(tmp_path):
    data = draw(tmp_path / 'data', 6)
    draw(data / '__MACOSX', 1)
    draw(data, 1, classes=['.thumbs'])
    (data / 'ant' / '._00.png').write_text('of an archive')
    assert find_pictures(data).classes == CLASSES


def test_what_makes_no_classifier_is_refused(tmp_path):
    refused(tmp_path / 'absent', 'no folder and no CSV')
    refused(draw(tmp_path / 'one', 6, classes=['ant']), 'one class, ant')
    data = draw(tmp_path / 'data', 6)
    (data / 'dog').mkdir()
    refused(data, "'.*dog' holds no picture")
    (data / 'dog' / 'a.gif').touch()
    refused(data, "'.*dog' holds no picture .*, but .gif; fill it")
    shutil.rmtree(data / 'dog')
    shutil.copy(data / 'ant' / '00.png', data / 'loose.png')
    refused(data, '1 pictures beside its class folders')
    refused(data / 'ant', '6 pictures and no class folder')


def test_unreadable_pictures_are_named(tmp_path):
    data = draw(tmp_path / 'data', 6)
    (data / 'ant' / '01.png').write_bytes((data / 'ant' / '01.png').read_bytes()[:40])
    (data / 'bee' / '02.jpg').write_text('no picture')
    (data / 'cat' / 'note.txt').write_text('none of ours')
    refused(data, r'2 of 19 .*: ant/01.png is .*; bee/02.jpg is no picture')
    (data / 'ant' / '01.png').unlink()
    (data / 'bee' / '02.jpg').unlink()
    assert '1 files are no picture' in find_pictures(data).notes[0]


def test_copies_across_classes_and_splits_are_refused(tmp_path):
    data = draw(tmp_path / 'data', 6)
    shutil.copy(data / 'ant' / '00.png', data / 'ant' / 'copy.png')
    found = find_pictures(data)
    assert '1 copies' in found.notes[-1]
    assert Counter(p.label for p in found.pictures) == dict.fromkeys(CLASSES, 6)
    shutil.copy(data / 'ant' / '00.png', data / 'bee' / 'copy.png')
    refused(data, r'1 pictures bear two labels: ant/00.png \(ant\) and bee/copy.png')
    given = tmp_path / 'given'
    draw(given / 'train', 4)
    draw(given / 'test', 2, first=3)
    refused(given, 'lie in two splits: test/ant/03.png .* and train/ant/03.png')


def test_classes_with_too_few_pictures_are_named(tmp_path):
    data = draw(tmp_path / 'data', 6)
    draw(data, 4, classes=['dog'])
    with pytest.raises(PETLError, match=r'fewer than 5 pictures.*: dog \(4\); 3 are'):
        keep_splits(find_pictures(data), tmp_path / 'splits.json')
    assert not (tmp_path / 'splits.json').exists()


def test_names_that_look_alike_or_are_no_text_are_said(tmp_path):
    data = draw(tmp_path / 'data', 6, classes=['ant', 'Bee'])
    draw(data, 6, classes=['cat'])
    (data / 'cat').rename(data / 'bee')
    notes = divide(find_pictures(data), 0).notes
    assert notes == ['the classes Bee and bee differ in capitals alone, and are two']
    odd = data / 'ant' / 'x\udcff.png'
    (data / 'ant' / '00.png').rename(odd)
    refused(data, r"'ant/x.udcff.png' has a name that is no UTF-8")


def test_a_class_may_be_called_train(tmp_path):
    found = find_pictures(draw(tmp_path / 'data', 6, classes=['bus', 'train']))
    assert found.classes == ('bus', 'train')
    given = tmp_path / 'given'
    draw(given / 'train', 4)
    draw(given / 'test', 2, first=10, classes=['ant', 'dog'])
    refused(given, 'classes that train/ has not: dog')


def test_splits_without_class_folders_are_no_classes(tmp_path):
    for name in ('train', 'test'):
        draw(tmp_path / 'flat', 6, first=ord(name[1]), classes=[name])
    refused(tmp_path / 'flat', 'has test/, train/ without class folders inside')
    draw(tmp_path / 'half' / 'train', 4)
    draw(tmp_path / 'half', 2, first=10, classes=['test'])
    refused(tmp_path / 'half', 'has test/ without class folders inside')


def test_pictures_behind_links_are_found_once(tmp_path):
    data, other = draw(tmp_path / 'data', 6), draw(tmp_path / 'other', 2, first=10)
    (data / 'ant' / 'more').symlink_to(other / 'ant')
    (data / 'ant' / 'z').mkdir()
    (data / 'ant' / 'z' / 'back').symlink_to(data / 'ant')
    paths = [p.path for p in find_pictures(data).pictures if p.label == 'ant']
    own = [f'ant/{number:02d}.png' for number in range(6)]
    assert paths == [*own, 'ant/more/10.png', 'ant/more/11.png']
    (data / 'bee' / 'gone.png').symlink_to(tmp_path / 'gone.png')
    refused(data, r'bee/gone.png \(No such file')


def test_the_work_folder_is_no_class(tmp_path):
    data = draw(tmp_path / 'data', 6)
    work = data / 'work_dirs' / 'own' / 'data'
    draw(work / 'data', 1, first=20)
    assert find_pictures(data, work).classes == CLASSES
    # With pictures beside it, it is a class folder as any other.
    draw(data, 6, first=30, classes=['work_dirs'])
    found = find_pictures(data, work)
    assert found.classes == (*CLASSES, 'work_dirs')
    assert len(found.pictures) == 24
    for number, part in enumerate(('train', 'test')):
        draw(tmp_path / 'parts' / part, 4, first=10 * number)
    work = tmp_path / 'parts' / 'work'
    work.mkdir()
    assert find_pictures(tmp_path / 'parts', work).parts == ('train', 'test')


def test_the_data_set_reads_a_part(tmp_path):
    data, path = draw(tmp_path / 'data', 6), tmp_path / 'splits.json'
    splits = keep_splits(find_pictures(data), path)
    trained = OwnPictures(data, path, 'trainval')
    assert trained.metainfo['classes'] == CLASSES
    assert len(trained) == 15
    info = OwnPictures(data, path, 'test').get_data_info(1)
    entry = splits.parts['test'][1]
    assert info['img_path'] == str(data / entry.path)
    assert info['gt_label'] == entry.label
    assert len(OwnPictures(data, path, 'test', division=splits.digest)) == 3
    path.unlink()
    keep_splits(find_pictures(data), path, seed=1)
    with pytest.raises(PETLError, match='was drawn anew since'):
        OwnPictures(data, path, 'test', division=splits.digest)
    path.unlink()
    keep_splits(find_pictures(data), path)
    (data / entry.path).unlink()
    with pytest.raises(PETLError, match='which is not there'):
        OwnPictures(data, path, 'test')
    with pytest.raises(PETLError, match='no split'):
        OwnPictures(data, path, 'dev')
