"""What an earlier call has left is taken for nothing but what it is."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from converter_files import jpeg, pack, png, refused, under
from PIL import Image

from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert import dense, fgvc, files, study, vtab
from mmpetl.datasets.convert.unpack import unpack

SHADES = range(10)


def export(folder: Path, labels: list[int], last: int) -> vtab.NpzExport:
    """Splits whose pictures show their label; the last one's of the test is stated."""
    folder = folder / 'dtd'
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([np.full((8, 8, 3), 20 * k, np.uint8) for k in labels])
    for name in vtab.DRAWN:
        stated = [*labels[:-1], last] if name == 'test' else labels
        np.savez(folder / f'{name}.npz', images=images, labels=np.array(stated))
    return vtab.NpzExport(folder.parent)


def shown(folder: Path, name: str) -> list[tuple[int, int]]:
    """What each listed picture shows, and the label that the list gives it."""
    lines = [line.split() for line in (folder / f'{name}.txt').read_text().splitlines()]
    means = [np.asarray(Image.open(folder / path)).mean() for path, _ in lines]
    return [(round(m / 20), int(k)) for m, (_, k) in zip(means, lines, strict=True)]


def test_an_export_that_was_mended_meanwhile_keeps_none_of_the_old_pictures(tmp_path):
    root = tmp_path / 'data'
    with refused('label 99, out of range'):
        bad = export(tmp_path / 'npz', list(SHADES), 99)
        vtab.convert_export(facts_of('dtd'), bad, root)
    assert list((root / 'vtab-1k' / '.dtd.partial').rglob('*.jpg'))
    good = export(tmp_path / 'npz', list(SHADES)[::-1], 0)
    vtab.convert_export(facts_of('dtd'), good, root)
    for name in (*vtab.DRAWN, vtab.JOINED):
        found = shown(root / 'vtab-1k' / 'dtd', name)
        assert [label for _, label in found][:10] == list(SHADES)[::-1]
        assert all(shade == label for shade, label in found)


class Stopped:
    """Examples that end in the middle, as where somebody stops the conversion."""

    def __init__(self, examples, after: int) -> None:
        self.examples, self.after = examples, after

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        if index >= self.after:
            raise KeyboardInterrupt
        return self.examples[index]


def test_a_pool_that_was_stopped_may_go_on_from_another_source(tmp_path):
    def records(labels: list[int]) -> study._Records:
        rows = np.zeros((len(labels), study.RECORD), np.uint8)
        rows[:, 1] = labels
        rows[:, 2:] = 20 * np.array(labels)[:, None]
        return study._Records(rows)

    first, other = records(list(SHADES)), records(list(SHADES)[::-1])
    with pytest.raises(KeyboardInterrupt):
        study.convert_pool('cifar100', {'train': Stopped(first, 6)}, tmp_path)
    study.convert_pool('cifar100', {'train': other, 'test': first}, tmp_path)
    found = shown(tmp_path / 'many_shot' / 'cifar100', 'train')
    assert found == [(k, k) for k in reversed(SHADES)]


def task(labels: list[int], lists: bool) -> dict[str, bytes]:
    found = {}
    for name in (*vtab.DRAWN, vtab.JOINED):
        lines = [f'images/{name}/{i:06d}.jpg {k}\n' for i, k in enumerate(labels)]
        for line, k in zip(lines, labels, strict=True):
            found[line.split()[0]] = jpeg(90 + k)
        if lists:
            found[f'{name}.txt'] = ''.join(lines).encode()
    return under('dtd', found)


def test_pictures_of_an_archive_that_was_refused_do_not_stand_in_for_others(tmp_path):
    assert len({len(jpeg(90 + k)) for k in range(4)}) == 1  # their size tells nothing
    with refused('hold no train800.txt'):
        lists = pack(tmp_path / 'a.zip', task([0, 1, 2, 3], lists=False))
        vtab.convert_processed([lists], tmp_path)
    vtab.convert_processed(
        [pack(tmp_path / 'b.zip', task([3, 2, 1, 0], True))], tmp_path
    )
    folder = tmp_path / 'vtab-1k' / 'dtd'
    for line in (folder / 'test.txt').read_text().splitlines():
        path, label = line.split()
        assert (folder / path).read_bytes() == jpeg(90 + int(label))


def test_what_is_there_is_written_again_only_where_it_differs(tmp_path):
    content = {'a.jpg': jpeg(1), 'b.jpg': jpeg(2)}
    archive = pack(tmp_path / 'a.zip', content)
    target = tmp_path / 't'
    unpack([archive], target, lambda path: path)
    (target / 'b.jpg').write_bytes(b'\0' * len(jpeg(2)))  # as after a loss of power
    before = (target / 'a.jpg').stat().st_mtime_ns
    done = unpack([archive], target, lambda path: path)
    assert (done.written, done.skipped) == (1, 1)
    assert (target / 'a.jpg').stat().st_mtime_ns == before
    assert (target / 'b.jpg').read_bytes() == jpeg(2)


@pytest.mark.parametrize('workers', [1, 8])
def test_members_with_one_place_are_one_file_or_refused(tmp_path, workers):
    def archive(name: str, entries: list[tuple[str, bytes]]) -> Path:
        with tarfile.open(tmp_path / name, 'w') as file:
            for path, content in entries:
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        return tmp_path / name

    def by_name(path: PurePosixPath) -> PurePosixPath:
        return PurePosixPath(path.name)

    same = archive('same.tar', [(f'{k}/a.jpg', jpeg(9)) for k in range(40)])
    done = unpack([same, same], tmp_path / 's', by_name, workers=workers)
    assert (done.written, done.skipped) == (1, 0)
    assert os.listdir(tmp_path / 's') == ['a.jpg']
    other = archive('other.tar', [('x/a.jpg', jpeg(9)), ('y/a.jpg', jpeg(10))])
    with refused('y/a.jpg of', 'other.tar', 'give one copy'):
        unpack([other], tmp_path / 'o', by_name, workers=workers)
    lists = archive('lists.tar', [('x/a.txt', b'1'), ('y/a.txt', b'2')])
    with refused('y/a.txt of', 'lists.tar', 'give one copy'):
        unpack([lists], tmp_path / 'l', by_name, is_late=lambda _: True)


def ade() -> dict[str, bytes]:
    return {
        f'ADEChallengeData2016/{kind}/{part}/a.{suffix}': content
        for part in ('training', 'validation')
        for kind, suffix, content in (
            ('images', 'jpg', jpeg()),
            ('annotations', 'png', png()),
        )
    }


@pytest.mark.parametrize('is_there', [True, False])
def test_a_folder_may_be_a_link_to_another_disk(tmp_path, is_there):
    archive, big = pack(tmp_path / 'ade.zip', ade()), tmp_path / 'big' / 'ade'
    (tmp_path / 'big').mkdir()
    (tmp_path / 'data').mkdir()
    if is_there:
        big.mkdir()
    link = tmp_path / 'data' / 'ADEChallengeData2016'
    link.symlink_to(big)
    counts = dense.convert_ade20k([archive], tmp_path / 'data')
    assert [count for _, count, _ in counts] == [1, 1]
    assert link.is_symlink()
    assert os.listdir(tmp_path / 'big') == ['ade']


def test_a_task_of_vtab_that_is_a_link_is_refused_before_anything_is_written(tmp_path):
    link = tmp_path / 'vtab-1k' / 'dtd'
    link.parent.mkdir()
    link.symlink_to(tmp_path / 'nowhere')
    with refused('vtab-1k/dtd is a link', 'remove it'):
        vtab.convert_processed([pack(tmp_path / 'a.zip', task([0], True))], tmp_path)
    assert os.listdir(link.parent) == ['dtd']


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.Path, 'replace', full)
    with refused('cannot write', 'a.jpg', 'No space left'):
        files.write_whole(tmp_path / 'a.jpg', jpeg())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_no_converter_has_made_is_told(tmp_path):
    def there(name: str) -> str:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / '.DS_Store').write_bytes(b'Bud1')
        return f'{tmp_path / name} is there, but has no '

    with refused(there('ADEChallengeData2016'), 'images/training', 'move it away'):
        dense.convert_ade20k([], tmp_path)
    with refused(there('vtab-1k/dtd'), 'train800.txt'):
        vtab.convert_export(facts_of('dtd'), vtab.NpzExport(tmp_path), tmp_path)
    with refused(there('vtab-1k/svhn'), 'train800.txt'):
        source = {n.replace('dtd', 'svhn', 1): c for n, c in task([0], True).items()}
        vtab.convert_processed([pack(tmp_path / 's.zip', source)], tmp_path)
    names = ('train', 'val', 'test')
    splits = pack(tmp_path / 'j.zip', {f'{n}.json': b'{"a/b.jpg": 1}' for n in names})
    with refused(there('fgvc/nabirds'), 'train.json'):
        fgvc.convert_fgvc('nabirds', splits, [], tmp_path)
    with refused(there('many_shot/cifar100'), 'train.txt'):
        study.convert_pool('cifar100', {}, tmp_path)
    with refused(there('imagenet-r'), 'folder per class'):
        study.convert_variant('imagenet_r', [], tmp_path)
