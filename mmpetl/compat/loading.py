"""Reading files of tensors without letting them run code."""

from __future__ import annotations

import os
import pickle
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from .archives import (
    DAMAGED_ZIP,
    check_calls,
    check_claims,
    check_expansion,
    check_regular,
    check_sums,
)

BROKEN = (
    *DAMAGED_ZIP,
    ArithmeticError,
    AssertionError,
    AttributeError,
    MemoryError,
    SyntaxError,
    TypeError,
    pickle.UnpicklingError,
    tokenize.TokenError,
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


def _array(*_: Any) -> Any:
    """What ``numpy.ndarray`` is read as: a name, for a call of it asks for memory."""
    raise pickle.UnpicklingError('refused: numpy.ndarray is called')


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy's function of this name is read as: an empty array to be filled."""
    if kind not in (_array, np.ndarray) or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f'refused: an array of kind {kind!r} {shape!r}')
    return np.ndarray((0,), 'b')


def _no_bytes() -> bytes:
    """What ``bytes`` is read as: those of an empty array, which alone name it."""
    return b''


def _dtype(name: Any, *_: Any) -> np.dtype:
    """What ``numpy.dtype`` is read as: numbers of the usual widths, no records."""
    try:
        # A copy, for what is filled next must not be numpy's own.
        dtype = np.dtype(name, copy=True) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in _NUMPY_DTYPES:
        raise pickle.UnpicklingError(f'refused: numpy.dtype {name!r}')
    return dtype


def _scalar(dtype: Any, data: Any = None) -> Any:
    """What numpy's function of this name is read as: a number of its bytes."""
    whole = isinstance(dtype, np.dtype) and dtype.name in _NUMPY_DTYPES
    data = data.encode('latin-1') if isinstance(data, str) else data
    if not whole or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError(f'refused: a scalar of {dtype!r}')
    return np.frombuffer(data, dtype)[0]


def allow_mmengine_types() -> None:
    """Let ``weights_only`` loading accept what MMEngine's Runner writes.

    Runner's checkpoints hold a message hub: ``HistoryBuffer`` objects and the numpy
    arrays and scalars inside them. They are data; none of the types runs code.
    """
    HistoryBuffer()  # registers the statistics, which a fresh process has not yet
    allowed: list[Any] = [
        HistoryBuffer,
        (_statistic, 'builtins.getattr'),
        (_statistic, '__builtin__.getattr'),
        # Filling asks whether the class is allowed; a file cannot say a name without
        # a dot, so that it reaches none of these by name.
        (np.ndarray, 'ndarray'),
        (_array, 'numpy.ndarray'),
        (_dtype, 'numpy.dtype'),
        (_no_bytes, '__builtin__.bytes'),
        (_no_bytes, 'builtins.bytes'),
        *(type(np.dtype(name)) for name in _NUMPY_DTYPES),
    ]
    # numpy 1 and 2 write these two under different names; both must load under both.
    for function, name in ((_reconstruct, '_reconstruct'), (_scalar, 'scalar')):
        for package in ('numpy.core', 'numpy._core'):
            allowed.append((function, f'{package}.multiarray.{name}'))
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
    check_calls(path)
    check_sums(path)
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
