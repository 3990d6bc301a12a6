"""The verifier passes whole sets and finds each planted fault, in every layout."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from verifying import edit, items_of, list_of, look, relabel, text_of

from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.mini.storage import STAMP
from mmpetl.datasets.verify import verify

TOOL = Path(__file__).parents[2] / 'tools' / 'misc' / 'verify_dataset.py'

# One or two sets of each layout; those of a kind differ in labels and folders only.
SETS = (
    *('svhn', 'patch_camelyon', 'oxford_flowers', 'stanford_dogs'),
    *('kinetics400', 'ssv2', 'hmdb51', 'coco', 'ade20k', 'voc', 'voc_seg'),
    *('clevr_dist_1k', 'imagenet_r'),
)
LISTED = tuple(id for id in SETS if CATALOG[id].splits[0].file)


# --- whole sets --------------------------------------------------------------


@pytest.mark.parametrize('id', CATALOG)
def test_a_healthy_mini_set_passes(tiny_root, id):
    report = look(tiny_root, id, sample=2)
    assert text_of(report) == ''
    assert report.ok
    assert report.state == 'healthy mini set'
    assert report.opened > 0
    assert all(found == wanted for found, wanted in report.counts.values())


@pytest.mark.parametrize('id', SETS)
def test_a_mini_set_does_not_pass_for_the_official_data(tiny_root, id):
    report = look(tiny_root, id, mini=False, sample=1)
    assert report.state == 'faulty'
    assert 'holds a drawn mini set, not the official data' in text_of(report)


@pytest.mark.parametrize(
    'id', ['svhn', 'sun397', 'nabirds', 'stanford_cars', 'clevr_dist_1k', 'imagenet_a']
)
def test_official_data_are_held_against_the_catalogue(copy, id):
    root = copy(id)
    (root / CATALOG[id].path / STAMP).unlink()
    report = look(root, id, mini=False)
    expected = [s for s in CATALOG[id].splits if s.size != report.counts[s.name][0]]
    assert text_of(report).count('samples, expected') == len(expected) > 0
    assert len(report.faults) == len(expected)
    # with the sizes that are there, it is whole
    splits = [replace(s, size=report.counts[s.name][0]) for s in CATALOG[id].splits]
    own: DatasetFacts = replace(CATALOG[id], splits=tuple(splits))
    report = verify(own, root, sample=None)
    assert text_of(report) == ''
    assert report.state == 'healthy'
    assert report.classes == (own.num_present, own.num_present)
    assert 'has no stamp' in text_of(verify(own, root, sample=1, mini=True))


def test_what_is_not_there_is_absent(tmp_path):
    report = look(tmp_path, 'coco', mini=False)
    assert (report.state, report.ok) == ('absent', False)
    assert report.findings[0].todo == 'get it: cocodataset.org'


def test_copies_of_kinetics_differ(copy):
    root = copy('kinetics400')
    (root / 'kinetics400' / STAMP).unlink()
    report = look(root, 'kinetics400', mini=False)
    remarks = [f.what for f in report.findings if not f.fault]
    assert remarks == [f'{n} samples; copies of this set differ' for n in (4, 2)]


# --- planted faults ----------------------------------------------------------


def test_names_that_no_file_bears_and_pipes_are_missing(copy):
    root = copy('svhn')
    path = items_of(root, 'svhn')[0].path
    path.unlink()
    os.mkfifo(path)
    assert "1 listed files are missing, '" in text_of(look(root, 'svhn'))
    edit(list_of(root, 'svhn'), lambda lines: [f'{"x" * 999}.jpg 0', *lines[1:]])
    assert 'xxx.jpg' in text_of(look(root, 'svhn'))


@pytest.mark.parametrize('id', LISTED)
def test_a_missing_file_is_found(copy, id):
    root = copy(id)
    path = items_of(root, id)[0].path
    path.unlink()
    assert f"1 listed files are missing, '{path}'" in text_of(look(root, id))


@pytest.mark.parametrize('id', ['ade20k', 'voc_seg'])
def test_a_missing_map_is_found(copy, id):
    root = copy(id)
    mask = items_of(root, id)[0].mask
    mask.unlink()
    assert f"1 listed files are missing, '{mask}'" in text_of(look(root, id))


@pytest.mark.parametrize('id', SETS)
def test_a_missing_list_is_found(copy, id):
    root = copy(id)
    place = list_of(root, id)
    if place.is_file():
        place.unlink()
        assert f"there is no '{place}'" in text_of(look(root, id))
    else:
        shutil.rmtree(place)
        report = look(root, id)
        assert not report.ok


@pytest.mark.parametrize('id', SETS)
def test_a_wrong_count_is_found(copy, id):
    root = copy(id)
    found = len(items_of(root, id))
    if id in LISTED:
        edit(list_of(root, id), lambda entries: entries[:-1])
    else:
        items_of(root, id)[-1].path.unlink()
    assert f'{found - 1} samples, expected {found}' in text_of(look(root, id))


@pytest.mark.parametrize('id', [id for id in LISTED if CATALOG[id].layout != 'vtab'])
def test_overlapping_splits_are_found(copy, id):
    root = copy(id)
    facts = CATALOG[id]
    last = {'voc': 2, 'voc_seg': 2}.get(id, 1)
    source, target = list_of(root, id), list_of(root, id, last)
    if id == 'coco':
        name = items_of(root, id)[0].path.name
        shutil.copy(items_of(root, id)[0].path, target.parents[1] / 'val2017' / name)
        edit(target, lambda images: [{**images[0], 'file_name': name}, *images[1:]])
    elif target.suffix == '.json':
        key = next(iter(json.loads(source.read_text())))
        edit(target, lambda pairs: [(key, pairs[0][1]), *pairs[1:]])
    else:
        line = source.read_text().splitlines()[0]
        edit(target, lambda lines: [line, *lines[1:]])
    first, other = facts.splits[0].name, facts.splits[last].name
    assert f"{other}: 1 files are in '{first}' too" in text_of(look(root, id))


@pytest.mark.parametrize('id', ['svhn', 'patch_camelyon'])
def test_equal_pictures_under_other_names_are_found(copy, id):
    root = copy(id)
    folder = root / CATALOG[id].path / 'images'
    shutil.copy(folder / 'train800/000003.jpg', folder / 'test/000001.jpg')
    text = text_of(look(root, id))
    assert "test: 1 of 8 pictures are in 'train800' too" in text


def test_the_joined_split_is_the_two_parts(copy):
    root = copy('svhn')
    folder = root / 'vtab-1k/svhn'
    # every label moved on by one, which no range can tell
    edit(folder / 'train800val200.txt', relabel(lambda label: (label + 1) % 10))
    text = text_of(look(root, 'svhn'))
    assert 'train800val200: 14 labels differ from those of train800 and val200' in text
    shutil.copy(
        folder / 'images/test/000000.jpg', folder / 'images/train800/000000.jpg'
    )
    remarks = [f.what for f in look(root, 'svhn').findings if not f.fault]
    assert any('1 pictures differ' in remark for remark in remarks)


def interleaved(train: list, val: list, block: int) -> list:
    """Blocks of the two parts in turn, as TensorFlow Datasets reads ``a + b``."""
    whole = []
    for start in range(0, max(len(train), len(val)), block):
        whole += train[start : start + block] + val[start : start + block]
    return whole


def reorder_joined(root: Path, block: int = 3) -> Path:
    """Write ``train800val200`` as the archives that circulate have it."""
    folder = root / 'vtab-1k/svhn'
    parts = [
        [line.rpartition(' ') for line in (folder / file).read_text().splitlines()]
        for file in ('train800.txt', 'val200.txt')
    ]
    lines = []
    for index, (name, _, label) in enumerate(interleaved(*parts, block)):
        lines.append(f'images/train800val200/{index:06d}.jpg {label}')
        shutil.copy(folder / name, folder / lines[-1].rpartition(' ')[0])
    path = folder / 'train800val200.txt'
    assert lines != path.read_text().splitlines()
    path.write_text(''.join(f'{line}\n' for line in lines))
    (folder / STAMP).unlink()
    return folder


def faults_of_order(root: Path, id: str = 'svhn') -> list[str]:
    found = look(root, id, mini=False).findings
    return [f.what for f in found if 'differ' in f.what or 'together' in f.what]


def test_the_joined_split_may_be_in_another_order(copy):
    """TFDS interleaves what it joins: the archives are not train800 then val200."""
    root = copy('svhn')
    folder = reorder_joined(root)
    assert faults_of_order(root) == []
    # Two labels of it swapped: the multiset of labels is the same, that of pairs not.
    lines = (folder / 'train800val200.txt').read_text().splitlines()
    labels = [line.rpartition(' ')[2] for line in lines]
    other = next(i for i, label in enumerate(labels) if label != labels[0])
    for index, label in ((0, labels[other]), (other, labels[0])):
        lines[index] = f'{lines[index].rpartition(" ")[0]} {label}'
    (folder / 'train800val200.txt').write_text('\n'.join(lines) + '\n')
    (fault,) = faults_of_order(root)
    assert fault.startswith('2 labels differ from those of train800 and val200')
    assert 'train800val200.txt:1' in fault


def test_the_joined_split_may_not_hold_a_picture_twice(copy):
    root = copy('svhn')
    folder = reorder_joined(root) / 'images/train800val200'
    shutil.copy(folder / '000001.jpg', folder / '000000.jpg')
    assert any(text.startswith('1 ') for text in faults_of_order(root))


def test_trainval_may_be_in_another_order_but_not_of_other_labels(copy):
    root = copy('clevr_dist_1k')
    folder = root / 'many_shot/clevr_dist'
    (folder / STAMP).unlink()
    for path in folder.glob('1k/*.txt'):
        edit(path, lambda lines: lines[::-1])
    text = text_of(look(root, 'clevr_dist_1k', mini=False))
    assert 'is not what seed' not in text
    assert 'train and val' not in text
    edit(
        folder / '1k/trainval.txt',
        lambda lines: [f'{lines[0][:-1]}{(int(lines[0][-1]) + 1) % 6}', *lines[1:]],
    )
    text = text_of(look(root, 'clevr_dist_1k', mini=False))
    assert 'trainval: 1 labels differ from those of train and val' in text


@pytest.mark.parametrize('id', ['stanford_dogs', 'svhn'])
def test_another_spelling_of_the_folder_is_remarked_on(copy, id):
    root, facts = copy(id), CATALOG[id]
    other = {'stanford_dogs': 'Stanford-dogs', 'svhn': 'SVHN'}[id]
    (root / facts.path).rename(root / facts.base / other)
    report = look(root, id)
    assert report.ok
    assert all(found == wanted for found, wanted in report.counts.values())
    assert report.folder == str(root / facts.base / other)
    assert f"it is called '{other}' here" in [f.what for f in report.findings]
    (root / facts.base / facts.id.upper()).mkdir(exist_ok=True)
    if id == 'stanford_dogs':
        assert 'several folders of stanford_dogs' in text_of(look(root, id))


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'page', 'noise'])
@pytest.mark.parametrize('id', SETS)
def test_a_damaged_file_is_found(copy, id, damage):
    root = copy(id)
    path = items_of(root, id)[1].path
    content = path.read_bytes()
    path.write_bytes(
        {
            'truncated': content[: len(content) // 2],
            'empty': b'',
            'page': b'<!DOCTYPE html><html>Access denied</html>',
            'noise': b'\x00' * len(content),
        }[damage]
    )
    text = text_of(look(root, id))
    assert "files are damaged: '" in text
    assert str(path) in text


def test_a_sample_opens_few_and_all_opens_all(copy):
    root = copy('svhn')
    assert look(root, 'svhn', sample=3).opened == 4 * 3
    seen = []
    report = look(root, 'svhn', progress=lambda done, total: seen.append((done, total)))
    assert report.opened == report.listed == 10 + 4 + 14 + 8
    assert seen[-1] == (36, 36)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize('id', ['svhn', 'patch_camelyon', 'clevr_dist_1k'])
def test_labels_from_one_are_found(copy, id):
    root = copy(id)
    for index in range(4):
        edit(list_of(root, id, index), relabel(lambda label: label + 1))
    count = CATALOG[id].num_classes
    text = text_of(look(root, id))
    assert f'labels run from 1 to {count}: they are shifted by one' in text


@pytest.mark.parametrize('id', ['kinetics400', 'ssv2', 'hmdb51'])
def test_labels_from_one_are_found_where_not_all_classes_are_drawn(copy, id):
    root = copy(id)
    for index in range(len(CATALOG[id].splits)):
        edit(list_of(root, id, index), relabel(lambda label: label + 1))
    assert 'class 4 should not be there' in text_of(look(root, id))


@pytest.mark.parametrize('id', ['oxford_flowers', 'stanford_dogs'])
def test_ids_of_another_numbering_are_found(copy, id):
    root = copy(id)
    # train from 1 to C, val from 0 on: the union has one id too many
    edit(list_of(root, id, 1), lambda pairs: [(pairs[0][0], 0), *pairs[1:]])
    text = text_of(look(root, id))
    count = CATALOG[id].num_classes
    assert f'hold {count + 1} class ids, expected {count}' in text
    assert 'val: 1 class ids are not in train.json, 0 for one' in text


@pytest.mark.parametrize('id', ['stanford_dogs', 'hmdb51'])
def test_a_folder_with_two_labels_is_found(copy, id):
    root = copy(id)
    swap = {0: 1, 1: 0} if id == 'hmdb51' else {k: 121 - k for k in range(1, 121)}
    edit(list_of(root, id, 1), relabel(lambda label: swap.get(label, label)))
    assert 'class folders bear several labels' in text_of(look(root, id))


def test_folders_that_are_parts_of_a_download_bear_any_labels(copy):
    root = copy('ssv2')
    folder = root / 'ssv2'
    (folder / STAMP).unlink()
    # Parts of two clips each: as many folders as there are labels.
    for index, path in enumerate(sorted((folder / 'videos').iterdir())):
        for part in (f'part_{index % 5}', f'part_{(index + 1) % 5}'):
            (folder / 'videos' / part).mkdir(exist_ok=True)
            shutil.copy(path, folder / 'videos' / part / path.name)
    edit(
        list_of(root, 'ssv2'),
        lambda lines: [
            f'part_{(k + more) % 5}/{line}'
            for k, line in enumerate(sorted(lines))
            for more in (0, 1)
        ],
    )
    edit(list_of(root, 'ssv2', 1), lambda lines: [])
    assert 'bear several labels' not in text_of(look(root, 'ssv2', mini=False))


@pytest.mark.parametrize('id', ['svhn', 'clevr_dist_1k'])
def test_a_class_that_never_occurs_is_found(copy, id):
    root = copy(id)
    for index in range(4):
        edit(
            list_of(root, id, index), relabel(lambda label: 4 if label == 3 else label)
        )
    count = CATALOG[id].num_classes
    text = text_of(look(root, id))
    assert f'{count - 1} classes occur, expected {count}, none of class 3' in text


def test_foreign_categories_are_found(copy):
    root = copy('coco')
    path = list_of(root, 'coco')
    data = json.loads(path.read_text())
    for entry in data['categories']:
        entry['name'] += '_2'
    path.write_text(json.dumps(data))
    text = text_of(look(root, 'coco'))
    assert 'train: objects of classes that are none of the 80' in text


def test_foreign_objects_of_voc_are_found(copy):
    root = copy('voc')
    xml = items_of(root, 'voc')[0].others[0]
    name = xml.read_text().split('<name>')[1].split('<')[0]
    xml.write_text(xml.read_text().replace(f'<name>{name}<', '<name>unicorn<'))
    text = text_of(look(root, 'voc'))
    assert 'trainval2007: objects of classes that are none of the 20' in text
    xml.write_text('<annotation>')
    assert 'is not readable XML' in text_of(look(root, 'voc'))


def test_subsets_that_were_changed_are_found(copy):
    root = copy('clevr_dist_1k')
    folder = root / 'many_shot/clevr_dist'
    (folder / STAMP).unlink()
    train, val = folder / '1k/train.txt', folder / '1k/val.txt'
    first, second = train.read_text().splitlines()[0], val.read_text().splitlines()[0]
    edit(train, lambda lines: sorted([second, *lines[1:]]))
    edit(val, lambda lines: sorted([first, *lines[1:]]))
    text = text_of(look(root, 'clevr_dist_1k', mini=False))
    assert f"'{train}' is not what seed 0 draws" in text
    edit(folder / 'train.txt', lambda lines: lines[::-1])
    text = text_of(look(root, 'clevr_dist_1k', mini=False))
    assert 'is not the list that the subsets were drawn from' in text


def test_any_change_of_a_mini_list_is_found(copy):
    root = copy('ssv2')
    edit(list_of(root, 'ssv2'), lambda lines: lines[::-1])
    assert 'its checksum differs' in text_of(look(root, 'ssv2'))


@pytest.mark.parametrize('id', LISTED)
def test_a_malformed_list_is_named(copy, id):
    root = copy(id)
    path = list_of(root, id)
    path.write_bytes(b'\xff\xfe{"' if path.suffix == '.json' else b'\xff\xfe one two\n')
    report = look(root, id)
    assert not report.ok
    assert str(path) in text_of(report)
    assert all('\n' not in finding.what for finding in report.findings)


# --- the tool ----------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['verify_dataset.py', *argv])
        monkeypatch.delenv('MMPETL_DATA', raising=False)
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(TOOL), run_name='__main__')
        out, err = capsys.readouterr()
        return info.value.code, out, err

    return run


def test_the_tool_says_it_by_table_and_exit_code(run, copy):
    root = copy('svhn')
    where = ('--data-root', str(root))
    code, out, _ = run('svhn', *where, '--mini')
    assert code == 0
    assert 'healthy mini set' in out
    assert 'not the official data' in out
    assert run('svhn', *where)[0] == 1
    code, out, _ = run('vtab', *where, '--mini')
    assert code == 1
    assert '18 absent' in out
    assert run('vtab', *where, '--mini', '--present')[0] == 0
    items_of(root, 'svhn')[0].path.unlink()
    code, out, _ = run('svhn', *where, '--mini', '--json')
    assert code == 1
    (report,) = json.loads(out)
    assert report['state'] == 'faulty'
    assert report['counts']['test'] == [8, 8]
    assert any('listed files are missing' in f['what'] for f in report['findings'])


def test_the_tool_refuses_what_is_not_there(run, tmp_path):
    code, _, err = run('svnh', '--data-root', str(tmp_path))
    assert code == 1
    assert "error: There is no data set 'svnh'. Did you mean 'svhn'?" in err
    code, _, err = run('svhn', '--data-root', str(tmp_path / 'nowhere'))
    assert code == 1
    assert "error: there is no data root '" in err
    code, _, err = run('svhn', '--data-root', str(tmp_path), '--present')
    assert code == 1
    assert 'none of the data sets asked for is in' in err
