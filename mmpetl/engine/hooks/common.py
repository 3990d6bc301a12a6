"""What several hooks need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def plain_model(runner: Runner) -> nn.Module:
    """The runner's model without a distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def plain_value(value: Any) -> Any:
    """A metric as JSON has it: a number, None, text, or lists of these.

    Metrics of MMEngine may be tensors, arrays, one number per class, or absent.
    """
    if hasattr(value, 'tolist'):  # tensors, arrays and numpy's scalars
        value = value.tolist()
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if value is None or isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def as_number(value: Any) -> float | None:
    """A metric as a number, NaN included; None where it is none or several."""
    value = plain_value(value)
    return value if isinstance(value, float) else None


def finite(value: Any) -> Any:
    """The same data with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
