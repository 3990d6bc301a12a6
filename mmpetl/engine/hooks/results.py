"""What evaluators keep of every test sample, so that their metrics can be recomputed.

A classifier leaves its logits (:mod:`mmpetl.engine.hooks.predictions`). Of dense tasks
the pictures' outputs would be gigabytes; what an evaluator has counted of each picture
is small: areas per class for mIoU, boxes with scores and run-length masks for AP, sums
of errors for depth. That is what stands here, and the evaluator's own
``compute_metrics`` turns it into metrics again.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmpetl.core import PETLError
from mmpetl.core.boundary import parse_json, read_bytes, text_limit
from mmpetl.core.delta_file import to_data
from mmpetl.core.part_files import part_name
from mmpetl.engine.hooks.predictions import PredictionsHook
from mmpetl.registry import HOOKS

FORMAT = 1
TAGS = ('array', 'bytes', 'dict', 'tensor', 'tuple')
"""Keys that stand alone in an object for what JSON has no word for."""

KINDS = ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64')
KINDS += ('float16', 'float32', 'float64')
"""Numbers that an array may hold."""

META = ('classes', 'dataset_type', 'subset')
"""What evaluators ask of a data set."""


class OfMetric(msgspec.Struct, forbid_unknown_fields=True):
    """What one evaluator kept.

    Attributes:
        type: Its class.
        results: An item for each sample.
    """

    type: str
    results: list[Any]


class Results(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds.

    Attributes:
        format: Of the file.
        meta: What the evaluators were told of the data set.
        metrics: One for each evaluator, in the order of the config.
    """

    format: int
    meta: dict[str, Any]
    metrics: list[OfMetric]


@HOOKS.register_module()
class ResultsHook(Hook):
    """Writes what the test evaluators kept of the samples, as gzipped JSON.

    The file is whole or absent, and the same bytes for the same results. Where the run
    leaves predictions, which say more, there is no such file; nor where an evaluator
    keeps what :func:`pack` does not know, which is logged.

    Args:
        path: The file.
    """

    # Behind PredictionsHook, which stands in front of it with the same priority.
    priority = 'LOW'

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._kept: list[OfMetric] = []

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        loop = runner.test_loop
        if batch_idx + 1 < len(loop.dataloader) or _predicts(runner):
            return
        size = len(loop.dataloader.dataset)
        self._kept = []
        try:
            # Packed now: compute_metrics changes the items that it is given.
            packed = [[pack(r) for r in m.results] for m in loop.evaluator.metrics]
        except PETLError as error:
            runner.logger.warning(f'{error}; its metrics follow from the delta only')
            return
        for metric, items in zip(loop.evaluator.metrics, packed, strict=True):
            whole = collect_results(items, size)
            if whole is not None:
                self._kept.append(OfMetric(type(metric).__name__, whole))

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        kept, self._kept = self._kept, []
        if not is_main_process() or not kept:
            return
        known = runner.test_loop.evaluator.dataset_meta or {}
        meta = {key: to_data(known[key]) for key in META if known.get(key)}
        write_results(self.path, Results(FORMAT, meta, kept))


def _predicts(runner: Runner) -> bool:
    """Whether the run leaves predictions."""
    return any(isinstance(h, PredictionsHook) and h.watches for h in runner.hooks)


def write_results(path: Path, results: Results) -> None:
    """Write a file of results, whole or not at all."""
    text = json.dumps(msgspec.to_builtins(results), separators=(',', ':'))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_name(path)
    with open(part, 'wb') as file:
        # Without the time of writing, so that equal runs leave equal bytes.
        file.write(gzip.compress(text.encode(), 9, mtime=0))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_results(path: str | os.PathLike) -> Results:
    """What evaluators kept, items packed as :func:`pack` packs them.

    Raises:
        FileNotFoundError: There is no such file.
        PETLError: It is damaged, too large, or holds something else.
    """
    packed = read_bytes(path, 'file of results')
    limit = text_limit()
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(packed, limit + 1)
    except zlib.error as error:
        raise PETLError(f'{path} is damaged or no gzip ({error})') from None
    if len(data) > limit:
        raise PETLError(
            f'{path} holds more than {limit >> 20} MiB of text; '
            'MMPETL_MAX_TEXT_MIB=N raises the limit'
        )
    if not stream.eof or stream.unused_data:
        raise PETLError(f'{path} is cut off, or has something behind its end')
    found = parse_json(data, Results, f'{path}')
    if found.format != FORMAT:
        raise PETLError(
            f'{path} has format {found.format}; this mmpetl reads format {FORMAT}'
        )
    return found


def pack(value: Any) -> Any:
    """Results as JSON has them; :func:`unpack` gives the same back, bit for bit.

    Raises:
        PETLError: A value is none that an evaluator's results are known to have.
    """
    if isinstance(value, Tensor):
        return {'tensor': _packed(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray | np.generic):
        return {'array': _packed(np.asarray(value))}
    if isinstance(value, bytes):
        return {'bytes': base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {'tuple': [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, Mapping):
        inner = {str(key): pack(item) for key, item in value.items()}
        return {'dict': inner} if len(inner) == 1 and set(inner) <= set(TAGS) else inner
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PETLError(
        f'an evaluator keeps a {type(value).__name__}, which no file of results holds'
    )


def unpack(value: Any) -> Any:
    """What :func:`pack` was given; arrays of numpy for numbers of numpy.

    Raises:
        PETLError: An array is not what it says of itself.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else None
    if tag not in TAGS:
        return {key: unpack(item) for key, item in value.items()}
    inner = value[tag]
    if tag == 'dict' and isinstance(inner, dict):
        return {key: unpack(item) for key, item in inner.items()}
    if tag == 'tuple' and isinstance(inner, list):
        return tuple(unpack(item) for item in inner)
    if tag == 'bytes' and isinstance(inner, str):
        return _decoded(inner)
    if tag in ('array', 'tensor') and isinstance(inner, list) and len(inner) == 3:
        array = _unpacked(*inner)
        return torch.from_numpy(array) if tag == 'tensor' else array
    raise PETLError(f'a file of results holds {tag!r} of {type(inner).__name__}')


def _packed(array: np.ndarray) -> list[Any]:
    kind = array.dtype.name
    if kind not in KINDS:
        raise PETLError(f'an evaluator keeps {kind}, which no file of results holds')
    data = np.ascontiguousarray(array, array.dtype.newbyteorder('<')).tobytes()
    return [kind, list(array.shape), base64.b64encode(data).decode()]


def _unpacked(kind: Any, shape: Any, text: Any) -> np.ndarray:
    sizes = shape if isinstance(shape, list) else [-1]
    fits = kind in KINDS and isinstance(text, str)
    if not fits or any(type(n) is not int or n < 0 for n in sizes):
        raise PETLError(f'a file of results holds no array of {kind!r} {shape!r}')
    data, dtype = _decoded(text), np.dtype(kind).newbyteorder('<')
    if len(data) != dtype.itemsize * math.prod(sizes):
        raise PETLError(
            f'a file of results says {kind} {sizes} of an array of {len(data)} bytes'
        )
    if not data:
        return np.zeros(sizes, kind)
    return np.frombuffer(data, dtype).astype(kind).reshape(sizes)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PETLError(f'a file of results holds bad base64 ({error})') from None


def scored(evaluators: Sequence[Any], results: Results) -> dict[str, Any]:
    """The metrics of evaluators from what they kept.

    Args:
        evaluators: As the config has built them, in its order.
        results: What the file holds.

    Raises:
        PETLError: The file is of other evaluators.
    """
    here = [type(metric).__name__ for metric in evaluators]
    there = [kept.type for kept in results.metrics]
    if here != there:
        raise PETLError(
            f'the results are of {", ".join(there)}, the config has {", ".join(here)}'
        )
    found: dict[str, Any] = {}
    for metric, kept in zip(evaluators, results.metrics, strict=True):
        metric.results = [unpack(item) for item in kept.results]
        found |= metric.evaluate(len(metric.results))
    return found
