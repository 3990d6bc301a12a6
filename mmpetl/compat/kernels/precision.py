"""The precision that kernels compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """float32 for half precision on CPU, where torchvision has no half kernels."""
    if tensor.device.type == 'cpu' and tensor.dtype in (torch.half, torch.bfloat16):
        return tensor.float()
    return tensor
