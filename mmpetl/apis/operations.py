"""Floating-point operations of a config's model for one input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmpetl.analysis.costs import flops_of
from mmpetl.apis.building import build_model
from mmpetl.apis.counting import without_files
from mmpetl.apis.estimate import input_shape, sample_maker
from mmpetl.config.load import as_config
from mmpetl.config.nodes import sides_made, test_pipeline
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError


@dataclass(frozen=True)
class OperationCount:
    """What one pass computes.

    Attributes:
        flops: Operations, two for each multiplication with its addition, of matrix
            products, convolutions and attention, fused attention included.
        shape: Of the input, without the batch: (3, H, W), (1, 3, T, H, W) of a clip, or
            (clips * T, 3, H, W) of frames that a trunk of pictures reads.
        parameters: Of the whole model.
        trainable: Those of them that train.
    """

    flops: int
    shape: tuple[int, ...]
    parameters: int
    trainable: int


def count_operations(config: Any, size: Sequence[int] | None = None) -> OperationCount:
    """Operations of one pass of a config's model, head included, on the CPU.

    Args:
        config: Path or ``Config``.
        size: Height and width of the input in pixels; by default what the test
            pipeline makes.

    Raises:
        PETLError: No size is said, or the model takes no input of that size.
    """
    config = as_config(config)
    sides = tuple(size or sides_made(test_pipeline(config)) or ())
    if len(sides) != 2 or min(sides) < 1:
        raise PETLError(
            'no step of the test pipeline says how large its pictures are; say it: '
            '--shape 224 224'
        )
    shape = input_shape(config, sides)
    config = without_files(config)
    model = build_model(config, quiet=True)
    scope = config.get('default_scope')
    # mmaction2 computes the trunk alone unless it is told how far to go.
    further = {'stage': 'head'} if scope == 'mmaction' else {}
    sample = sample_maker(model, sides)() if scope == 'mmdet' else None

    def compute() -> None:
        data = {
            'inputs': [torch.zeros(shape, dtype=torch.uint8)],
            'data_samples': None if sample is None else [sample],
        }
        ready = model.data_preprocessor(data, training=False)
        model(ready['inputs'], ready['data_samples'], mode='tensor', **further)

    with scope_of(config), torch.no_grad():
        try:
            flops = flops_of(compute)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise PETLError(
                f'{type(model).__name__} takes no input of {shape}: {reason}'
            ) from None
    params = list(model.parameters())
    return OperationCount(
        flops,
        shape,
        sum(p.numel() for p in params),
        sum(p.numel() for p in params if p.requires_grad),
    )
