"""Pictures and labels of an npz file, whose headers are looked at before."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mmpetl.compat.arrays import Header, array_header
from mmpetl.compat.loading import BROKEN
from mmpetl.core import PETLError
from mmpetl.core.boundary import regular_file

_FREE = 1 << 30
_RATIO = 100
"""Arrays of more than a GiB that are packed to less than a hundredth are a bomb."""


def read_examples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``images`` (N, H, W) or (N, H, W, C) uint8, and ``labels`` (N,), integers.

    Args:
        path: An npz file.

    Raises:
        PETLError: There is none, it is none, its arrays have other types or shapes,
            or say more than the file holds.
    """
    try:
        regular_file(path, 'npz file')
        with zipfile.ZipFile(path) as archive:
            images = _header(archive, 'images')
            labels = _header(archive, 'labels')
            _check(path, images, labels)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays['images'], arrays['labels']
    except FileNotFoundError:
        raise PETLError(f'there is no {path}') from None
    except PETLError as error:
        if str(path) in str(error):
            raise
        raise _none(path, error) from None
    except MemoryError:
        raise PETLError(f'{path} needs more memory than there is') from None
    except BROKEN as error:
        raise _none(path, error) from None


def _none(path: Path, error: Exception) -> PETLError:
    return PETLError(f"{path} is no npz file with plain 'images' and 'labels': {error}")


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    """Shape and type of an array, of which the file holds every byte."""
    found = array_header(archive, name)
    if found.bytes > _FREE and found.bytes > _RATIO * found.packed:
        raise PETLError(
            f'{name} unpacks from {found.packed:,} to {found.bytes:,} bytes, more '
            f'than {_RATIO} times; save it with numpy.savez'
        )
    return found


def _check(path: Path, images: Header, labels: Header) -> None:
    wanted = (
        'wanted are uint8 images (N, H, W) or (N, H, W, C), C of 1 or 3, and as many '
        'integer labels (N,)'
    )
    fits = (
        images.dtype == np.uint8
        and len(images.shape) in (3, 4)
        and (len(images.shape) == 3 or images.shape[3] in (1, 3))
        and 0 not in images.shape
        and labels.dtype.kind in 'iu'
        and len(labels.shape) == 1
        and labels.shape[0] == images.shape[0]
    )
    if not fits:
        raise PETLError(
            f'{path} holds images {images.dtype} {images.shape} and labels '
            f'{labels.dtype} {labels.shape}; {wanted}'
        )
