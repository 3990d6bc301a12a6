"""AIM: an image transformer reads clips, its frozen attention looking along time too.

Paper: Yang et al., "AIM: Adapting Image Models for Efficient Video Action Recognition",
ICLR 2023, https://arxiv.org/abs/2302.03024, section 3.
Differs from the authors' code: stochastic depth drops the branches of whole clips, not
those of a token in all clips of a batch; the temporal embedding joins what enters the
first block, in CLIP behind its first norm; and the last norm stays frozen. On Swin the
formula of the paper holds in every block: along time a token looks at all frames, in no
window, and frames have no relative positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    drop_path,
)
from mmpetl.core.bottleneck import Bottleneck
from mmpetl.registry import METHODS


class FrameTable(Delta):
    """``x + E[t]``: which frame of its clip a token is of.

    x: (B * T, N, C), every token; E: (T, C), zero at the start.
    """

    def __init__(self, dims: int, num_frames: int) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.zeros(num_frames, dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        clips = y.unflatten(0, (-1, len(self.E)))
        return (clips + self.E[:, None]).flatten(0, 1)


class AIMDelta(Bottleneck):
    """``A(z) = gelu(z Wd^T + bd) Wu^T + bu``, zero at the start.

    Args:
        dims: Width of the features.
        hidden_dims: Width in between.
        drop_path_rate: Stochastic depth, by clips.
    """

    def __init__(
        self, dims: int, hidden_dims: int, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(dims, hidden_dims, 'gelu', 0.0)
        self.drop_path_rate = drop_path_rate
        nn.init.trunc_normal_(self.down.weight, std=0.02)

    def dropped(self, update: Tensor, ctx: Context) -> Tensor:
        """The update (B * T, N, C), that of some clips at zero in training."""
        if not self.training or not self.drop_path_rate:
            return update
        clips = update.unflatten(0, (-1, ctx.frames))
        return drop_path(clips, self.drop_path_rate).flatten(0, 1)


class SpatialDelta(AIMDelta):
    """``y + A(y)``.  y: (B * T, N, C), what leaves attention."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.update(y)


class JointDelta(AIMDelta):
    """``y + scale * A(x)``, beside the feed-forward network on its input."""

    scale: float

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.dropped(self.scale * self.update(x), ctx)


class TemporalDelta(AIMDelta):
    """``x + A(attn(norm1(x')))``, x' being the frames of each token, in their order.

    x: (B * T, N, C), x': (B * N, T, C). Norm and attention are those of the block,
    without its windows where it has some: a token looks at all of its frames. With an
    adapter in front of attention it is ``A(attn(h + A_in(h)))``, ``h = norm1(x')``.

    Args:
        dims: Width of the features.
        hidden_dims: Width in between.
        drop_path_rate: Stochastic depth, by clips.
        two: Whether there is an adapter in front of attention too.
    """

    def __init__(
        self, dims: int, hidden_dims: int, drop_path_rate: float, two: bool
    ) -> None:
        super().__init__(dims, hidden_dims, drop_path_rate)
        self.front = AIMDelta(dims, hidden_dims) if two else None

    def entering(self, h: Tensor) -> Tensor:
        """What enters attention of the normed sequence, in its dtype."""
        own = self.own(h)
        return (own + self.front.update(own)).to(h.dtype)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        tokens, frames = x.shape[1], ctx.frames
        inside = ctx.apart(frames)
        inside.silent |= {self.slot}
        along = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        entering = None if self.front is None else self.entering
        seen = self.own(ctx.attend(along, inside, entering))
        update = self.update(seen).unflatten(0, (-1, tokens))
        return x + self.dropped(update.transpose(1, 2).flatten(0, 1), ctx)


@METHODS.register_module()
class AIM(Method):
    """AIM, for transformers of images on the frames of clips.

    Args:
        reduction: Width over hidden width of the adapters, 1 <= r <= width; 4 in the
            paper.
        scale: Factor of the adapter beside the feed-forward network, 0.5 in the paper.
        num_temporal: Adapters of the temporal part: 1 behind attention, 2 also in front
            of it, as the authors' code has it for Something-Something.
        drop_path: Stochastic depth of the temporal and the joint adapters in the last
            block, growing linearly from 0 in the first; 0.2 in the paper.
    """

    targets = ('embed', 'block', 'attn', 'ffn')
    family = 'adapter'
    requires = ('attn.qkv',)
    along_time = True

    def __init__(
        self,
        reduction: int = 4,
        scale: float = 0.5,
        num_temporal: int = 1,
        drop_path: float = 0.2,
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'num_temporal', num_temporal, 1, 2)
        check_range(self, 'drop_path', drop_path, 0, 1)
        self.reduction = reduction
        self.scale = scale
        self.num_temporal = num_temporal
        self.drop_path = drop_path

    def choose(self, sites: list[Site]) -> list[Site]:
        chosen = super().choose(sites)
        for site in chosen:
            if site.timed:
                raise PETLError(
                    f'AIM lets attention of an image transformer look along time, and '
                    f'at {site} time is an axis of the grid, which attention sees '
                    'anyway; take a trunk of images with mmpetl.FrameBackbone around '
                    'it (docs/methods/aim.md)'
                )
        return chosen

    def check(self, sites: list[Site]) -> None:
        narrow = min(sites, key=lambda site: site.out_dims)
        if narrow.out_dims < self.reduction:
            raise PETLError(
                f'AIM needs a reduction of at most the width, {narrow.out_dims} at '
                f'{narrow}, got {self.reduction}'
            )

    def build(self, site: Site) -> Delta:
        dims = site.out_dims
        if site.kind == 'embed':
            return FrameTable(dims, site.frames)
        widths = dims, dims // self.reduction
        if site.kind == 'attn':
            return SpatialDelta(*widths)
        depth = max(site.num_blocks - 1, 1)
        rate = self.drop_path * (site.block or 0) / depth
        if site.kind == 'block':
            return TemporalDelta(*widths, rate, self.num_temporal == 2)
        delta = JointDelta(*widths, rate)
        delta.scale = self.scale
        return delta
