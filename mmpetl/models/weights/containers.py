"""From a file to a flat dict of tensors. No file is ever allowed to run code."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpetl.models.weights.errors import WeightsError, WeightsNotFoundError
from mmpetl.models.weights.torchscript import read_torchscript

# The keys under which training scripts put the weights, the plain ones first.
WRAPPERS = (
    'state_dict',
    'model',
    'module',
    'model_state_dict',
    'model_state',
    'params',
    'model_ema',
    'state_dict_ema',
    'ema_state_dict',
)
# A cut or garbled file is answered with any of these, by torch, zipfile and pickle.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
DAMAGED = 'is truncated or damaged; download it again'


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], str]:
    """All tensors of a weight file and a word on how they were packed.

    The kind of file is told from its content, since names lie: npz, safetensors,
    torch (zip or legacy) and TorchScript archives.

    Raises:
        WeightsNotFoundError: Nothing at ``path``.
        WeightsError: Empty, truncated, a web page, or it asks to run code.
    """
    path = Path(path)
    head = _first_bytes(path)
    if head.startswith(b'PK'):
        tensors, container = _read_zip(path)
    elif head.startswith(b'\x80'):
        tensors, container = _read_torch(path, 'torch legacy', mmap=False)
    elif head[8:9] == b'{':
        tensors, container = _read_safetensors(path), 'safetensors'
    else:
        raise WeightsError(
            f'{path} is not a weight file: it is neither npz, safetensors nor a torch '
            f'checkpoint (first bytes {head[:8]!r}); check the download'
        )
    if not tensors:
        raise WeightsError(f'{path} holds no tensors ({container})')
    return tensors, container


def sha256_of(path: str | os.PathLike) -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f'; {near[0]} is there' if near else ''
        raise WeightsNotFoundError(f'No weight file at {path}{hint}')
    if path.is_dir():
        raise WeightsError(f'{path} is a folder; a weight file is needed')
    with path.open('rb') as file:
        head = file.read(512)
    if not head:
        raise WeightsError(f'{path} is empty (0 bytes); download it again')
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise WeightsError(
            f'{path} is a web page saved under the name of a weight file; the server '
            'answered with a login, confirmation or error page: download it again'
        )
    if text.startswith(b'version https://git-lfs'):
        raise WeightsError(
            f'{path} is a Git LFS pointer, not the weights; fetch it with git lfs pull'
        )
    return head


def _read_zip(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise WeightsError(f'{path} {DAMAGED}') from None
    if any(n.endswith('.npy') for n in names):
        return _read_npz(path), 'npz'
    if any(n.endswith('/constants.pkl') for n in names):
        try:
            return read_torchscript(str(path)), 'TorchScript archive'
        except pickle.UnpicklingError as error:
            raise _refused(path, error) from None
        except BROKEN:
            raise WeightsError(f'{path} {DAMAGED}') from None
    if any(n.endswith('data.pkl') for n in names):
        return _read_torch(path, 'torch zip', mmap=True)
    raise WeightsError(
        f'{path} is a zip archive without weights (it holds {names[:3]}); unpack it '
        'and name the file inside'
    )


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if array.dtype.kind in 'fiub':
                    tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    except ValueError as error:
        if 'allow_pickle' in str(error):
            raise WeightsError(
                f'{path} holds pickled Python objects, which are not opened; save it '
                'with plain arrays'
            ) from None
        raise WeightsError(f'{path} {DAMAGED}') from None
    except (zipfile.BadZipFile, EOFError, OSError):
        raise WeightsError(f'{path} {DAMAGED}') from None
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError:
        raise WeightsError(f'{path} {DAMAGED}') from None


def _read_torch(path: Path, kind: str, mmap: bool) -> tuple[dict[str, Tensor], str]:
    # VideoMAE and other training scripts store their command line beside the
    # weights: a Namespace is a bag of values and runs nothing when rebuilt.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except BROKEN:
        raise WeightsError(f'{path} {DAMAGED}') from None
    tensors, trail = _unwrap(path, content)
    return tensors, ', '.join([kind, *trail])


def _refused(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found is None:
        return WeightsError(f'{path} {DAMAGED}')
    return WeightsError(
        f'{path} needs the Python object {found[1]} to open, which is not allowed; '
        'where you trust the file, save its tensors alone with torch.save'
    )


def _unwrap(path: Path, content: object) -> tuple[dict[str, Tensor], list[str]]:
    trail: list[str] = []
    while isinstance(content, Mapping):
        inner = [w for w in WRAPPERS if isinstance(content.get(w), Mapping)]
        if not inner:
            tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
            return tensors, trail
        trail.append(inner[0])
        content = content[inner[0]]
    where = f' under {".".join(trail)}' if trail else ''
    raise WeightsError(
        f'{path} holds {type(content).__name__}{where}, not a dict of tensors; save '
        "the model's state_dict"
    )
