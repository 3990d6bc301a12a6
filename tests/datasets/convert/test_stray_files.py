"""Hidden files, links and odd names in folders that somebody has unpacked."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
from converter_files import clip_file, jpeg, pack, png, refused, under

from mmpetl.apis.draw import draw_video
from mmpetl.cli.commands.data import verify
from mmpetl.cli.commands.data.convert import imagenet
from mmpetl.datasets import mini
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.checks import check_dataset
from mmpetl.datasets.convert import dense, study, videos, vtab
from mmpetl.datasets.convert.files import write_lines, write_whole
from mmpetl.datasets.convert.members import members
from mmpetl.datasets.image_list import read_classes
from mmpetl.datasets.items import read_items

BESIDE = b'\0\x05\x16\x07\0\x02\0\0Mac OS X'
"""How the files begin that macOS puts beside others on foreign disks."""

TENCH = 'n01440764'


def write(folder: Path, files: dict[str, bytes], stray: bool = True) -> Path:
    """Files, and beside each what macOS leaves."""
    for name, content in files.items():
        path = folder / name
        write_whole(path, content)
        if stray:
            write_whole(path.with_name(f'._{path.name}'), BESIDE)
            write_whole(path.with_name('.DS_Store'), b'Bud1')
            write_whole(folder / '__MACOSX' / name, BESIDE)
    return folder


def ade() -> dict[str, bytes]:
    return {
        f'{kind}/{part}/a.{suffix}': content
        for part in ('training', 'validation')
        for kind, suffix, content in (
            ('images', 'jpg', jpeg()),
            ('annotations', 'png', png()),
        )
    }


def test_a_folder_is_read_as_its_archive(tmp_path):
    source = write(tmp_path / 'src', ade())
    assert {str(m.path) for m in members(source)} == set(ade())
    counts = dense.convert_ade20k([source], tmp_path / 'data')
    assert [count for _, count, _ in counts] == [1, 1]


def test_links_in_a_folder_are_followed_and_circles_are_not(tmp_path):
    write(tmp_path / 'real', ade(), stray=False)
    (tmp_path / 'src').mkdir()
    for name in ('images', 'annotations'):
        (tmp_path / 'src' / name).symlink_to(tmp_path / 'real' / name)
    (tmp_path / 'src' / 'again').symlink_to(tmp_path / 'src')
    counts = dense.convert_ade20k([tmp_path / 'src'], tmp_path / 'data')
    assert [count for _, count, _ in counts] == [1, 1]


def test_stray_files_in_an_unpacked_set_are_no_samples(tmp_path):
    facts = facts_of('ade20k')
    folder = write(tmp_path / facts.path, ade())
    items = [item for s in facts.splits for item in read_items(facts, s, tmp_path)]
    assert [item.path.name for item in items] == ['a.jpg', 'a.jpg']
    assert dense.convert_ade20k([], tmp_path) == [
        ('train', 1, 20_210),
        ('val', 1, 2_000),
    ]
    (folder / 'annotations/training/._a.png').unlink()
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    cfg = dict(type='ADE20KDataset', data_root=str(folder), data_prefix=prefix)
    assert check_dataset(cfg, 'mmseg') == 1


def test_stray_files_in_class_folders_are_no_pictures(tmp_path):
    names = {f'{part}/{TENCH}/a.JPEG': jpeg() for part in ('train', 'val')}
    folder = write(tmp_path / 'imagenet', names)
    (folder / 'train' / TENCH / 'folder.jpg').mkdir()
    (folder / 'val' / '__MACOSX').mkdir()
    assert read_classes(folder / 'val') == [(f'{TENCH}/a.JPEG', 0)]
    assert study.list_imagenet(tmp_path, check=True)[0][:2] == ('train', 1)
    assert (folder / 'train.txt').read_text() == f'train/{TENCH}/a.JPEG 0\n'
    exported = write(
        tmp_path / 'export',
        {f'dtd/{name}/7/a.png': png() for name in vtab.DRAWN},
    )
    for name in vtab.DRAWN:
        write_whole(exported / 'dtd' / name / '.DS_Store', b'Bud1')
    counts = vtab.convert_export(
        facts_of('dtd'), vtab.FolderExport(exported), tmp_path / 'data'
    )
    assert [count for _, count, _ in counts] == [1, 1, 2, 1]
    write_whole(exported / 'dtd' / 'test' / '3', b'')
    with refused('test/3 is a file', '<label>/<picture>'):
        vtab.FolderExport(exported).split(facts_of('dtd'), 'test')


def test_stray_files_are_no_clips_and_no_lists(tmp_path):
    clip = clip_file(tmp_path / 'clip.avi', codec='MJPG').read_bytes()
    source = write(tmp_path / 'hmdb', {'v/chew/a.avi': clip, 'v/chew/b.avi': clip})
    lists = {'chew_test_split1.txt': b'a.avi 1\nb.avi 2\n'}
    write(source / 's', lists)
    counts = videos.convert_hmdb51(source / 'v', source / 's', tmp_path)
    assert counts == [('train', 1, 3_570), ('val', 1, 1_530)]
    for part in ('train', 'val'):
        folder = tmp_path / 'kinetics400' / f'videos_{part}'
        write(folder, {'abseiling/a.mp4': clip})
        # Some classes lie on another disk.
        write(tmp_path / 'disk' / part, {'part 1/air drumming/c.MP4': clip})
        (folder / 'part 1').symlink_to(tmp_path / 'disk' / part / 'part 1')
    videos.convert_kinetics400(tmp_path)
    assert (
        tmp_path / 'kinetics400' / 'kinetics400_val_list_videos.txt'
    ).read_text() == 'abseiling/a.mp4 0\npart_1/air_drumming/c.MP4 1\n'


@pytest.mark.parametrize('name', [b'caf\xe9.JPEG', b'a\nb.JPEG', b'a\rb.JPEG'])
def test_names_that_no_list_can_hold_are_refused(tmp_path, name):
    for part in ('train', 'val'):
        folder = tmp_path / 'imagenet' / part / TENCH
        folder.mkdir(parents=True)
        (folder / os.fsdecode(name)).write_bytes(jpeg())
    with refused('imagenet/train.txt cannot name', 'rename that file'):
        study.list_imagenet(tmp_path)
    assert not list((tmp_path / 'imagenet').glob('*.txt'))
    write_lines(tmp_path / 'a.txt', ['a\x0cb\u2028é 1'])  # which end no line
    assert (tmp_path / 'a.txt').read_bytes() == 'a\x0cb\u2028é 1\n'.encode()


def test_lists_of_nothing_are_not_written(tmp_path):
    write(tmp_path / 's', {'chew_test_split2.txt': b'a.avi 1\n'}, stray=False)
    with refused('has no <class>_test_split1.txt'):
        videos.convert_hmdb51(tmp_path / 'v', tmp_path / 's', tmp_path)
    write(tmp_path / 's', {'chew_test_split1.txt': b'a.avi 1\n'}, stray=False)
    clip_file(tmp_path / 'v' / 'chew' / 'a.avi', codec='MJPG')
    with refused('no clip is left for hmdb51_val_split_1_videos.txt'):
        videos.convert_hmdb51(tmp_path / 'v', tmp_path / 's', tmp_path)
    for part in ('train', 'val'):
        write_whole(tmp_path / f'kinetics400/videos_{part}/abseiling/a.mp4', b'broken')
    with refused('no clip is left for kinetics400_train_list_videos.txt'):
        videos.convert_kinetics400(tmp_path)
    assert not list(tmp_path.rglob('*_videos.txt'))
    files = {f'images/{name}/000000.jpg': jpeg() for name in (*vtab.DRAWN, vtab.JOINED)}
    lists = {f'{name}.txt': b'\n' for name in (*vtab.DRAWN, vtab.JOINED)}
    with refused('dtd: train800.txt lists no picture'):
        vtab.convert_processed(
            [pack(tmp_path / 'v.zip', under('dtd', files | lists))], tmp_path
        )


def test_pictures_without_folders_of_their_class_are_told(tmp_path):
    write_whole(tmp_path / 'imagenet' / 'train' / TENCH / 'a.JPEG', jpeg())
    write_whole(tmp_path / 'imagenet' / 'val' / 'ILSVRC2012_val_00000001.JPEG', jpeg())
    with refused('val holds no picture in a folder per class'):
        study.list_imagenet(tmp_path)


ODD = os.fsdecode(b'caf\xe9')


def test_opencv_is_handed_no_name_that_ends_the_process(tmp_path):
    (tmp_path / ODD).mkdir()
    clip = clip_file(tmp_path / 'a.webm')
    with refused(r'caf\udce9', 'is no UTF-8'):
        videos.reencode(clip, tmp_path / ODD / 'a.mp4', videos.find_encoder('opencv'))
    with refused(r'caf\udce9', 'is no UTF-8'):
        mini.make(tmp_path / ODD, ['digits'], 'tiny')
    for source, out in ((tmp_path / ODD / 'a.mp4', 'o.mp4'), (clip, f'{ODD}/o.mp4')):
        with refused(r'caf\udce9', 'is no UTF-8'):
            draw_video(source, [], tmp_path / out)
    assert os.listdir(tmp_path / ODD) == []


def test_a_copy_that_fails_leaves_no_part_of_a_clip(tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(videos.shutil, 'copyfile', full)
    with refused('cannot copy', 'No space left'):
        videos._copy_whole(tmp_path / 'a.avi', tmp_path / 'to' / 'a.avi')
    assert os.listdir(tmp_path / 'to') == []


@pytest.mark.parametrize('flags', [[], ['--json']])
def test_the_verifier_tells_names_that_the_screen_does_not_take(
    tmp_path, monkeypatch, flags
):
    folder = tmp_path / 'imagenet-r' / TENCH
    folder.mkdir(parents=True)
    (folder / f'{ODD}.jpg').write_bytes(b'')
    screen = io.TextIOWrapper(io.BytesIO(), 'utf-8')  # strict, as most are
    monkeypatch.setattr(sys, 'stdout', screen)
    assert verify.main(['imagenet_r', '--data-root', str(tmp_path), *flags]) == 1
    screen.flush()
    said = screen.buffer.getvalue().decode()
    # Without the table around it, and escaped once or, by JSON, twice.
    assert 'cafudce9.jpg' in re.sub('[^a-z0-9.]', '', said)


def test_a_data_root_that_is_no_utf8_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        imagenet.main(['lists', '--data-root', str(tmp_path / ODD)])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.endswith('is no UTF-8; rename the file or folder\n')
