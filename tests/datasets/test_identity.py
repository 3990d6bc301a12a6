"""What a phase reads has one digest, wherever it lies and however it is spelt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DATASETS, init_default_scope

from mmpetl.datasets import VTAB, identity
from mmpetl.datasets.identity import copies, read_of, same_reading, shared_files


@pytest.fixture
def root(tiny_root, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('identity')
    shutil.copytree(tiny_root / 'vtab-1k' / 'digits', root / 'vtab-1k' / 'digits')
    return root


def digits(root: Path, split: str = 'test', **more: Any) -> VTAB:
    return VTAB('digits', split, root / 'vtab-1k', num_classes=10, **more)


def test_a_digest_is_that_of_the_data_and_not_of_the_place(root, tmp_path):
    here = read_of(digits(root))
    assert (here.kind, here.by, here.count) == ('VTAB', 'content', len(digits(root)))
    shutil.copytree(root, tmp_path / 'copied')
    (tmp_path / 'link').symlink_to(root)
    for other in (
        tmp_path / 'copied',
        tmp_path / 'link',
        root / '.' / '..' / root.name,
    ):
        assert read_of(digits(other)).digest == here.digest
    assert read_of(digits(root, 'train800')).digest != here.digest


def test_a_digest_tells_order_labels_subset_and_content(root, tmp_path):
    whole = digits(root)
    found = {read_of(whole).digest, read_of(digits(root, indices=3)).digest}
    assert read_of(digits(root, indices=3)).count == 3
    found.add(read_of(digits(root, indices=[2, 1, 0])).digest)
    shutil.copytree(root, tmp_path / 'x')
    listed = tmp_path / 'x' / 'vtab-1k' / 'digits' / 'test.txt'
    lines = listed.read_text().splitlines()
    name, label = lines[0].split()
    listed.write_text('\n'.join([f'{name} {(int(label) + 1) % 10}', *lines[1:]]) + '\n')
    found.add(read_of(digits(tmp_path / 'x')).digest)
    listed.write_text('\n'.join(lines) + '\n')
    picture = listed.parent / name
    picture.write_bytes(picture.read_bytes() + b'\0')
    found.add(read_of(digits(tmp_path / 'x')).digest)
    assert len(found) == 5


def test_large_sets_go_by_name_and_size(root, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'CONTENT_BYTES', 100)
    here = read_of(digits(root))
    assert here.by == 'size'
    shutil.copytree(root, tmp_path / 'copied')
    assert read_of(digits(tmp_path / 'copied')).digest == here.digest
    name = digits(root).get_data_info(0)['img_path']
    copied = tmp_path / 'copied' / Path(name).relative_to(root)
    copied.write_bytes(copied.read_bytes() + b'\0')
    assert read_of(digits(tmp_path / 'copied')).digest != here.digest


def test_one_file_is_one_file_under_every_name(root, tmp_path):
    train, test = read_of(digits(root, 'train800val200')), read_of(digits(root))
    assert shared_files(train, test) == []
    (tmp_path / 'link').symlink_to(root)
    assert len(shared_files(test, read_of(digits(tmp_path / 'link')))) == test.count
    part = read_of(digits(root, indices=2))
    assert len(shared_files(part, test)) == 2


def test_copies_are_found_by_content(root, tmp_path):
    train, test = read_of(digits(root, 'train800val200')), read_of(digits(root))
    assert copies(train, test) == 0
    shutil.copytree(root, tmp_path / 'copied')
    other = read_of(digits(tmp_path / 'copied', indices=2))
    assert shared_files(other, test) == []
    assert copies(other, test) == 2


def test_a_large_file_is_told_by_its_size_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'WHOLE_BYTES', 4)
    found = set()
    for number, text in enumerate(('abcdXefgh', 'abcdYefgh', 'abcdXefgi', 'abcdefgh')):
        path = tmp_path / str(number)
        path.write_text(text)
        found.add(identity.content(str(path)))
    assert len(found) == 3  # the middle of a large file is not read


def test_configs_that_read_the_same_are_told_however_they_spell_it(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path)

    def fgvc(root: str, **more: Any) -> dict[str, Any]:
        return {'type': 'mmpetl.FGVC', 'data_root': root, 'split': 'test', **more}

    plain = fgvc(f'{tmp_path}/fgvc')
    for other in (
        fgvc(f'{tmp_path}/./fgvc'),
        fgvc(f'{tmp_path}/link/x/../fgvc/'),
        fgvc(f'{tmp_path}/fgvc', pipeline=[], test_mode=True),
        {'type': 'RepeatDataset', 'times': 3, 'dataset': plain},
    ):
        assert same_reading(plain, other)
    assert not same_reading(plain, fgvc(f'{tmp_path}/fgvc', indices=3))
    assert not same_reading(plain, {**plain, 'split': 'train'})
    assert not same_reading(plain, None)
    coco = {'type': 'CocoDataset', 'data_root': 'data/coco/', 'ann_file': 'a/val.json'}
    other = {'type': 'mmdet.CocoDataset', 'ann_file': 'data/./coco/a/val.json'}
    assert same_reading(coco, other)


@pytest.mark.slow
def test_every_kind_of_set_says_what_it_reads(tiny_root, monkeypatch):
    from mmpetl.config.compose import compose
    from mmpetl.engine.hooks.data_read import _without_pipelines

    monkeypatch.setenv('MMPETL_DATA', str(tiny_root))
    kinds = {}
    for name in ('digits', 'cub', 'hmdb51', 'coco', 'voc', 'ade20k', 'nyud_mt'):
        config = compose(f'mini/{name}', 'LinearProbe')
        init_default_scope(config.default_scope)
        reads = {
            phase: read_of(
                DATASETS.build(
                    _without_pipelines(config[f'{phase}_dataloader'].dataset.to_dict())
                )
            )
            for phase in ('train', 'test')
        }
        for read in reads.values():
            assert len(read.digest) == 64
            assert read.by == 'content'
        assert reads['train'].digest != reads['test'].digest
        assert shared_files(reads['train'], reads['test']) == []
        kinds[name] = reads['train'].kind, reads['test'].kind
    assert kinds == {
        'digits': ('VTAB', 'VTAB'),
        'cub': ('FGVC', 'FGVC'),
        'hmdb51': ('VideoDataset', 'VideoDataset'),
        'coco': ('CocoDataset', 'CocoDataset'),
        'voc': ('VOCDataset', 'VOCDataset'),
        'ade20k': ('ADE20KDataset', 'ADE20KDataset'),
        'nyud_mt': ('DenseTasks', 'DenseTasks'),
    }
