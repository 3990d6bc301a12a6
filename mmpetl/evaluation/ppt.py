"""PPT, the performance-parameter trade-off of V-PETL Bench."""

from __future__ import annotations

import math


def ppt(score: float, num_params: int, scale: float = 1e7) -> float:
    """``score * exp(-log10(num_params / scale + 1))``.

    Args:
        score: Accuracy, AP or mIoU in [0, 1].
        num_params: Trainable parameters of the backbone, heads excluded.
        scale: The benchmark's constant C, 10 million.

    Returns:
        PPT in [0, 1]; it equals ``score`` where nothing in the backbone trains.
    """
    if not 0 <= score <= 1:
        raise ValueError(f'PPT takes a score in [0, 1], got {score}')
    if num_params < 0:
        raise ValueError(f'PPT takes a number of parameters, got {num_params}')
    return score * math.exp(-math.log10(num_params / scale + 1))
