"""Files that ask for more memory than they hold, or for another reading without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from mmpetl.compat import load_file
from mmpetl.compat.arrays import read_arrays
from mmpetl.core import PETLError
from mmpetl.core.delta_file import check_values
from mmpetl.engine.hooks.predictions import read_predictions
from mmpetl.engine.latest import damage
from mmpetl.models.weights import WeightsError, load_base_weights
from mmpetl.models.weights.containers import read_tensors


class _Call:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def _torch_zip(path, pickled: bytes, name: str = 'data.pkl', more=()) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'x/{name}', pickled)
        archive.writestr('x/version', '3\n')
        archive.writestr('x/byteorder', 'little')
        for other in more:
            archive.writestr(f'x/{other}', b'')


@pytest.mark.parametrize('protocol', [2])
@pytest.mark.parametrize(
    'what',
    [
        _Call(np.ndarray, (1 << 50,)),
        _Call(np.ndarray, (1 << 32,)),
        _Call(bytearray, 1 << 33),
        _Call(np.dtype, 'V1000000000'),
        _Call(np._core.multiarray.scalar, np.dtype('f8'), b'1'),
        _Call(np._core.multiarray._reconstruct, np.ndarray, (1 << 33,), b'b'),
        _Call(torch.UntypedStorage, 1 << 60),
        _Call(os.system, 'true'),
    ],
)
def test_calls_that_ask_for_memory_are_refused(tmp_path, what, protocol):
    path = tmp_path / 'x.pth'
    _torch_zip(path, pickle.dumps({'state_dict': {'a': what}}, protocol))
    with pytest.raises(ValueError, match=r'x\.pth'):
        load_file(path)
    with pytest.raises(WeightsError, match=r'x\.pth'):
        read_tensors(path)


def test_arrays_and_scalars_still_load(tmp_path):
    data = {
        'array': np.arange(6, dtype=np.float32).reshape(2, 3),
        'flags': np.array([True, False]),
        'empty': np.zeros((0, 2)),
        'scalar': np.float64(2.5),
        'whole': np.int64(7),
        'flag': np.bool_(True),
    }
    torch.save(data, tmp_path / 'x.pth')
    found = load_file(tmp_path / 'x.pth')
    for key, value in data.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype
        assert type(found[key]) is type(value)


@pytest.mark.parametrize('times', [1, 2])
def test_modules_that_hold_themselves_end(tmp_path, times):
    # A module whose attributes 'a', 'b' are itself.
    own = b''.join(b'X\x01\0\0\0' + name + b'h\x01' for name in (b'a', b'b')[:times])
    text = b'\x80\x02c__torch__\nM\nq\0)\x81q\x01}(' + own + b'ub.'
    path = tmp_path / 'x.pt'
    _torch_zip(path, text, more=('constants.pkl',))
    with pytest.raises(WeightsError, match='truncated or damaged'):
        read_tensors(path)


def test_weights_in_themselves_end(tmp_path):
    content: dict = {}
    content['model'] = content
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match='keys deep'):
        read_tensors(tmp_path / 'x.pth')


def test_a_shape_that_no_data_fill_takes_no_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 50,)}
    )
    with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
        archive.writestr('a.npy', header.getvalue() + bytes(64))
    with pytest.raises(WeightsError, match='truncated or damaged'):
        read_tensors(tmp_path / 'x.npz')


@pytest.mark.parametrize('kind', [torch.int8, torch.int64, torch.bool])
def test_values_of_another_kind_fill_no_weights(tmp_path, kind):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = net.state_dict()  # a count of batches is an integer and stays one
    torch.save(state, tmp_path / 'x.pth')
    load_base_weights(net, tmp_path / 'x.pth')
    torch.save({**state, '0.weight': torch.zeros(4, 3, dtype=kind)}, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match='save them as floating point'):
        load_base_weights(net, tmp_path / 'x.pth')
    assert net[0].weight.any()


def npy(shape: tuple, body: bytes = b'', descr: str = '<f4') -> bytes:
    head = repr({'descr': descr, 'fortran_order': False, 'shape': shape})
    head = head.encode().ljust(117) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(head).to_bytes(2, 'little') + head + body


@pytest.mark.parametrize(
    ('member', 'message'),
    [
        (npy((2**60,)), r'says float32 .*4,611,686,018,427,387,904 bytes, and has 0'),
        (npy((2**40, 2**40)), 'says float32'),
        (npy((-1,)), 'says float32'),
        (npy((2,), b'\0' * 4), '8 bytes, and has 4'),
        (npy((1,), b'\0' * 8), '4 bytes, and has 8'),
        (npy((1,), b'\x80\x02N.', '|O'), 'pickled Python objects'),
        (npy((1,), b'\0' * 4, '<q9'), r'npz file|damaged'),
        (b'\x93NUMPY\x01\x00\x10\x00__import__("os")', 'damaged'),
        (b'\x93NUMPY\x02\x00\xff\xff\xff\xff', 'damaged'),
        (b'\x93NUMPY\x07\x00', 'damaged'),
    ],
)
def test_headers_of_arrays_are_held_against_the_file(tmp_path, member, message):
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x.npy', member)
        archive.writestr('labels.npy', npy((1,), b'\0' * 8, '<i8'))
    with pytest.raises(ValueError, match=message) as error:
        read_arrays(path)
    assert '\n' not in str(error.value)
    with pytest.raises(WeightsError, match=r'a\.npz'):
        read_tensors(path)
    assert read_arrays(path, ['labels'])['labels'].tolist() == [0]


def test_good_arrays_are_read(tmp_path):
    path = tmp_path / 'a.npz'
    made = {
        'f': np.arange(6, dtype='f4').reshape(2, 3).T,
        'half': np.ones((), 'f2'),
        'none': np.zeros((0, 3)),
        'text': np.array(['a', 'bc']),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **made)
        found = read_arrays(path)
        assert found.keys() == made.keys()
        assert all(np.array_equal(found[k], made[k]) for k in made)
        assert set(read_tensors(path).tensors) == {'f', 'half', 'none'}
    with pytest.raises(ValueError, match='gone'):
        read_arrays(path, ['gone'])


def test_predictions_are_held_to_their_form(tmp_path):
    path = tmp_path / 'predictions.npz'
    logits, labels = np.ones((2, 3), 'f4'), np.zeros(2, int)
    np.savez(path, logits=logits, labels=labels)
    assert read_predictions(path)[0].shape == (2, 3)
    for bad, message in (
        ({'logits': logits}, 'labels'),
        ({'logits': logits.astype(int), 'labels': labels}, 'logits are int64'),
        ({'logits': logits.astype(complex), 'labels': labels}, 'logits are complex'),
        ({'logits': logits, 'labels': np.array(['a', 'b'])}, 'labels <U1'),
        ({'logits': logits, 'labels': labels[:1]}, 'it needs'),
        ({'logits': logits, 'labels': np.array([{}, {}])}, 'pickled'),
    ):
        np.savez(path, **bad)
        with pytest.raises(PETLError, match=message):
            read_predictions(path)
    path.write_bytes(b'PK\x03\x04')
    with pytest.raises(PETLError, match='cannot read the predictions'):
        read_predictions(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PETLError, match='FIFO'):
        read_predictions(path)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (b'data.pkl', b'dat\xb0.pkl'),
        (b'PK\x01\x02\x14\x03\x14\x00', b'PK\x01\x02\x14\x03\xff\x00'),
        (b'data.pkl', b'data.pk1'),
    ],
)
@pytest.mark.parametrize('more', ['a.npy', 'constants.pkl', 'b'])
def test_archives_that_zipfile_takes_for_none(tmp_path, old, new, more):
    path = tmp_path / 'a.pth'
    _torch_zip(path, pickle.dumps({'a': 1}, 2), more=[more])
    data = path.read_bytes()
    assert old in data
    if b'\xb0' in new:  # of names it is said that they are UTF-8
        entry = b'PK\x01\x02\x14\x03\x14\x00'
        data = data.replace(entry + b'\x00\x00', entry + b'\x00\x08')
    path.write_bytes(data.replace(old, new))
    with pytest.raises(WeightsError, match='damaged|without weights|no tensors'):
        read_tensors(path)


def test_a_header_of_numpy_that_never_ends_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', buffer.getvalue().replace(b'(2,)', b'(((('))
    with pytest.raises(WeightsError, match='truncated or damaged'):
        read_tensors(path)


def test_an_index_of_impossible_names_and_of_bombs_is_refused(tmp_path, monkeypatch):
    index = tmp_path / 'a.index.json'
    for name in ('x' * 5000, 'a\0b'):
        index.write_text(json.dumps({'weight_map': {'a': name}}))
        with pytest.raises(WeightsError, match='is not beside it'):
            read_tensors(index)
    index.write_text(json.dumps({'weight_map': {'a': 'a.bin'}}))
    with zipfile.ZipFile(tmp_path / 'a.bin', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', bytes(1 << 20))
    monkeypatch.setattr('mmpetl.compat.archives.GIB', 1)
    with pytest.raises(WeightsError, match='raises the limit'):
        read_tensors(index)


def test_a_flipped_bit_is_seen_by_the_sums_that_torch_writes(tmp_path):
    path = tmp_path / 'a.pth'
    values = {'state_dict': {'a': torch.ones(1000)}}
    torch.save(values, path)
    data = bytearray(path.read_bytes())
    data[data.index(b'\x00\x00\x80\x3f' * 8) + 2001] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)['state_dict']['a'], torch.ones(1000))
    with pytest.raises(ValueError, match=r'a\.pth is damaged'):
        load_file(path)
    with pytest.raises(WeightsError, match='damaged; download it again'):
        read_tensors(path)
    assert 'damaged' in damage(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(values, path)  # a good file without sums
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_file(path)['state_dict']['a'], torch.ones(1000))
    assert read_tensors(path).tensors.keys() == {'a'}
    assert damage(path) is None


@pytest.mark.parametrize('kind', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_need_a_scale_are_no_weights(tmp_path, kind):
    path = tmp_path / 'a.pth'
    torch.save({'a': torch.ones(3).to(kind)}, path)
    with pytest.raises(WeightsError, match='means nothing without its scale'):
        read_tensors(path)
    with pytest.raises(PETLError, match='a is torch.float8'):
        check_values({'a': torch.ones(3).to(kind)}, {'a': torch.ones(3)})


def test_an_archive_of_several_disks_is_damaged(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'a': torch.ones(3)}}, path)
    data = bytearray(path.read_bytes())
    place = data.index(b'PK\x06\x07') + 16
    data[place] = 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match='is damaged: zipfiles that span multiple'):
        load_file(path)
    assert damage(path) is not None
