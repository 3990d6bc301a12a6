"""Clips and lists of the video sets."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from converter_files import Stop, clip_file, refused

from mmpetl.datasets.classes import HMDB51_CLASSES, KINETICS400_CLASSES
from mmpetl.datasets.convert import videos
from mmpetl.datasets.convert.files import write_whole


@pytest.fixture
def ssv2(tmp_path) -> tuple[Path, Path]:
    """Three clips and their annotations, as published."""
    for number in (3, 12, 7):
        clip_file(tmp_path / 'webm' / f'{number}.webm', frames=number)
    labels = tmp_path / 'labels'
    table = {'Pushing something': '1', 'Dropping something onto something': '0'}
    entries = {
        'train': [
            {'id': '3', 'template': 'Pushing [something]'},
            {'id': '12', 'template': 'Dropping [something] onto [something]'},
        ],
        'validation': [{'id': '7', 'template': 'Pushing [something]'}],
    }
    for name, content in {'labels': table, **entries}.items():
        file = f'something-something-v2-{name}.json'
        write_whole(labels / file, json.dumps(content).encode())
    return tmp_path / 'webm', labels


def test_ssv2_is_re_encoded_and_listed(ssv2, tmp_path):
    root = tmp_path / 'data'
    counts = videos.convert_ssv2(*ssv2, root, 'opencv', workers=2)
    assert counts == [('train', 2, 168_913), ('val', 1, 24_777)]
    folder = root / 'ssv2'
    assert (folder / 'sthv2_train_list_videos.txt').read_text() == '3.mp4 1\n12.mp4 0\n'
    assert (folder / 'sthv2_val_list_videos.txt').read_text() == '7.mp4 1\n'
    for number in (3, 12, 7):
        assert videos.count_frames(folder / 'videos' / f'{number}.mp4') == number
    # What is there needs neither source nor encoder.
    shutil.rmtree(ssv2[0])
    assert videos.convert_ssv2(*ssv2, root) == counts


def test_a_stopped_re_encoding_goes_on(ssv2, tmp_path, monkeypatch):
    root, made = tmp_path / 'data', []
    encode = videos._encode_opencv

    def stop(source: Path, target: Path) -> None:
        encode(source, target)
        if made:
            target.write_bytes(target.read_bytes()[:100])
            raise Stop
        made.append(target)

    monkeypatch.setattr(videos, '_encode_opencv', stop)
    with pytest.raises(Stop):
        videos.convert_ssv2(*ssv2, root, 'opencv')
    folder = root / 'ssv2' / 'videos'
    assert len(os.listdir(folder)) == 1
    assert not list((root / 'ssv2').glob('*.txt'))
    monkeypatch.setattr(videos, '_encode_opencv', encode)
    videos.convert_ssv2(*ssv2, root, 'opencv')
    assert sorted(os.listdir(folder)) == ['12.mp4', '3.mp4', '7.mp4']


FFMPEG = """#!{python}
import pathlib, shutil, sys
log = pathlib.Path({log!r})
with log.open('a') as file:
    print(*sys.argv[1:], file=file)
if sys.argv[1] == '-version':
    print('ffmpeg version {version} Copyright')
else:
    shutil.copyfile({made!r}, sys.argv[-1])
"""


@pytest.mark.parametrize(
    ('version', 'option'), [('4.4.2', '-vsync'), ('n7.1', '-fps_mode')]
)
def test_ffmpeg_is_called_for_h264(tmp_path, monkeypatch, version, option):
    source = clip_file(tmp_path / 'a.webm')
    made = clip_file(tmp_path / 'made.mp4', codec='mp4v')
    program = tmp_path / 'bin' / 'ffmpeg'
    log = tmp_path / 'log'
    text = FFMPEG.format(
        python=sys.executable, log=str(log), version=version, made=str(made)
    )
    write_whole(program, text.encode())
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    encode = videos.find_encoder('ffmpeg')
    assert videos.reencode(source, tmp_path / 'out' / 'a.mp4', encode)
    assert os.listdir(tmp_path / 'out') == ['a.mp4']
    call = log.read_text().splitlines()[-1]
    assert f'-i {source} ' in call
    assert f'{option} passthrough' in call
    assert 'libx264 -crf 18' in call
    # A copy that lost frames is not kept.
    shutil.copyfile(clip_file(tmp_path / 'few.mp4', 4, 'mp4v'), made)
    with refused('has 6 frames, its copy 4'):
        videos.reencode(source, tmp_path / 'out' / 'b.mp4', encode)
    assert os.listdir(tmp_path / 'out') == ['a.mp4']


def test_bad_ssv2_is_refused(ssv2, tmp_path, monkeypatch):
    clips, labels = ssv2
    root = tmp_path / 'data'
    monkeypatch.setenv('PATH', '')
    with refused('ffmpeg is not on the PATH', '--encoder opencv'):
        videos.convert_ssv2(clips, labels, root)
    cut = clips / '12.webm'
    cut.write_bytes(cut.read_bytes()[:60])
    with refused('cannot read the clip', '12.webm'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    cut.unlink()
    with refused('1 of 3 listed clips', '12.webm'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    assert not list((root / 'ssv2').glob('*.txt'))
    bad = [{'id': '3', 'template': 'Eating [something]'}]
    path = labels / 'something-something-v2-train.json'
    path.write_text(json.dumps(bad))
    with refused('train.json', 'Eating something'):
        videos.convert_ssv2(clips, labels, root, 'opencv')
    path.unlink()
    with refused('neither train.json nor something-something-v2-train.json'):
        videos.convert_ssv2(clips, labels, root, 'opencv')


# Places in the alphabetical list of the 400 classes.
ABSEILING, ARCHERY, RIDING_A_BIKE = 0, 5, 267
TABLE = 'label,youtube_id,time_start,time_end,split\n'


@pytest.fixture
def kinetics(tmp_path) -> Path:
    """A data root: two classes with blanks or none, and one clip that is cut."""
    folder = tmp_path / 'kinetics400'
    sound = clip_file(tmp_path / 'x.mp4', codec='mp4v').read_bytes()
    for name in ('riding a bike/a_000001_000011', 'abseiling/b_000002_000012'):
        write_whole(folder / 'videos_train' / f'{name}.mp4', sound)
    write_whole(folder / 'videos_train' / 'abseiling' / 'cut.mp4', sound[:50])
    # The validation clips lie flat, and an id may hold an underscore.
    write_whole(folder / 'videos_val' / 'c_d_000003_000013.mp4', sound)
    return tmp_path


def lines_of(root: Path, split: str) -> list[str]:
    return (
        (root / 'kinetics400' / f'kinetics400_{split}_list_videos.txt')
        .read_text()
        .splitlines()
    )


def test_kinetics_is_listed_from_folders_and_tables(kinetics):
    folder, table = kinetics / 'kinetics400', kinetics / 'val.csv'
    table.write_text(TABLE + 'riding a bike,c_d,3,13,validate\n')
    counts = videos.convert_kinetics400(kinetics, {'val': table}, workers=2)
    assert counts == [('train', 2, None), ('val', 1, None)]
    # Labels are those of all 400 classes, though the copy has two of them.
    assert lines_of(kinetics, 'train') == [
        f'abseiling/b_000002_000012.mp4 {ABSEILING}',
        f'riding_a_bike/a_000001_000011.mp4 {RIDING_A_BIKE}',
    ]
    assert lines_of(kinetics, 'val') == [f'c_d_000003_000013.mp4 {RIDING_A_BIKE}']
    left_out = folder / 'kinetics400_train_unreadable.txt'
    assert left_out.read_text() == 'abseiling/cut.mp4\n'
    (folder / 'videos_train' / 'abseiling' / 'cut.mp4').unlink()
    videos.convert_kinetics400(kinetics, {'val': table})
    assert not left_out.exists()
    shutil.rmtree(folder / 'videos_val')
    with refused('there is no', 'videos_val'):
        videos.convert_kinetics400(kinetics)


def test_a_given_table_wins_over_folders(kinetics):
    """Copies come in parts, and folders may be wrong: the list says what a clip is."""
    folder, table = kinetics / 'kinetics400', kinetics / 'train.csv'
    shutil.move(folder / 'videos_train' / 'riding a bike', folder / 'x')
    shutil.move(folder / 'x', folder / 'videos_train' / 'part 0' / 'more')
    (folder / 'videos_train' / 'abseiling' / 'cut.mp4').unlink()
    (folder / 'videos_val' / 'c_d_000003_000013.mp4').unlink()
    shutil.copy(kinetics / 'x.mp4', folder / 'videos_val' / 'a_000001_000011.mp4')
    rows = 'riding a bike,a,1,11,train\narchery,b,2,12,train\n'
    table.write_text(TABLE + rows)
    videos.convert_kinetics400(kinetics, {'train': table, 'val': table}, check=False)
    assert lines_of(kinetics, 'train') == [
        f'abseiling/b_000002_000012.mp4 {ARCHERY}',
        f'part_0/more/a_000001_000011.mp4 {RIDING_A_BIKE}',
    ]
    for line in lines_of(kinetics, 'train'):
        assert (folder / 'videos_train' / line.rpartition(' ')[0]).is_file()


def test_clips_of_an_unknown_class_are_refused(kinetics):
    folder, table = kinetics / 'kinetics400', kinetics / 'val.csv'
    with refused('1 of 1 clips', 'videos_val is none of the 400', 'give the CSV'):
        videos.convert_kinetics400(kinetics)
    (folder / 'videos_train' / 'abseiling').rename(folder / 'videos_train' / 'part_0')
    with refused('2 of 3 clips', 'part_0 is none of the 400', 'give the CSV'):
        videos.convert_kinetics400(kinetics)
    # Nothing was renamed before all was clear.
    assert (folder / 'videos_train' / 'riding a bike').is_dir()
    table.write_text(TABLE + 'riding a bike,a,1,11,train\n')
    with refused('2 of 3 clips', 'b_000002_000012.mp4', f'{table} does not list it'):
        videos.convert_kinetics400(kinetics, {'train': table})
    table.write_text(TABLE + 'eating soup,a,1,11,train\n')
    with refused("class 'eating soup'", 'none of the 400'):
        videos.convert_kinetics400(kinetics, {'train': table})
    table.write_text('a,b\n1,2\n')
    with refused('has no columns'):
        videos.convert_kinetics400(kinetics, {'train': table})
    assert not list(folder.glob('*.txt'))


def test_a_bare_id_with_two_classes_tells_none(kinetics):
    table = kinetics / 'val.csv'
    rows = 'archery,c_d,3,13,validate\nabseiling,c_d,40,50,validate\n'
    table.write_text(TABLE + rows)
    videos.convert_kinetics400(kinetics, {'val': table}, check=False)
    assert lines_of(kinetics, 'val') == [f'c_d_000003_000013.mp4 {ARCHERY}']
    clip = kinetics / 'kinetics400' / 'videos_val' / 'c_d_000003_000013.mp4'
    clip.rename(clip.with_name('c_d.mp4'))
    with refused('c_d.mp4', 'does not list it'):
        videos.convert_kinetics400(kinetics, {'val': table})


def test_class_names_are_the_official_ones():
    """Counts, order and a few places that are known from the releases."""
    for names, count in ((KINETICS400_CLASSES, 400), (HMDB51_CLASSES, 51)):
        assert len(set(names)) == count
        assert list(names) == sorted(names)
    assert KINETICS400_CLASSES[RIDING_A_BIKE] == 'riding a bike'
    assert KINETICS400_CLASSES[-1] == 'zumba'
    assert "massaging person's head" in KINETICS400_CLASSES
    assert 'passing American football (in game)' in KINETICS400_CLASSES
    assert HMDB51_CLASSES[50] == 'wave'


@pytest.mark.parametrize(
    ('table', 'part'),
    [
        ({'Pushing something': 174}, "'Pushing something' has label 174"),
        ({'Pushing something': 1, 'Dropping something': 1}, 'two share a label'),
        ({'Pushing something': 'x'}, 'is not {template: label}'),
        (['Pushing something'], 'is not {template: label}'),
    ],
)
def test_labels_of_another_release_are_refused(ssv2, tmp_path, table, part):
    path = ssv2[1] / 'something-something-v2-labels.json'
    path.write_text(json.dumps(table))
    with refused('labels.json', part):
        videos.convert_ssv2(*ssv2, tmp_path, 'opencv')


def test_hmdb51_has_three_splits(official, tmp_path):
    source, clips = tmp_path / 'clips', []
    drawn = sorted((official / 'hmdb51' / 'videos').rglob('*.mp4'))
    for name, path in zip(('brush_hair', 'wave', 'catch'), drawn, strict=False):
        clips.append(Path(name, path.name))
        (source / name).mkdir(parents=True)
        shutil.copy(path, source / name)
    splits = tmp_path / 'splits'
    parts = {1: (1, 2, 0), 2: (2, 1, 1), 3: (0, 1, 2)}
    for number, codes in parts.items():
        for clip, code in zip(clips, codes, strict=True):
            path = splits / f'{clip.parent}_test_split{number}.txt'
            old = path.read_text() if path.exists() else ''
            write_whole(path, f'{old}{clip.name} {code} \n'.encode())
    counts = videos.convert_hmdb51(source, splits, tmp_path, workers=2)
    assert [(n, c) for n, c, _ in counts] == [
        ('train', 1),
        ('val', 1),
        ('train_2', 2),
        ('val_2', 1),
        ('train_3', 1),
        ('val_3', 1),
    ]
    folder = tmp_path / 'hmdb51'
    # Waving is the last of all 51 classes, though three are there.
    line = (folder / 'hmdb51_val_split_1_videos.txt').read_text()
    assert line == f'{clips[1]} 50\n'
    for clip in clips:
        assert (folder / 'videos' / clip).read_bytes() == (source / clip).read_bytes()
    (folder / 'videos' / clips[0]).unlink()
    with refused('1 of 3 listed clips', 'rar'):
        videos.convert_hmdb51(tmp_path / 'none', splits, tmp_path)
    write_whole(splits / 'more' / 'wave_test_split1.txt', b'a.avi 1\n')
    with refused('two files wave_test_split1.txt that differ'):
        videos.convert_hmdb51(source, splits, tmp_path)
    shutil.rmtree(splits / 'more')
    write_whole(splits / 'x_test_split1.txt', b'a.avi 1\n')
    with refused("the class 'x'", 'none of the 51'):
        videos.convert_hmdb51(source, splits, tmp_path)
    write_whole(splits / 'x_test_split1.txt', b'a.avi 5\n')
    with refused('x_test_split1.txt:1'):
        videos.convert_hmdb51(source, splits, tmp_path)
    with refused('unpack test_train_splits.rar'):
        videos.convert_hmdb51(source, tmp_path / 'webm', tmp_path)


def test_a_clip_with_two_classes_in_a_table_is_refused(tmp_path):
    head = 'label,youtube_id,time_start,time_end,split\n'
    row = 'abseiling,0123456789a,1,11,train\n'
    table = tmp_path / 'train.csv'
    table.write_text(head + row + row)
    assert videos._kinetics_table(table)['0123456789a_000001_000011'] == 0
    table.write_text(head + row + row.replace('abseiling', 'zumba'))
    with refused('train.csv', '0123456789a_000001_000011', "'abseiling' and 'zumba'"):
        videos._kinetics_table(table)
