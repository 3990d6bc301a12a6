"""The model of a run as an ONNX file, run once beside the model."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.apis.estimate import frames_of
from mmpetl.compat.extras import pip_line
from mmpetl.config.nodes import sides_made, test_pipeline
from mmpetl.core import PETLError
from mmpetl.core import fold as fold_into_base
from mmpetl.core.delta_file import write_all

BATCH = 2
"""A batch of one would stay one: PyTorch takes it for a number that does not vary."""


@dataclass(frozen=True)
class OnnxFile:
    """What has been written.

    Attributes:
        path: The file.
        inputs: Shape of each input by name, a word for what may vary.
        outputs: Likewise.
        gap: Largest difference from the model over the largest value, for another batch
            than that of the trace; None where nothing that runs the file is installed.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    gap: float | None


class Scores(nn.Module):
    """A model of OpenMMLab as a function of pictures: its mode ``tensor``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Any:
        """(B, 3, H, W), normalised, to tensors with a picture in every row."""
        return self.model(pictures, mode='tensor')


def export_onnx(
    model: nn.Module,
    out: str | os.PathLike,
    size: tuple[int, int] | None = None,
    *,
    fold: bool = False,
) -> OnnxFile:
    """Write a model of :func:`mmpetl.apis.init_model` as an ONNX file.

    Args:
        model: The model, which takes pictures. Folding changes it.
        out: The file.
        size: Height and width of the pictures; those of the test pipeline where None.
        fold: Whether the delta is folded into the base first.

    Returns:
        What the file takes and gives, and how near it comes to the model.

    Raises:
        PETLError: The packages are not installed, nobody says how large pictures are,
            the model takes clips, or something in it has no form in ONNX.
    """
    if not all(map(find_spec, ('onnx', 'onnxscript'))):
        raise PETLError(f'ONNX files need onnx and onnxscript: {pip_line("onnx")}')
    config = model.cfg
    if frames_of(config):
        raise PETLError('the model takes clips; pictures alone can be exported by name')
    sides = tuple(size or sides_made(test_pipeline(config)) or ())
    if not sides:
        raise PETLError(
            'no step of the test pipeline says how large its pictures are; say it: '
            '--size 224 224'
        )
    if fold:
        fold_into_base(model)
    scores = Scores(model).eval()
    pictures = torch.randn(BATCH, 3, *sides)
    with _silent():
        try:
            program = torch.onnx.export(
                scores,
                (pictures,),
                dynamo=True,
                verbose=False,
                input_names=['pictures'],
                dynamic_shapes=({0: torch.export.Dim('batch')},),
            )
        except PETLError:
            raise
        except Exception as error:  # of the tracer, the exporter and its passes
            why = ' '.join(str(error).split())[:200]
            raise PETLError(
                f'{type(model).__name__} has no form in ONNX: {why}'
            ) from None
    found = program.model_proto
    content = found.SerializeToString()
    path = Path(out)
    write_all({path: content})
    return OnnxFile(
        path,
        {value.name: _shape(value) for value in found.graph.input},
        {value.name: _shape(value) for value in found.graph.output},
        _gap(scores, content, torch.randn(BATCH + 1, 3, *sides)),
    )


def _shape(value: Any) -> tuple[int | str, ...]:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_param or side.dim_value for side in sides)


@torch.no_grad()
def _gap(scores: nn.Module, content: bytes, pictures: Tensor) -> float | None:
    """How far the file is from the model, relative to its largest value."""
    if find_spec('onnxruntime') is None:
        return None
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=['CPUExecutionProvider'])
    found = session.run(None, {'pictures': pictures.numpy()})
    wanted = list(_tensors(scores(pictures)))
    gaps = [_apart(torch.from_numpy(y), z) for y, z in zip(found, wanted, strict=True)]
    return float(torch.tensor(gaps).max())  # which is NaN where one of them is


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value; 0 of equals, whatever their size."""
    gap = float((found - wanted).abs().max())
    size = float(wanted.abs().max())
    return gap / size if size else (gap and math.inf)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts:
        yield from _tensors(part)


@contextmanager
def _silent() -> Iterator[None]:
    """Exporters log every pass; what fails is raised."""
    names = ('torch.onnx', 'onnxscript', 'onnx_ir')
    loggers = {name: logging.getLogger(name) for name in names}
    levels = {name: logger.level for name, logger in loggers.items()}
    try:
        for logger in loggers.values():
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
