"""From a file to what is in it. No file is ever allowed to run code."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpetl.compat.archives import (
    DAMAGED_ZIP,
    check_calls,
    check_claims,
    check_expansion,
    check_regular,
    check_sums,
)
from mmpetl.compat.arrays import read_arrays
from mmpetl.compat.loading import BROKEN as ANY_BROKEN
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.core.delta_file import check_kinds
from mmpetl.models.weights.errors import (
    WeightsError,
    WeightsNotFoundError,
    shorten,
)
from mmpetl.models.weights.parts import choose_part
from mmpetl.models.weights.torchscript import read_torchscript

# Refusals of pickle have a message of their own.
BROKEN = tuple(kind for kind in ANY_BROKEN if kind is not pickle.UnpicklingError)
DAMAGED = 'is truncated or damaged; download it again'
SHARD = re.compile(r'-\d{5}-of-(?!00001)(\d{5})(\.\w+)$')
OTHERS = (
    (b'\x89HDF', 'an HDF5 file, as Keras writes it; there is no reader for it here'),
    (b'GGUF', 'a GGUF file of quantised weights; the plain file is needed'),
    (b'\x1f\x8b', 'packed with gzip; unpack it and name the file inside'),
    (b'7z\xbc\xaf', 'a 7z archive; unpack it and name the file inside'),
)
WEIGHTS = ('.index.json', '.npz', '.safetensors', '.pth', '.pt', '.bin')


class Packed(NamedTuple):
    """The weights of a file.

    Attributes:
        tensors: By name, flat.
        container: A word on how they were packed, e.g. ``'torch zip, model'``.
        notes: What the user should know of the choice, where there was one.
    """

    tensors: dict[str, Tensor]
    container: str
    notes: tuple[str, ...] = ()


def read_tensors(path: str | os.PathLike, part: str | None = None) -> Packed:
    """The weights of a file, in whatever it packs them.

    Args:
        path: npz, safetensors, torch or TorchScript file, or the index of a sharded
            one.
        part: Which weights, of a file that has several: ``'teacher'``,
            ``'state_dict_ema'``.

    Raises:
        WeightsNotFoundError: Nothing at ``path``.
        WeightsError: Empty, truncated, a web page, or it asks to run code; or ``part``
            is not in it, or is needed.
    """
    content, kind = open_file(path)
    chosen = choose_part(content, os.fspath(path), part)
    if not chosen.tensors:
        raise WeightsError(f'{path} holds no tensors ({kind})')
    try:
        check_kinds(chosen.tensors)
    except PETLError as error:
        raise WeightsError(f'{path}: {error}') from None
    return Packed(chosen.tensors, ', '.join([kind, *chosen.trail]), chosen.notes)


def open_file(path: str | os.PathLike, piece: bool = False) -> tuple[object, str]:
    """What is in a weight file, and how it is packed.

    The kind of file is told from its content, since names lie: npz, safetensors,
    torch (zip or legacy) and TorchScript archives, and the index of shards.

    Args:
        path: The file.
        piece: Whether it may be one of several: a shard, or an index whose shards are
            not there yet.

    Raises:
        WeightsNotFoundError: Nothing at ``path``.
        WeightsError: Empty, truncated, a web page, or it asks to run code.
    """
    path = Path(path)
    head = _first_bytes(path, piece)
    # First of all: the length in front of its header may read PK or be 0x80, but it
    # has zeros, which text has not.
    if head[8:9] == b'{' and b'\0' in head[:8]:
        return _read_safetensors(path), 'safetensors'
    if head.startswith(b'PK'):
        return _read_zip(path)
    if head.startswith(b'\x80'):
        return _read_torch(path, 'torch legacy', mmap=False)
    if head.lstrip().startswith(b'{'):
        return ({}, 'index') if piece and shards_of(path) else _read_shards(path)
    for start, kind in OTHERS:
        if head.startswith(start):
            raise WeightsError(f'{path} is {kind}')
    raise WeightsError(
        f'{path} is not a weight file: it is neither npz, safetensors nor a torch '
        f'checkpoint (first bytes {head[:8]!r}); check the download'
    )


def sha256_of(path: str | os.PathLike) -> str:
    """Hex digest of a file, or of an index and its shards one after another."""
    path = Path(path)
    digest = hashlib.sha256()
    shards = shards_of(path) if path.name.endswith('.index.json') else []
    for part in (path, *(path.parent / name for name in shards)):
        with part.open('rb') as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _first_bytes(path: Path, piece: bool) -> bytes:
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f'; {near[0]} is there' if near else ''
        raise WeightsNotFoundError(f'No weight file at {path}{hint}')
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(WEIGHTS))
        hint = f': {shorten(inside)} lie in it' if inside else ''
        raise WeightsError(f'{path} is a folder; a weight file is needed{hint}')
    try:
        check_regular(path)
        check_expansion(path)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if not piece and (match := SHARD.search(path.name)):
        raise WeightsError(
            f'{path} is one of {int(match[1])} shards of a file; name their index '
            f'({path.name[: match.start()]}{match[2]}.index.json), which reads them all'
        )
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


def _read_zip(path: Path) -> tuple[object, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGED_ZIP:
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
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        if 'pickled' in str(error):
            raise WeightsError(
                f'{path} holds pickled Python objects, which are not opened; save it '
                'with plain arrays'
            ) from None
        reason = str(error).rpartition('npz file: ')[2]
        raise WeightsError(f'{path} {DAMAGED} ({reason})') from None
    return {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
        if array.dtype.kind in 'fiub'
    }


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *BROKEN):
        raise WeightsError(f'{path} {DAMAGED}') from None


def _read_shards(path: Path) -> tuple[dict[str, Tensor], str]:
    """The shards that an index names, beside it, as one."""
    shards = shards_of(path)
    # Path.is_file() raises where a name is longer than names may be.
    lost = [name for name in shards if not os.path.isfile(path.parent / name)]
    if lost:
        raise WeightsNotFoundError(
            f'{path} is the index of {len(shards)} shards, of which {shorten(lost)} '
            'is not beside it; fetch the whole folder'
        )
    tensors: dict[str, Tensor] = {}
    for name in shards:
        shard = path.parent / name
        try:
            check_expansion(shard)
        except ValueError as error:
            raise WeightsError(str(error)) from None
        if not name.endswith('.safetensors'):
            content, _ = _read_torch(shard, 'torch', mmap=False)
            tensors |= choose_part(content, str(shard)).tensors
        else:
            tensors |= _read_safetensors(shard)
    return tensors, f'{len(shards)} shards'


def shards_of(path: Path) -> list[str]:
    """Names of the files beside an index that it names."""
    try:
        index = read_json(path, dict[str, Any], 'index of shards')
        shards = sorted(set(index['weight_map'].values()))
        named = all(Path(name).name == name for name in shards)
    except (AttributeError, KeyError, TypeError, ValueError):
        shards, named = [], False
    if not shards or not named:
        raise WeightsError(
            f'{path} is JSON, but no index of shards (no weight_map of files beside it)'
        )
    return shards


def _read_torch(path: Path, kind: str, mmap: bool) -> tuple[object, str]:
    try:
        check_calls(path)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    try:
        check_sums(path)
    except ValueError:
        raise WeightsError(f'{path} {DAMAGED}') from None
    # VideoMAE and other training scripts store their command line beside the
    # weights: a Namespace is a bag of values and runs nothing when rebuilt.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except BROKEN:
        raise WeightsError(f'{path} {DAMAGED}') from None
    try:
        check_claims(path, content)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    return content, kind


def _refused(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found is None:
        return WeightsError(f'{path} {DAMAGED}')
    return WeightsError(
        f'{path} needs the Python object {found[1]} to open, which is not allowed; '
        'where you trust the file, save its tensors alone with torch.save'
    )
