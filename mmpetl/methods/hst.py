"""HST: a pyramid beside a plain transformer, fed with its patches and meta tokens.

Paper: Lin et al., "Hierarchical Side-Tuning for Vision Transformers", 2023,
https://arxiv.org/abs/2310.05393.
Differs from the authors' code: bridges come in front of the resizing, which is the same
map on a tenth of the channels. Meta tokens stand behind the class token, which
attention cannot tell. Video is our extension: the side network runs per frame. The
pyramid's four maps, which the paper feeds to dense heads, are not handed out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Role,
    Site,
    check_range,
    extra_tokens,
    join_tokens,
    records_gradients,
    softmax_attention,
    split_heads,
)
from mmpetl.registry import METHODS

EPS = 1e-6
"""Of the norms of side blocks, stages and exit; the others have PyTorch's 1e-5."""


def initialise_(module: nn.Module) -> None:
    """Linear: truncated normal, 0.02. Convolution: normal with fan-out variance."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode='fan_out', nonlinearity='relu')
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def tokens_of(maps: Tensor) -> Tensor:
    """(B, c, H, W) -> (B, H * W, c)."""
    return maps.flatten(2).transpose(1, 2)


class Down(nn.Module):
    """A convolution that halves the map, and a norm: tokens in, tokens out."""

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dims, out_dims, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_dims)

    def forward(
        self, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of a map of this size to those of the next stage, and its size."""
        maps = self.conv(x.transpose(1, 2).unflatten(2, size))
        return self.norm(tokens_of(maps)), tuple(maps.shape[2:])


class Stem(nn.Module):
    """Images to tokens of stride 4."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, dims, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dims)
        self.conv2 = nn.Conv2d(dims, dims, 2, stride=2)
        self.norm = nn.LayerNorm(dims)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) to tokens, and the size of their map."""
        maps = self.conv2(F.relu(self.bn(self.conv1(images))))
        return self.norm(tokens_of(maps)), tuple(maps.shape[2:])


class SideNetwork(nn.Module):
    """What the blocks of the side network share: stem, stages, bridges, exit."""

    def __init__(self, dims: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(widths[0])
        self.downs = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.bridges = nn.ModuleList(nn.Linear(dims, c) for c in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=EPS) for c in widths)
        self.exit = nn.BatchNorm1d(widths[-1], affine=False, eps=EPS)
        initialise_(self)

    def bridged(self, patches: Tensor, stage: int, ctx: Context, size) -> Tensor:
        """Patches (B, prod(grid), C) as tokens of the stage's map, frame by frame."""
        h, w = ctx.grid[-2:]
        maps = self.bridges[stage](patches).reshape(
            -1, h, w, self.norms[stage].bias.numel()
        )
        maps = F.interpolate(
            maps.permute(0, 3, 1, 2), size=size, mode='bilinear', align_corners=False
        )
        return tokens_of(maps)


class SideBlock(nn.Module):
    """``x + CrossAttn(LN x, r)``, then ``+ V``, then ``+ MLP(LN x)``."""

    def __init__(self, dims: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.drop_path = drop_path
        self.meta_norm = nn.LayerNorm(dims)
        self.norm1 = nn.LayerNorm(dims, eps=EPS)
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.out = nn.Linear(dims, dims)
        self.norm2 = nn.LayerNorm(dims, eps=EPS)
        self.fc1 = nn.Linear(dims, 4 * dims)
        self.fc2 = nn.Linear(4 * dims, dims)
        initialise_(self)

    def drawn(self, x: Tensor) -> Tensor | None:
        """Which branches stochastic depth keeps, per image (or frame), (B, 1, 1)."""
        if not self.training or not self.drop_path:
            return None
        return x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - self.drop_path)

    def dropped(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """A branch behind stochastic depth."""
        return x if kept is None else x * kept.to(x.dtype) / (1 - self.drop_path)

    def forward(self, x: Tensor, meta: Tensor, patches: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B, n, c), the side stream.
            meta: (B, num_tokens, c), the bridged meta tokens.
            patches: (B, n, c), the bridged and resized patches.
        """
        args = x, meta, patches, self.drawn(x), self.drawn(x)
        if not records_gradients():
            return self.grown(*args)
        # The maps of the first stages are large, and what makes them is cheap.
        return checkpoint(
            self.grown, *args, use_reentrant=False, preserve_rng_state=False
        )

    def grown(
        self,
        x: Tensor,
        meta: Tensor,
        patches: Tensor,
        first: Tensor | None,
        second: Tensor | None,
    ) -> Tensor:
        """:meth:`forward` with what has been drawn for its two branches."""
        mean = patches.mean(1, keepdim=True)
        r = torch.cat((self.meta_norm(meta), mean), dim=1)
        q, k, v = (
            split_heads(t, self.num_heads)
            for t in (self.q(self.norm1(x)), *self.kv(r).chunk(2, dim=-1))
        )
        o = softmax_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropped(self.out(o), first) + patches
        return x + self.dropped(self.fc2(F.gelu(self.fc1(self.norm2(x)))), second)


class MetaTokenDelta(Delta):
    """Meta tokens join the block; what comes of them and of the patches goes aside."""

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        width: int,
        num_heads: int,
        drop_path: float,
        stage: int,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.meta = nn.Parameter(torch.empty(1, num_tokens, site.in_dims))
        nn.init.xavier_uniform_(self.meta)
        self.block = SideBlock(width, num_heads, drop_path)
        self.stage, self.first, self.last = stage, first, last

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        meta = self.meta.expand(x.shape[0], -1, -1)
        return join_tokens(x, meta, ctx, self.slot)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        side: SideNetwork = self.shared
        if self.first and self.stage == 0:
            h, size = side.stem(self.own(frames_of(ctx)))
        else:
            h, size = self.notes(ctx)['side']
            if self.first:
                h, size = side.downs[self.stage - 1](h, size)
        patches = side.bridged(y[:, ctx.num_prefix :], self.stage, ctx, size)
        meta = side.bridges[self.stage](self.output(y, ctx))
        frames = patches.shape[0] // meta.shape[0]
        meta = meta.repeat_interleave(frames, dim=0)
        h = self.block(h, meta, patches)
        if self.last:
            h = side.norms[self.stage](h)
        self.notes(ctx)['side'] = h, size
        return y

    def output(self, y: Tensor, ctx: Context) -> Tensor:
        """What the block made of the meta tokens, (B, num_tokens, C)."""
        at, end = extra_tokens(ctx, self.slot)
        return y[:, at:end]


def frames_of(ctx: Context) -> Tensor:
    """The images; of a video the middle frame of each tubelet, (B * T, 3, H, W)."""
    images = ctx.images
    if images.ndim == 4:
        return images
    frames = ctx.grid[0]
    tubelet = images.shape[2] // frames
    middle = images[:, :, tubelet // 2 :: tubelet][:, :, :frames]
    return middle.transpose(1, 2).flatten(0, 1)


class PyramidDelta(Delta):
    """The mean over the last stage's tokens, normed over the batch, is the feature."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        h, _ = self.notes(ctx)['side']
        mean = h.mean(1).unflatten(0, (y.shape[0], -1)).mean(1)
        if self.shared.exit.training and mean.shape[0] == 1:
            raise PETLError(
                'HST norms the feature over the batch and cannot train on a batch of '
                'one; set drop_last=True in the data loader, or another batch size'
            )
        return self.shared.exit(mean).unsqueeze(1)


@METHODS.register_module()
class HST(Method):
    """Hierarchical side-tuning.

    The feature has the width of the last stage, and so must the head's input.

    Args:
        dims: Width of each stage of the side network.
        num_heads: Heads of its cross-attention, per stage.
        drop_path_rate: Stochastic depth of the last side block, from 0 in the first on;
            0 to 0.2 per task in the authors' scripts.
        depths: How many blocks feed each stage; None divides them equally.
        num_tokens: Meta tokens per block, 1 in the paper.
    """

    targets = ('tokens', 'feature')
    starts_as_identity = False
    family = 'side'
    reads_grid = True
    apart = False
    replaces = ('feature',)

    def __init__(
        self,
        dims: Sequence[int] = (32, 48, 64, 72),
        num_heads: Sequence[int] = (2, 4, 8, 12),
        drop_path_rate: float = 0.1,
        depths: Sequence[int] | None = None,
        num_tokens: int = 1,
    ) -> None:
        dims, num_heads = tuple(dims), tuple(num_heads)
        if not dims or len(dims) != len(num_heads):
            raise PETLError(
                f'HST needs as many num_heads as dims, got {len(num_heads)} and '
                f'{len(dims)}'
            )
        for d, heads in zip(dims, num_heads, strict=True):
            check_range(self, 'dims', d, 1)
            check_range(self, 'num_heads', heads, 1)
            if d % heads:
                raise PETLError(
                    f'HST needs heads that divide the width: {d} by {heads}'
                )
        check_range(self, 'drop_path_rate', drop_path_rate, 0, 0.99)
        check_range(self, 'num_tokens', num_tokens, 1)
        if depths is not None:
            depths = tuple(depths)
            if len(depths) != len(dims):
                raise PETLError(
                    f'HST needs as many depths as dims, got {len(depths)} and '
                    f'{len(dims)}'
                )
            for depth in depths:
                check_range(self, 'depths', depth, 1)
        self.dims = dims
        self.num_heads = num_heads
        self.drop_path_rate = drop_path_rate
        self.depths = depths
        self.num_tokens = num_tokens

    def check(self, sites: list[Site]) -> None:
        depth, stages = sites[0].num_blocks, len(self.dims)
        features = [site for site in sites if site.kind == 'feature']
        if len(features) != 1 or features[0].index != depth - 1:
            raise PETLError(
                'HST hands over one feature, behind the last block; this backbone has '
                f'them behind blocks {", ".join(str(s.index) for s in features)}'
            )
        if self.depths is not None and sum(self.depths) != depth:
            raise PETLError(
                f'HST needs depths that sum to the {depth} blocks of this backbone, '
                f'got {" + ".join(map(str, self.depths))}'
            )
        if self.depths is None and depth % stages:
            raise PETLError(
                f'HST needs stages of equal depth; {stages} do not divide {depth} '
                'blocks (dims and num_heads set their number, depths says how many '
                'blocks each has)'
            )

    def share(self, sites: list[Site]) -> SideNetwork:
        return SideNetwork(sites[0].in_dims, self.dims)

    def build(self, site: Site) -> Delta:
        if site.kind == 'feature':
            return PyramidDelta()
        equal = (site.num_blocks // len(self.dims),) * len(self.dims)
        ends = list(accumulate(self.depths or equal))
        stage = bisect_right(ends, site.block)
        return MetaTokenDelta(
            site,
            self.num_tokens,
            self.dims[stage],
            self.num_heads[stage],
            self.drop_path_rate * site.block / max(site.num_blocks - 1, 1),
            stage,
            first=site.block in (0, *ends),
            last=site.block + 1 in ends,
        )

    def selects(self, role: Role) -> bool:
        return role.kind == 'norm' and role.place == 'block'

    def feature_dims(self, site: Site) -> int:
        return self.dims[-1]
