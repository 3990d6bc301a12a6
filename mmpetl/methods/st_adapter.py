"""ST-Adapter: a bottleneck that looks at the frames in front and behind.

Paper: Pan et al., "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning",
NeurIPS 2022, https://arxiv.org/abs/2206.13559, section 3.
Differs from the authors' code: nothing in the algebra. Theirs is for an image trunk
with frames in the batch, ``mmpetl.FrameBackbone`` here; trunks with time as an axis of
the grid, as VideoMAE and Video Swin, are ours. Images by themselves are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    on_volumes,
)
from mmpetl.registry import METHODS

STYLES = {'ffn': ('attn.sum',), 'both': ('block', 'attn.sum')}


class VolumeBottleneck(Delta):
    """``update(x) = fc2(conv(fc1 x))`` on the grid; no activation.

    x: (B, num_prefix + T*H*W, C), or (B * T, num_prefix + H*W, C) where frames are
    images of the batch. The convolution is depth-wise over (T, H, W); what stands in
    front of the grid passes. Both biases and the convolution start at zero, so that the
    model is unchanged at step 0, and the convolution moves first.
    """

    def __init__(
        self, dims: int, hidden_dims: int, kernel_size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.conv = nn.Conv3d(
            hidden_dims,
            hidden_dims,
            kernel_size,
            padding=tuple(k // 2 for k in kernel_size),
            groups=hidden_dims,
        )
        self.fc2 = nn.Linear(hidden_dims, dims)
        for tensor in (
            self.conv.weight,
            self.conv.bias,
            self.fc1.bias,
            self.fc2.bias,
        ):
            nn.init.zeros_(tensor)

    def added(self, x: Tensor, ctx: Context) -> Tensor:
        """The stream with the update on its grid, of the same shape."""
        return on_volumes(self.moved, x, ctx)

    def moved(self, volume: Tensor) -> Tensor:
        """(clips, C, T, H, W) -> the same shape."""
        hidden = self.fc1(volume.movedim(1, -1)).movedim(-1, 1)
        return volume + self.fc2(self.conv(hidden).movedim(1, -1)).movedim(-1, 1)


class EntryDelta(VolumeBottleneck):
    """On the stream that enters a block, in front of norm and shortcut of attention."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return self.added(x, ctx)


class SumDelta(VolumeBottleneck):
    """On the stream behind attention, in front of norm and shortcut of the network."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.added(y, ctx)


@METHODS.register_module()
class STAdapter(Method):
    """Spatio-temporal adapter.

    Args:
        style: Where it stands: ``'ffn'`` in front of the feed-forward network, the
            paper's 12 x 384 on ViT-B; ``'both'`` also in front of attention, its
            24 x 384.
        hidden_dims: Width between the projections, >= 1; 384 in the paper.
        kernel_size: Extents of the convolution over time, height and width, each odd;
            (3, 1, 1) in the paper.
    """

    targets = ('attn.sum',)
    family = 'adapter'
    reads_grid = True
    along_time = True
    sized = ('hidden_dims',)

    def __init__(
        self,
        style: Literal['ffn', 'both'] = 'ffn',
        hidden_dims: int = 384,
        kernel_size: Sequence[int] = (3, 1, 1),
    ) -> None:
        if style not in STYLES:
            raise PETLError(
                f'STAdapter needs style {" or ".join(STYLES)}, got {style!r}'
            )
        check_range(self, 'hidden_dims', hidden_dims, 1)
        kernel_size = tuple(kernel_size)
        if len(kernel_size) != 3 or any(k < 1 or k % 2 == 0 for k in kernel_size):
            raise PETLError(
                'STAdapter needs a kernel_size of three odd extents, over time, height '
                f'and width, got {kernel_size}'
            )
        self.style = style
        self.hidden_dims = hidden_dims
        self.kernel_size = kernel_size
        self.targets = STYLES[style]

    def build(self, site: Site) -> VolumeBottleneck:
        cls = EntryDelta if site.kind == 'block' else SumDelta
        return cls(site.out_dims, self.hidden_dims, self.kernel_size)
