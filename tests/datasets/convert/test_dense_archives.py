"""VOC, ADE20K and COCO arrive at the layouts we read, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from converter_files import Stop, jpeg, pack, png, refused, tree, under, voc_archives

from mmpetl.datasets.convert import dense
from mmpetl.datasets.convert import unpack as unpacking
from mmpetl.datasets.convert.files import write_whole

ROOT = Path(__file__).parents[3]


def test_voc_arrives_at_the_layout_we_read(official, tmp_path):
    archives = voc_archives(official, tmp_path)
    counts = dense.convert_voc(archives, tmp_path / 'data', workers=2)
    assert [(name, count) for name, count, _ in counts] == [
        ('trainval2007', 4),
        ('trainval2012', 4),
        ('test2007', 2),
    ]
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    assert got.pop('VOC2007/SegmentationClass/x.png') == png()
    assert got == tree(official / 'VOCdevkit')


def test_voc_archives_may_come_one_by_one(official, tmp_path):
    for archive in voc_archives(official, tmp_path):
        dense.convert_voc([archive], tmp_path / 'data')
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    got.pop('VOC2007/SegmentationClass/x.png')
    assert got == tree(official / 'VOCdevkit')


def test_a_voc_list_without_its_pictures_is_not_written(official, tmp_path):
    files = under('VOCdevkit', tree(official / 'VOCdevkit'))
    gone = next(n for n in files if 'VOC2012/JPEGImages' in n)
    del files[gone]
    archive = pack(tmp_path / 'VOC.tar', files)
    with refused('lists', Path(gone).stem):
        dense.convert_voc([archive], tmp_path / 'data')
    assert not list((tmp_path / 'data').rglob('*.txt'))
    with refused('VOCtrainval_06-Nov-2007.tar'):
        dense.convert_voc([pack(tmp_path / 'x.tar', {'a.txt': b''})], tmp_path / 'd')


def test_ade20k_arrives_at_the_layout_we_read(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    archive = pack(
        tmp_path / 'ADEChallengeData2016.zip',
        under('ADEChallengeData2016', files | {'objectInfo150.txt': b'1 wall'}),
    )
    counts = dense.convert_ade20k([archive], tmp_path / 'data', workers=2)
    assert counts == [('train', 4, 20_210), ('val', 2, 2_000)]
    got = tree(tmp_path / 'data' / 'ADEChallengeData2016')
    assert got.pop('objectInfo150.txt') == b'1 wall'
    assert got == files
    # Called again there is nothing to do, not even to read the archive.
    archive.unlink()
    assert dense.convert_ade20k([archive], tmp_path / 'data') == counts


def test_ade20k_without_a_map_gets_no_name(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    del files['annotations/validation/ADE_val_00000002.png']
    archive = pack(tmp_path / 'ade.zip', under('ADEChallengeData2016', files))
    with refused('ADE_val_00000002', '2 pictures, 1 maps'):
        dense.convert_ade20k([archive], tmp_path / 'data')
    assert not (tmp_path / 'data' / 'ADEChallengeData2016').exists()


def test_coco_arrives_at_the_layout_we_read(official, tmp_path):
    files = tree(official / 'coco')
    parts = {
        'annotations_trainval2017.zip': 'annotations',
        'train2017.zip': 'train2017',
    }
    parts['val2017.zip'] = 'val2017'
    archives = [
        pack(
            tmp_path / name,
            {n: c for n, c in files.items() if n.startswith(start)}
            | ({'annotations/captions_val2017.json': b'{}'} if 'ann' in name else {}),
        )
        for name, start in parts.items()
    ]
    counts = dense.convert_coco(archives, tmp_path / 'data')
    assert counts == [('train', 4, 118_287), ('val', 2, 5_000)]
    assert tree(tmp_path / 'data' / 'coco') == files


def test_a_coco_file_without_its_pictures_is_not_written(official, tmp_path):
    files = tree(official / 'coco')
    gone = next(name for name in files if name.startswith('val2017'))
    archive = pack(tmp_path / 'c.zip', {n: c for n, c in files.items() if n != gone})
    with refused('lists 2 pictures, 1 of which', Path(gone).name):
        dense.convert_coco([archive], tmp_path / 'data')
    assert not list((tmp_path / 'data').rglob('*.json'))
    bad = pack(tmp_path / 'b.zip', {'annotations/instances_val2017.json': b'[]'})
    with refused('instances_val2017.json is not a COCO file'):
        dense.convert_coco([bad], tmp_path / 'data')
    with refused('nothing of COCO 2017'):
        dense.convert_coco([pack(tmp_path / 'x.zip', {'a.jpg': jpeg()})], tmp_path)


@pytest.mark.parametrize('after', [1, 5, 15])
@pytest.mark.parametrize('workers', [1, 3])
def test_a_stopped_conversion_ends_equal_when_called_again(
    official, tmp_path, monkeypatch, after, workers
):
    archives = voc_archives(official, tmp_path)
    done = []

    def write(path: Path, content: bytes, durable: bool = False) -> None:
        if len(done) >= after:
            raise Stop
        write_whole(path, content, durable)
        done.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, 'write_whole', write)
        with pytest.raises(Stop):
            dense.convert_voc(archives, tmp_path / 'data', workers)
    assert done
    assert not list((tmp_path / 'data').rglob('*.txt'))
    times = {path: path.stat().st_mtime_ns for path in done}
    dense.convert_voc(archives, tmp_path / 'data', workers)
    got = tree(tmp_path / 'data' / 'VOCdevkit')
    got.pop('VOC2007/SegmentationClass/x.png')
    assert got == tree(official / 'VOCdevkit')
    # What was whole was not written a second time.
    assert times == {path: path.stat().st_mtime_ns for path in done}


KILLED = """
import os, signal, sys
from pathlib import Path
from mmpetl.datasets.convert import dense, files, unpack
left = [4]
look = unpack._look
def kill(member, content):
    left[0] -= 1
    if not left[0]:
        partial = Path(sys.argv[2], '.ADEChallengeData2016.partial')
        part = partial / 'images' / 'x.jpg.part'
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)
    look(member, content)
unpack._look = kill
dense.convert_ade20k([Path(sys.argv[1])], Path(sys.argv[2]))
"""


def test_a_killed_conversion_ends_equal_when_called_again(official, tmp_path):
    files = tree(official / 'ADEChallengeData2016')
    archive = pack(tmp_path / 'ade.zip', under('ADEChallengeData2016', files))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', KILLED, archive, tmp_path / 'data'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    partial = tmp_path / 'data' / '.ADEChallengeData2016.partial'
    assert len(list(partial.rglob('*.*g'))) == 3
    assert not (tmp_path / 'data' / 'ADEChallengeData2016').exists()
    dense.convert_ade20k([archive], tmp_path / 'data')
    assert tree(tmp_path / 'data' / 'ADEChallengeData2016') == files
    assert os.listdir(tmp_path / 'data') == ['ADEChallengeData2016']
