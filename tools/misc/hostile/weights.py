"""Rows of base weights: containers that lie, bombs, values of other types."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.case import MIB, Area, Bench, all_kinds, drop_one, flip, replaced

AREA = Area('base weights', 'train')

Tensors = dict[str, Any]


class Reduced:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def payload(bench: Bench) -> Reduced:
    """What touches the canary where a reader runs it."""
    return Reduced(os.system, f'touch {bench.canary}')


def rezip(path: Path, changes: dict[str, bytes], drop: tuple[str, ...] = ()) -> None:
    """Rewrite members of an archive, named by their last part."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        last = name.rpartition('/')[2]
        members[name] = changes.get(last, members[name])
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if name.rpartition('/')[2] not in drop:
                archive.writestr(name, data)


def zeros_member(path: Path, name: str, head: bytes, size: int) -> None:
    """An archive whose only member is ``head`` and zeros, deflated a thousandfold."""
    block = b'\0' * (16 * MIB)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    count = size // len(block)
    packed = first + zeros * count + packer.flush()
    crc = zlib.crc32(head)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    total, text = len(head) + count * len(block), name.encode()
    wide = struct.pack('<HHQQ', 1, 16, total, len(packed))
    common = struct.pack(
        '<HHHHHIIIHH', 45, 0, 8, 0, 33, crc, *(0xFFFFFFFF,) * 2, len(text), 20
    )
    local = b'PK\x03\x04' + common + text + wide
    central = (
        b'PK\x01\x02\x2d\x00'
        + common
        + struct.pack('<HHHII', 0, 0, 0, 0, 0)
        + text
        + wide
    )
    end = b'PK\x05\x06' + struct.pack(
        '<HHHHIIH', 0, 0, 1, 1, len(central), len(local) + len(packed), 0
    )
    path.write_bytes(local + packed + central + end)


def state(bench: Bench) -> Tensors:
    """The healthy base."""
    import torch

    return torch.load(bench / 'base.pth', weights_only=True)


def saved(change: Callable[[Tensors, Bench], Any], legacy: bool = False) -> Callable:
    """A torch file of what ``change`` makes of the base."""

    def spoil(bench: Bench) -> None:
        import torch

        tensors = state(bench)
        made = change(tensors, bench)
        torch.save(
            tensors if made is None else made,
            bench / 'base.pth',
            _use_new_zipfile_serialization=not legacy,
        )

    return spoil


def every(change: Callable[[Any], Any]) -> Callable:
    """A torch file of other values under the same keys."""
    return saved(lambda tensors, bench: {k: change(v) for k, v in tensors.items()})


def one(change: Callable[[Any], Any]) -> Callable:
    """A torch file with another value under one key."""

    def spoil(tensors: Tensors, bench: Bench) -> None:
        key = next(k for k in tensors if k.endswith('qkv.weight'))
        tensors[key] = change(tensors[key])

    return saved(spoil)


def named(name: str, write: Callable[[Bench, Path], object]) -> Callable:
    """A base in a file of another name."""

    def spoil(bench: Bench) -> None:
        write(bench, bench / name)
        bench.options(f'model.backbone.checkpoint={bench / name}')

    return spoil


# ------------------------------------------------------------------- a whole container

all_kinds(AREA, 'torch file', 'base.pth')
for share in (0.02, 0.3, 0.6, 0.97):
    AREA.add(f'torch file: a byte flipped at {share:.0%}', flip('base.pth', share, 1))
AREA.add('torch file: 2 KiB of random bytes', replaced('base.pth', os.urandom(2048)))
AREA.add('torch file: an HTML page', replaced('base.pth', '<html>404</html>'))


@AREA.row('a file without read permission is a FIFO', want='refuse')
def _fifo(bench: Bench) -> None:
    (bench / 'base.pth').unlink()
    os.mkfifo(bench / 'base.pth', 0)


@AREA.row('a FIFO called .safetensors', want='refuse')
def _fifo2(bench: Bench) -> None:
    os.mkfifo(bench / 'base.safetensors')
    bench.options(f'model.backbone.checkpoint={bench / "base.safetensors"}')


# ---------------------------------------------------------------------------- pickles

for legacy in (False, True):
    form = 'legacy torch' if legacy else 'torch'
    AREA.add(
        f'{form}: os.system by REDUCE',
        saved(lambda t, b: {**t, 'x': payload(b)}, legacy),
        want='refuse',
    )
    AREA.add(
        f'{form}: eval by REDUCE',
        saved(
            lambda t, b: {**t, 'x': Reduced(eval, f'open({str(b.canary)!r}, "w")')},
            legacy,
        ),
        want='refuse',
    )
    AREA.add(
        f'{form}: getattr by REDUCE',
        saved(lambda t, b: {**t, 'x': Reduced(getattr, dict, 'keys')}, legacy),
        want='refuse',
    )


@AREA.row('a plain pickle with os.system', want='refuse')
def _pickle(bench: Bench) -> None:
    (bench / 'base.pth').write_bytes(pickle.dumps({'x': payload(bench)}))


def _raw(data: bytes) -> Callable:
    return lambda bench: rezip(bench / 'base.pth', {'data.pkl': data})


AREA.add(
    'zip .pth: numpy.ndarray of 2^50 bytes by REDUCE',
    _raw(
        b'\x80\x02}X\x01\x00\x00\x00xcnumpy\nndarray\n\x8a\x08'
        + struct.pack('<q', 2**50)
        + b'\x85\x85Rs.'
    ),
    want='refuse',
)
AREA.add('zip .pth: memo index of 2^31', _raw(b'\x80\x02}r\0\0\0\x80.'), want='refuse')
AREA.add(
    'zip .pth: a text of 2^62 bytes', _raw(b'\x80\x04\x8d' + b'\xff' * 7 + b'\x3f')
)
AREA.add('zip .pth: pickle without STOP', _raw(b'\x80\x02}'), want='refuse')
AREA.add('zip .pth: 50,000 nested lists', _raw(b'\x80\x02' + b'(' * 50_000 + b'.'))
AREA.add(
    'zip .pth: 50,000 nested tuples',
    _raw(b'\x80\x02)' + b'\x85' * 50_000 + b'.'),
    want='refuse',
)
AREA.add('zip .pth: a dict that holds itself', _raw(b'\x80\x02}q\0X\1\0\0\0ah\0s.'))
AREA.add('zip .pth: an unhashable key', _raw(b'\x80\x02}]Ns.'), want='refuse')
AREA.add(
    'zip .pth: no data.pkl',
    lambda bench: rezip(bench / 'base.pth', {}, ('data.pkl',)),
    want='refuse',
)
AREA.add(
    'zip .pth: a storage is cut',
    lambda bench: rezip(bench / 'base.pth', {'0': b'\0' * 4, '1': b''}),
    want='refuse',
)
AREA.add(
    'zip .pth: a storage is missing',
    lambda bench: rezip(bench / 'base.pth', {}, ('0',)),
    want='refuse',
)
AREA.add(
    'zip .pth: another byte order',
    lambda bench: rezip(bench / 'base.pth', {'byteorder': b'middle'}),
)
AREA.add(
    'zip .pth: version is text',
    lambda bench: rezip(bench / 'base.pth', {'version': b'x'}),
)


def _scripted(data: bytes) -> Callable:
    def write(bench: Bench, path: Path) -> None:
        import torch

        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        rezip(path, {'data.pkl': data} if data else {})

    return named('base.pt', write)


AREA.add(
    'TorchScript: module record that contains itself',
    _scripted(b'\x80\x02c__torch__\nM\n)\x81q\0}X\4\0\0\0selfh\0sb.'),
    want='refuse',
)
AREA.add(
    'TorchScript: two records that contain each other',
    _scripted(
        b'\x80\x02c__torch__\nM\n)\x81q\0c__torch__\nM\n)\x81q\1}X\1\0\0\0ah\0sb0h\0'
        b'}X\1\0\0\0bh\1sb.'
    ),
    want='refuse',
)
AREA.add(
    'TorchScript: LONG_BINPUT 2^31 (memo bomb)',
    _scripted(b'\x80\x02}r\0\0\0\x80.'),
    want='refuse',
)
AREA.add('TorchScript: of a Linear', _scripted(b''), want='refuse')
AREA.add(
    'TorchScript: os.system', _scripted(b'\x80\x02cposix\nsystem\nX\1\0\0\0x\x85R.')
)
AREA.add(
    'TorchScript: a strided view beyond its storage',
    _scripted(
        b'\x80\x02c__torch__\nM\n)\x81}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n('
        b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0'
        b'0X\3\0\0\0cpuK\4tQK\0J\0\0\0\x10\x85K\1\x85\x89ccollections\nOrderedDict\n)R'
        b'tRsb.'
    ),
    want='refuse',
)


@AREA.row('TorchScript: shared records, 2^40 paths', want='refuse')
def _shared(bench: Bench) -> None:
    body = b'c__torch__\nM\n)\x81q\0'
    for i in range(40):
        inner = b'h' + bytes([i])
        body += b'c__torch__\nM\n)\x81q' + bytes([i + 1])
        body += b'}(X\1\0\0\0a' + inner + b'X\1\0\0\0b' + inner + b'ub'
    _scripted(b'\x80\x02' + body + b'.')(bench)


# ------------------------------------------------------------------------------- numpy


def _npz(bench: Bench, path: Path) -> None:
    import numpy as np

    np.savez(path, **{k: v.numpy() for k, v in state(bench).items()})


def _npy_head(shape: str, kind: str = '<f4') -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + '\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head.encode()


def _npy(head: bytes) -> Callable:
    def write(bench: Bench, path: Path) -> None:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x.npy', head)

    return named('base.npz', write)


@AREA.row('npz: 8 GiB of zeros in 8 MiB', want='refuse')
def _bomb(bench: Bench) -> None:
    path = bench.store / 'bomb.npz'
    if not path.exists():
        zeros_member(path, 'x.npy', _npy_head('(2147483648,)'), 8192 * MIB)
    bench.take('bomb.npz')
    bench.options(f'model.backbone.checkpoint={bench / "bomb.npz"}')


AREA.add(
    'npz: 2^60 values in the header', _npy(_npy_head(f'({2**60},)')), want='refuse'
)
AREA.add('npz: a shape of -1', _npy(_npy_head('(-1,)')), want='refuse')
AREA.add('npz: a shape that overflows', _npy(_npy_head(f'({2**40}, {2**40})')))
AREA.add('npz: objects', _npy(_npy_head('(1,)', '|O') + b'\x80\x02N.'), want='refuse')
AREA.add('npz: an unknown dtype', _npy(_npy_head('(1,)', '<q9')), want='refuse')
AREA.add('npz: a header of code', _npy(b'\x93NUMPY\x01\x00\x10\x00__import__("os")'))
AREA.add('npz: a header of 2^32 bytes', _npy(b'\x93NUMPY\x02\x00\xff\xff\xff\xff'))
AREA.add("npz: in the backbone's own names", named('base.npz', _npz), want='take')
AREA.add(
    'npz: the same name 1,000 times',
    named(
        'base.npz',
        lambda bench, path: path.write_bytes(_many(1000)),
    ),
    want='refuse',
)


def _many(count: int) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(count):
            archive.writestr('x.npy', _npy_head('(1,)') + b'\0' * 4)
    return buffer.getvalue()


# ------------------------------------------------------------------------- safetensors


def _safe(bench: Bench, path: Path, change: Callable = lambda tensors: None) -> None:
    from safetensors.torch import save_file

    tensors = state(bench)
    save_file(change(tensors) or tensors, path)


def safe(change: Callable) -> Callable:
    """A safetensors file of other tensors."""
    return named('base.safetensors', lambda b, p: _safe(b, p, change))


def safe_raw(head: Any, data: bytes = b'', size: int | None = None) -> Callable:
    """A safetensors file of a header of one's own."""

    def write(bench: Bench, path: Path) -> None:
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        count = len(text) if size is None else size
        path.write_bytes(struct.pack('<Q', count) + text + data)

    return named('base.safetensors', write)


def _entry(**changes: Any) -> dict:
    return {
        'x': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]} | changes,
    }


AREA.add("safetensors: in the backbone's own names", safe(lambda t: None), want='take')
AREA.add(
    'safetensors: good keys, int8 values',
    safe(lambda t: {k: v.mul(100).char() for k, v in t.items()}),
    want='refuse',
)
for kind in ('int32', 'bool', 'uint8', 'int64', 'complex64'):
    AREA.add(
        f'torch: good keys, {kind} values',
        every(lambda v, kind=kind: v.to(getattr(__import__('torch'), kind))),
        want='refuse',
    )
for kind in ('float8_e4m3fn', 'float8_e5m2'):
    AREA.add(
        f'torch: good keys, {kind} values',
        every(lambda v, kind=kind: v.to(getattr(__import__('torch'), kind))),
        says='float8',
    )
for kind in ('float64', 'float16', 'bfloat16'):
    AREA.add(
        f'torch: good keys, {kind} values',
        every(lambda v, kind=kind: v.to(getattr(__import__('torch'), kind))),
        want='take',
        differs=True,
    )
AREA.add('safetensors: a header of 2^40 bytes', safe_raw({}, size=2**40), want='refuse')
AREA.add('safetensors: a header of 2^64-1 bytes', safe_raw({}, size=2**64 - 1))
AREA.add('safetensors: no tensors', safe_raw({}), want='refuse')
AREA.add('safetensors: offsets beyond the file', safe_raw(_entry(), b''), want='refuse')
AREA.add(
    'safetensors: offsets backwards',
    safe_raw(_entry(data_offsets=[4, 0]), b'\0' * 4),
    want='refuse',
)
AREA.add('safetensors: an unknown dtype', safe_raw(_entry(dtype='Q9'), b'\0' * 4))
AREA.add('safetensors: dtype F4', safe_raw(_entry(dtype='F4', shape=[8]), b'\0' * 4))
AREA.add('safetensors: a negative shape', safe_raw(_entry(shape=[-1]), b'\0' * 4))
AREA.add(
    'safetensors: header nested 100,000 deep',
    safe_raw(b'{"x":' + b'[' * 100_000 + b']' * 100_000 + b'}'),
    want='refuse',
)
AREA.add('safetensors: header not UTF-8', safe_raw(b'{"\xff": 1}'), want='refuse')


# ------------------------------------------------------------------------------ values


AREA.add(
    'torch: good keys, sparse values', every(lambda v: v.to_sparse()), want='refuse'
)
AREA.add(
    'torch: good keys, tensors on the meta device',
    every(lambda v: v.to('meta')),
    want='refuse',
)
AREA.add('torch: good keys, sparse CSR values', one(lambda v: v.to_sparse_csr()))
AREA.add('torch: good keys, quantised values', one(lambda v: _quantised(v)))
AREA.add('torch: one value NaN', one(lambda v: v.fill_(float('nan'))), want='refuse')
AREA.add(
    'torch: one value Infinity', one(lambda v: v.fill_(float('inf'))), want='refuse'
)
AREA.add('torch: one value is a text', one(lambda v: 'x'), want='refuse')
AREA.add('torch: one value is a list', one(lambda v: v.tolist()))
AREA.add('torch: one value is None', one(lambda v: None), want='refuse')
AREA.add('torch: one value of another shape', one(lambda v: v[:1]), want='refuse')
AREA.add('torch: one value transposed', one(lambda v: v.t()), want='refuse')
AREA.add(
    'torch: one value without memory of its own (expanded)',
    one(lambda v: v[:1, :1].expand(2**20, 2**20)),
    want='refuse',
)
AREA.add('torch: a Parameter', every(lambda v: _parameter(v)), want='take')
AREA.add('torch: below state_dict', saved(lambda t, b: {'state_dict': t}), want='take')
AREA.add('torch: below model', saved(lambda t, b: {'model': t}), want='take')
AREA.add('torch: nothing below state_dict', saved(lambda t, b: {'state_dict': {}}))
AREA.add('torch: state_dict is a list', saved(lambda t, b: {'state_dict': [1]}))
AREA.add('torch: a list', saved(lambda t, b: list(t.values())), want='refuse')
AREA.add('torch: a number', saved(lambda t, b: 7), want='refuse')
AREA.add('torch: a tensor', saved(lambda t, b: next(iter(t.values()))), want='refuse')
AREA.add('torch: keys are numbers', saved(lambda t, b: dict(enumerate(t.values()))))
AREA.add(
    'torch: 60 nested dicts',
    saved(lambda t, b: _nested(t, 60)),
)
AREA.add(
    'torch: one key is missing',
    saved(lambda t, b: drop_one(t, 'qkv.weight')),
    want='refuse',
)
AREA.add(
    'torch: one key too many',
    saved(lambda t, b: t.update({'layers.9.attn.qkv.weight': next(iter(t.values()))})),
    want='refuse',
)
AREA.add('torch: legacy format', saved(lambda t, b: None, legacy=True), want='take')


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {'model': value}
    return value


def _parameter(value: Any) -> Any:
    import torch

    return torch.nn.Parameter(value)


def _quantised(value: Any) -> Any:
    import torch

    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


# -------------------------------------------------------------------------- registries

REGISTRIES = Area('registries', 'train')


def _index(content: Any) -> Callable:
    def spoil(bench: Bench) -> None:
        _safe(bench, bench / 'part.safetensors')
        text = content if isinstance(content, str) else json.dumps(content(bench))
        name = bench / 'model.safetensors.index.json'
        name.write_text(text)
        bench.options(f'model.backbone.checkpoint={name}')

    return spoil


def _map(bench: Bench, name: Any) -> dict:
    return {'weight_map': dict.fromkeys(state(bench), name)}


REGISTRIES.add(
    'index of shards: good', _index(lambda b: _map(b, 'part.safetensors')), want='take'
)
for label, name in {
    'a shard outside of the folder': '../base.safetensors',
    'a shard by an absolute path': '/etc/passwd',
    'a shard that is missing': 'gone.safetensors',
    'a shard that is the index': 'model.safetensors.index.json',
    'a shard that is a number': 7,
    'a shard that is a list': ['part.safetensors'],
    'a shard with a NUL': 'a\0.safetensors',
    'a shard of 5,000 letters': 'a' * 5000 + '.safetensors',
}.items():
    REGISTRIES.add(
        f'index of shards: {label}',
        _index(lambda b, name=name: _map(b, name)),
        want='refuse',
    )
for label, text in {
    'no weight_map': '{}',
    'weight_map is a list': '{"weight_map": []}',
    'empty weight_map': '{"weight_map": {}}',
    'a list': '[]',
    'no JSON': '{',
    '100,000 nested lists': '[' * 100_000 + ']' * 100_000,
    'a key twice': '{"weight_map": {"a": "part.safetensors", "a": "x.safetensors"}}',
}.items():
    REGISTRIES.add(f'index of shards: {label}', _index(text), want='refuse')
