"""Reading files of tensors without letting them run code."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from .archives import check_claims, check_expansion, check_regular

BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What torch, numpy, zipfile and pickle answer a cut, garbled or hostile file with."""

# What a HistoryBuffer pickles into: two arrays, and scalars of any width beside them.
_NUMPY_DTYPES = ('bool', 'int32', 'int64', 'uint8', 'float16', 'float32', 'float64')


def _statistic(owner: Any, name: str) -> Any:
    """What ``getattr`` is read as: a registered statistic of HistoryBuffer, no more.

    A HistoryBuffer pickles its statistics as ``getattr(HistoryBuffer, 'mean')``. The
    real getattr would hand a file the means to reach any function in the process.
    """
    if owner is HistoryBuffer and name in HistoryBuffer._statistics_methods:
        return HistoryBuffer._statistics_methods[name]
    raise pickle.UnpicklingError(f'refused: attribute {name!r} of {owner!r}')


def allow_mmengine_types() -> None:
    """Let ``weights_only`` loading accept what MMEngine's Runner writes.

    Runner's checkpoints hold a message hub: ``HistoryBuffer`` objects and the numpy
    arrays and scalars inside them. They are data; none of the types runs code.
    """
    HistoryBuffer()  # registers the statistics, which a fresh process has not yet
    core = np._core if hasattr(np, '_core') else np.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    allowed: list[Any] = [
        HistoryBuffer,
        (_statistic, 'builtins.getattr'),
        (_statistic, '__builtin__.getattr'),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in _NUMPY_DTYPES),
    ]
    # numpy 1 and 2 write these two under different names; both must load under both.
    for function in (reconstruct, scalar):
        for package in ('numpy.core', 'numpy._core'):
            allowed.append((function, f'{package}.multiarray.{function.__name__}'))
    torch.serialization.add_safe_globals(allowed)


def load_file(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Load a torch file, tensors and plain data only, whatever torch's default is.

    Args:
        path: The file.
        map_location: As in ``torch.load``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else than data, is damaged, or asks for
            more memory than it could fill.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'no such file: {path}')
    check_regular(path)
    check_expansion(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except BROKEN as error:
        first_line = str(error).strip().partition('\n')[0] or type(error).__name__
        raise ValueError(
            f'{path} cannot be loaded as plain tensors and data: {first_line} '
            '(the file is damaged, or holds objects that loading would have to run)'
        ) from error
    check_claims(path, content)
    return content
