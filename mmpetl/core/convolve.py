"""Convolutions as linear maps, for deltas beside one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmpetl.core.site import Site

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve(
    x: Tensor, weight: Tensor, site: Site, bias: Tensor | None = None
) -> Tensor:
    """What a linear map of the patches gives, without writing the patches down.

    Args:
        x: (B, C, *extents), what enters a ``layer.conv``.
        weight: (rows, C * prod(kernel)).
        site: Its kernel, stride, padding and dilation are used.
        bias: (rows,).

    Returns:
        (B, *out_extents, rows).
    """
    run = _CONV[len(site.kernel)]
    weight = weight.view(len(weight), -1, *site.kernel)
    y = run(x, weight, bias, site.stride, site.padding, site.dilation)
    return y.movedim(-1 - len(site.kernel), -1)


def places_of(x: Tensor, site: Site) -> Tensor:
    """What a ``layer.conv`` sees at each of its places.

    Args:
        x: (B, C, *extents).
        site: The layer.

    Returns:
        (B, *out_extents, C * prod(kernel)), in the order of ``weight.flatten(1)``.
    """
    n = len(site.kernel)
    pads = [p for p in reversed(site.padding) for _ in range(2)]
    x = F.pad(x, pads) if any(pads) else x
    first = x.ndim - n
    for i, (size, step, gap) in enumerate(
        zip(site.kernel, site.stride, site.dilation, strict=True)
    ):
        x = x.unfold(first + i, (size - 1) * gap + 1, step)[..., ::gap]
    return x.movedim(first - 1, -1 - n).flatten(-1 - n)
