"""A pyramid of maps from the last map of a plain transformer.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection"
(https://arxiv.org/abs/2203.16527), section 3, "simple feature pyramid": all levels come
from the last map by themselves, with no way from one level to another. What the paper
puts behind each level, convolutions of 1 and 3 pixels, is the FPN's or the head's here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.registry import MODELS


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """Maps of other resolutions: 2x and 4x by deconvolutions, 1/2x by pooling.

    ``4`` is ``deconv(GELU(LN(deconv(x))))``, ``2`` is ``deconv(x)``, with kernels of 2
    and strides of 2; ``1`` is ``x``, ``0.5`` its maxima of 2 x 2. A deconvolution
    halves the width.

    Args:
        in_channels: Width of the map.
        scales: Of the levels, a power of two each, 0.5 to 4; the finest first.
        init_cfg: As in every module of MMEngine.

    Raises:
        PETLError: A scale is none of these, or the width cannot be halved so often.
    """

    def __init__(
        self,
        in_channels: int,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        known = {0.5, 1, 2, 4}
        if not scales or set(scales) - known:
            raise PETLError(f'scales are of 0.5, 1, 2 and 4, got {list(scales)}')
        self.out_channels = pyramid_widths(in_channels, scales)
        self.levels = nn.ModuleList(_level(in_channels, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of maps (B, C, H, W) the last, at each scale."""
        return tuple(level(maps[-1]) for level in self.levels)


def pyramid_widths(in_channels: int, scales: Sequence[float]) -> list[int]:
    """Width of each level.

    Raises:
        PETLError: The width cannot be halved so often.
    """
    most = max(1, int(max(scales)))
    if in_channels % most:
        raise PETLError(f'a width of {in_channels} cannot be divided by {most}')
    return [in_channels // max(1, int(scale)) for scale in scales]


def _level(width: int, scale: float) -> nn.Module:
    if scale == 0.5:
        return nn.MaxPool2d(2)
    steps: list[nn.Module] = []
    for i in range(int(math.log2(scale))):
        if i:
            # One group over channels and places, where the paper norms each place.
            steps += [nn.GroupNorm(1, width), nn.GELU()]
        steps.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    return nn.Sequential(*steps)
