"""Tensors of a TorchScript archive, without running or compiling any of it.

OpenAI's CLIP files are such archives. Their ``data.pkl`` describes a tree of modules;
here each module becomes an inert record, each tensor is cut from the archive's raw
storages, and every other name that the pickle may ask for is refused. The archive's
``code/`` folder is never opened.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'FloatStorage': torch.float32,
    'DoubleStorage': torch.float64,
    'ByteStorage': torch.uint8,
    'CharStorage': torch.int8,
    'ShortStorage': torch.int16,
    'IntStorage': torch.int32,
    'LongStorage': torch.int64,
    'BoolStorage': torch.bool,
}


MODULES, DEPTH = 100_000, 64
"""How many modules there may be, and how deep; one that holds itself has no end."""


class _Record:
    """A scripted module, reduced to its attributes."""

    def __setstate__(self, state: object) -> None:
        self.fields = state if isinstance(state, dict) else {}


def _first(value: object, *_: object) -> object:
    return value


def _view(
    storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object
) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


# The unpickler that is written in Python: its memo is a dict, where the other's is an
# array as long as the largest number that a file names.
class _ArchiveUnpickler(pickle._Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f'{root}data.pkl'))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        if module.split('.')[0] == '__torch__':
            return _Record
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        if module == 'torch._utils' and name == '_rebuild_tensor_v2':
            return _view
        if module == 'collections' and name == 'OrderedDict':
            return OrderedDict
        if module == 'torch.jit._pickle':
            return _first
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')

    def persistent_load(self, pid: tuple) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            raw = bytearray(self._archive.read(f'{self._root}data/{key}'))
            self._storages[key] = (
                torch.frombuffer(raw, dtype=dtype)
                if raw
                else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def read_torchscript(path: str) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name, as the module's state dict has them.

    Raises:
        pickle.UnpicklingError: The archive asks for anything but tensors.
        zipfile.BadZipFile: The archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        member = next((n for n in names if n.endswith('/data.pkl')), None)
        if member is None:
            raise zipfile.BadZipFile('it has no data.pkl')
        root = member.removesuffix('data.pkl')
        tree = _ArchiveUnpickler(archive, root).load()
    tensors: dict[str, Tensor] = {}
    stack, seen = [('', tree)], 0
    while stack:
        prefix, record = stack.pop()
        seen += 1
        if seen > MODULES or prefix.count('.') > DEPTH:
            raise pickle.UnpicklingError('modules hold themselves')
        for name, value in getattr(record, 'fields', {}).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, _Record):
                stack.append((f'{prefix}{name}.', value))
    return tensors
