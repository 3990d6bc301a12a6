"""A classification head of a few bits per entry: the "Bi-Head" of Bi-AdaptFormer.

Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the Perspective
of Precision Redundancy", https://arxiv.org/abs/2307.16867, and their public code.
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.heads import LinearClsHead

from mmpetl.core import kaiming_uniform_
from mmpetl.core.few_bits import FewBits
from mmpetl.core.packing import check_bits


class FewBitsHead(LinearClsHead):
    """``W' x`` without a bias, W' as in :class:`~mmpetl.core.few_bits.FewBits`.

    Args:
        num_classes: Outputs.
        in_channels: Width of the feature.
        bits: Bits of each entry: 1, 2, 4 or 8.
        kwargs: Of mmpretrain's ``LinearClsHead``.
    """

    def __init__(
        self, num_classes: int, in_channels: int, bits: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        check_bits(self, bits)
        weight = torch.empty(num_classes, in_channels)
        kaiming_uniform_(weight)
        self.fc = FewBits(weight, bits)
