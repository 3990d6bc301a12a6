"""A work folder: one run at a time, whole files, and a pointer that stays inside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import zipfile

import pytest
import torch

from mmpetl.core import PETLError
from mmpetl.engine.best import Best, best_checkpoint, read_best, write_best
from mmpetl.engine.files import AtomicLocalBackend, part_name, remove_parts
from mmpetl.engine.folder_lock import NAME, hold_folder
from mmpetl.engine.latest import damage, newest_checkpoint


@contextlib.contextmanager
def holder(folder, worker=False):
    """A process that holds a folder, also one with a data worker that outlives it.

    Yields its id, or None where it was refused.
    """
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with hold_folder(folder):
                if worker and not os.fork():
                    time.sleep(5)
                    os._exit(0)
                os.write(done, b'held')
                time.sleep(60)
        except PETLError:
            os.write(done, b'refused')
        finally:
            os._exit(0)
    try:
        yield pid if os.read(ready, 16) == b'held' else None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(done)


def test_a_second_run_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
    with (
        holder(tmp_path, worker=True) as pid,
        pytest.raises(PETLError, match=f'host .*, pid {pid}; wait') as info,
        hold_folder(tmp_path),
    ):
        pass
    assert '\n' not in str(info.value)
    with hold_folder(tmp_path):
        pass


def test_a_folder_is_held_once_in_a_process_and_free_afterwards(tmp_path):
    with hold_folder(tmp_path):
        with pytest.raises(PETLError, match='this process'), hold_folder(tmp_path):
            pass
        # Refusing must not have ended the lock that is held.
        with holder(tmp_path) as pid:
            assert pid is None
    with hold_folder(tmp_path):
        pass


def test_what_a_lock_file_says_is_shown_only_where_it_is_plain(tmp_path):
    with holder(tmp_path):
        (tmp_path / NAME).write_text('host \x1b[31mx, pid 1\nerror: fine\n')
        with (
            pytest.raises(PETLError, match='another process; wait'),
            hold_folder(tmp_path),
        ):
            pass


def test_a_work_dir_that_is_a_file(tmp_path):
    (tmp_path / 'run').write_text('')
    for folder in (
        tmp_path / 'run',
        tmp_path / 'run' / 'below',
        tmp_path / ('x' * 300),
    ):
        with pytest.raises(PETLError, match='work_dir'), hold_folder(folder):
            pass


def test_writers_do_not_share_a_temporary_name(tmp_path):
    names = {part_name(tmp_path / 'a.pth') for _ in range(3)}
    assert len(names) == 3
    (tmp_path / 'a.pth.part').write_text('of an earlier mmpetl')
    (tmp_path / 'b.pth').write_text('kept')
    remove_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['b.pth']


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'a\.pth') as info:
        AtomicLocalBackend().put(b'new', tmp_path / 'a.pth')
    assert info.value.errno == 28
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the newest


def save(folder, name, iteration):
    folder.mkdir(exist_ok=True)
    content = {'meta': {'iter': iteration}, 'w': torch.arange(200)}
    torch.save(content, folder / name)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 9 to 11, whose names do not sort as their steps."""
    for step in (9, 10, 11):
        save(tmp_path / 'run', f'epoch_{step}.pth', step * 5)
    (tmp_path / 'run' / 'last_checkpoint').write_text('epoch_11.pth')
    return tmp_path / 'run'


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_the_pointer_names_a_file_of_its_own_folder(folder, tmp_path):
    assert newest_checkpoint(folder) == (folder / 'epoch_11.pth', None)
    # As earlier versions and MMEngine write it.
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_10.pth'))
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    assert newest_checkpoint(copy) == (copy / 'epoch_10.pth', None)
    shutil.rmtree(folder)
    assert newest_checkpoint(copy) == (copy / 'epoch_10.pth', None)


@pytest.mark.parametrize(
    ('text', 'wrong'),
    [
        (None, 'last_checkpoint is missing'),
        (b'', 'last_checkpoint is empty'),
        (b'\xff\xfe\x00', 'cannot be read'),
        (b'a\nb', 'names no file'),
        (b'..', 'names no file'),
        (b'epoch_99.pth', 'names epoch_99.pth, which is not there'),
    ],
)
def test_without_a_good_pointer_the_newest_counts(folder, text, wrong):
    (folder / 'last_checkpoint').unlink()
    if text is not None:
        (folder / 'last_checkpoint').write_bytes(text)
    path, said = newest_checkpoint(folder)
    assert path.name == 'epoch_11.pth'
    assert wrong in said
    assert 'going on from epoch_11.pth' in said
    assert '\n' not in said


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.99])
def test_a_cut_checkpoint_is_left_for_the_newest_whole_one(folder, share):
    cut(folder / 'epoch_11.pth', share)
    path, said = newest_checkpoint(folder)
    assert path.name == 'epoch_10.pth'
    assert 'epoch_11.pth, which last_checkpoint names, is left' in said
    save(folder, 'stopped_at_iter_52.pth', 52)
    assert newest_checkpoint(folder)[0].name == 'stopped_at_iter_52.pth'


def test_a_byte_that_was_changed_is_found(folder):
    data = bytearray((folder / 'epoch_11.pth').read_bytes())
    at = data.find(torch.arange(200).numpy().tobytes()[:64])
    data[at + 8] ^= 1
    (folder / 'epoch_11.pth').write_bytes(data)
    path, said = newest_checkpoint(folder)
    assert path.name == 'epoch_10.pth'
    assert 'damaged' in said


def test_a_folder_without_a_whole_checkpoint_is_refused(folder, tmp_path):
    for path in folder.glob('*.pth'):
        cut(path)
    with pytest.raises(PETLError, match='no checkpoint in it is whole') as info:
        newest_checkpoint(folder)
    assert '\n' not in str(info.value)
    for path in folder.glob('*.pth'):
        path.unlink()
    with pytest.raises(PETLError, match='there is no other checkpoint'):
        newest_checkpoint(folder)
    assert newest_checkpoint(tmp_path / 'new') == (None, None)


# ------------------------------------------------------------------ the best


def test_the_record_says_the_best_and_no_sorting(tmp_path):
    for name in ('best_acc_epoch_9.pth', 'best_acc_epoch_10.pth'):
        (tmp_path / name).touch()
    with pytest.raises(PETLError, match=r'2 checkpoints best_\*.pth and no best.json'):
        best_checkpoint(tmp_path)
    best = Best('best_acc_epoch_10.pth', 'acc', 71.5, 10, 50)
    write_best(tmp_path, [best])
    assert read_best(tmp_path) == [best]
    assert best_checkpoint(tmp_path).name == 'best_acc_epoch_10.pth'
    (tmp_path / 'best_acc_epoch_10.pth').unlink()
    with pytest.raises(PETLError, match='which is not there'):
        best_checkpoint(tmp_path)
    write_best(tmp_path, [])
    assert best_checkpoint(tmp_path).name == 'best_acc_epoch_9.pth'
    (tmp_path / 'best_acc_epoch_9.pth').unlink()
    assert best_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    'change',
    [
        {'format': 2},
        {'best': {}},
        {'best': [{'file': '../x.pth', 'metric': 'a', 'score': 1.0}]},
        {'best': [{'file': 'x.pth', 'metric': 'a', 'score': '1'}]},
        {'more': 1},
    ],
)
def test_a_record_of_another_kind_is_refused(tmp_path, change):
    text = json.dumps({'format': 1, 'best': [], **change})
    (tmp_path / 'best.json').write_text(text)
    with pytest.raises(PETLError, match=r'best\.json'):
        read_best(tmp_path)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        # Names that are no UTF-8, a version and a method that nobody knows, a password.
        (b'epoch_11/data.pkl', b'\xb0poch_11/data.pkl'),
        (b'PK\x01\x02\x00\x00\x00\x00', b'PK\x01\x02\x00\x00\xff\x00'),
    ],
)
def test_an_archive_that_zipfile_takes_for_none_is_damaged(folder, old, new):
    path = folder / 'epoch_11.pth'
    data = path.read_bytes()
    assert old in data, data[-200:]
    if old.startswith(b'epoch'):
        data = with_utf8_flags(data)
    path.write_bytes(data.replace(old, new))
    assert damage(path) == 'it is cut or damaged'
    assert newest_checkpoint(folder)[0] == folder / 'epoch_10.pth'


@pytest.mark.parametrize(('place', 'value'), [(8, 1), (10, 99)], ids=['lock', 'method'])
def test_a_member_that_cannot_be_opened_is_damage(folder, place, value):
    path = folder / 'epoch_11.pth'
    data = bytearray(path.read_bytes())
    entry = data.rfind(b'PK\x01\x02', 0, data.rfind(b'data.pkl'))
    data[entry + place] = value
    path.write_bytes(data)
    assert damage(path) == 'it is cut or damaged'
    assert newest_checkpoint(folder)[0] == folder / 'epoch_10.pth'


def with_utf8_flags(data: bytes) -> bytes:
    """A zip that says of its names that they are UTF-8."""
    for mark, place in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        at = data.find(mark)
        while at >= 0:
            data = data[: at + place] + b'\x00\x08' + data[at + place + 2 :]
            at = data.find(mark, at + 4)
    return data


def test_a_checkpoint_that_unpacks_to_gigabytes_is_left(folder, monkeypatch):
    monkeypatch.setattr('mmpetl.compat.archives.GIB', 1)
    path = folder / 'epoch_11.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a', bytes(1 << 20))
    assert 'MMPETL_MAX_EXPANSION_GIB' in damage(path)
