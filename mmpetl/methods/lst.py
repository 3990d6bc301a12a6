"""LST: a small transformer beside the frozen one, fed with its outputs.

Paper: Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer
Learning", NeurIPS 2022, https://arxiv.org/abs/2206.06522, sections 3.2 and 3.3.
Differs from the authors' code: theirs is for language models and for CLIP's ResNet. For
vision transformers the side block is one of the host's kind with the host's heads, and
what leaves the side network is the feature; ``form='post_norm'`` is the network of
their vision-and-language code. By default side blocks start from the
channels of the host that are largest in magnitude, which needs no data; the paper's
choice by Fisher information is ``init='fisher'``. Windowed backbones (a side width per
stage, a patch merging of its own) and dense outputs are our extension. Side norms are
layer norms also where the host's are RMS norms, whose weights they start from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Calibrated,
    Context,
    Delta,
    Method,
    Partition,
    PETLError,
    Place,
    Site,
    check_range,
    disabled,
    one_by_one,
    one_epoch,
    only_trains,
    parameters_behind,
    softmax_attention,
    split_heads,
    task_loss,
    warn_uncalibrated,
    without_extra,
)
from mmpetl.registry import METHODS

INITS = ('magnitude', 'fisher', 'random')
FORMS = ('pre_norm', 'post_norm')
FISHER_IMAGES = 1024
"""So many training images the paper estimates the Fisher information from."""
TEMPERATURE = 0.1


class SideBlock(nn.Module):
    """A transformer block, windowed where the host's is.

    Pre-norm, ``h + Attn(LN h)`` and ``h + MLP(LN h)``, or post-norm, ``LN(h + Attn h)``
    and ``LN(h + MLP h)``.

    h: (B, own prefix + prod(grid), dims), ``dims`` the host's width over the reduction.
    """

    def __init__(self, site: Site, reduction: int, post_norm: bool) -> None:
        super().__init__()
        self.post_norm = post_norm
        dims, hidden = site.in_dims // reduction, site.mlp_dims // reduction
        self.num_heads = site.num_heads
        self.window, self.shift = site.window, site.shift
        self.norm1 = nn.LayerNorm(dims)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)
        self.norm2 = nn.LayerNorm(dims)
        self.fc1 = nn.Linear(dims, hidden)
        self.fc2 = nn.Linear(hidden, dims)
        if self.window is not None:
            rows = math.prod(2 * w - 1 for w in self.window)
            self.table = nn.Parameter(torch.empty(rows, self.num_heads))
            nn.init.trunc_normal_(self.table, std=0.02)

    def attend(
        self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attention with both projections, (B, N, dims) -> (B, N, dims)."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        o = softmax_attention(q, k, v, bias, mask)
        return self.proj(o.transpose(1, 2).flatten(2))

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        """Attention over all tokens, or within (shifted) windows of the grid."""
        if self.window is None:
            return self.attend(x)
        partition = Partition.shrunk(ctx.grid, self.window, self.shift)
        rows = self.table[partition.table_rows(self.window, x.device)]
        n = partition.tokens
        bias = rows.view(n, n, -1).permute(2, 0, 1)
        y = self.attend(partition.split(x), bias, partition.mask_in(ctx, x.device))
        return partition.join(y)

    def network(self, x: Tensor) -> Tensor:
        """The feed-forward network, (B, N, dims) -> (B, N, dims)."""
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        if self.post_norm:
            h = self.norm1(h + self.attention(h, ctx))
            return self.norm2(h + self.network(h))
        h = h + self.attention(self.norm1(h), ctx)
        return h + self.network(self.norm2(h))


class EntryDelta(Delta):
    """``h_0 = D_0 z_0``."""

    taps = True

    def __init__(self, site: Site, method: LST) -> None:
        super().__init__()
        self.down = method.down(site)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if isinstance(self.__dict__.get('shared'), Calibrated):
            warn_uncalibrated(self, "LST with init='fisher' starts from random blocks")
        self.notes(ctx)['h'] = self.down(without_extra(y, ctx))
        return y


class LadderDelta(Delta):
    """``h_i = SideBlock(mu h_{i-1} + (1 - mu) D_i z_i)``, ``mu = sigmoid(alpha / T)``.

    Without a gate ``h_i = SideBlock(h_{i-1} + D_i z_i)``.

    z_i: (B, num_prefix + prod(grid), C), what leaves block i, and leaves it unchanged.
    """

    taps = True

    def __init__(self, site: Site, method: LST) -> None:
        super().__init__()
        self.down = method.down(site)
        self.alpha = nn.Parameter(torch.zeros(())) if method.gated else None
        post_norm = method.form == 'post_norm'
        self.block = SideBlock(site, method.reduction, post_norm)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        fed = self.down(without_extra(y, ctx))
        notes = self.notes(ctx)
        h = notes['h'].to(fed.dtype)
        if self.alpha is None:
            h = h + fed
        else:
            mu = torch.sigmoid(self.alpha / TEMPERATURE)
            h = torch.lerp(fed, h, mu.to(fed.dtype))
        notes['h'] = self.block(h, ctx)
        return y


class MergeDelta(Delta):
    """Patch merging of the side stream: ``Linear(norm([h of 2 x 2 neighbours]))``."""

    taps = True

    def __init__(self, site: Site, method: LST) -> None:
        super().__init__()
        wide = 4 * (site.in_dims // method.reduction)
        self.norm = nn.LayerNorm(wide)
        self.down = nn.Linear(wide, site.out_dims // method.reduction, bias=False)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        # The grid is still the one in front of the merging.
        self.notes(ctx)['grid'] = ctx.grid
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        h, (*_, height, width) = notes['h'], notes.pop('grid')
        *_, rows, columns = ctx.grid
        if rows not in _halves(height) or columns not in _halves(width):
            raise PETLError(
                'LST merges 2 x 2 neighbours between stages; this backbone goes from '
                f'{height} x {width} to {rows} x {columns} tokens'
            )
        maps = h.view(-1, height, width, h.shape[-1])
        # Where the trunk pads an odd edge, so does this; where it drops it, likewise.
        maps = F.pad(maps, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
        near = [maps[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        h = torch.cat(near, dim=-1).reshape(h.shape[0], -1, 4 * h.shape[-1])
        notes['h'] = self.down(self.norm(h))
        return y


def _halves(size: int) -> tuple[int, int]:
    """Half of a size, rounded down and up."""
    return size // 2, -(-size // 2)


class ExitDelta(Delta):
    """``U norm(h)`` leaves the backbone in place of y.

    What comes of post-norm blocks has been normed, and leaves as ``U h``.
    """

    def __init__(self, site: Site, method: LST) -> None:
        super().__init__()
        dims, pre_norm = site.out_dims // method.reduction, method.form == 'pre_norm'
        self.norm = nn.LayerNorm(dims) if pre_norm else None
        self.up = nn.Linear(dims, site.out_dims, bias=pre_norm)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        h = self.notes(ctx)['h']
        return self.up(h if self.norm is None else self.norm(h))


PARTS = {
    'embed': EntryDelta,
    'block': LadderDelta,
    'downsample': MergeDelta,
    'out': ExitDelta,
}


@METHODS.register_module()
class LST(Method):
    """Ladder side-tuning.

    Args:
        reduction: Width of the backbone over that of the side network; 8 in the
            paper.
        init: Where side blocks start. ``'magnitude'`` copies the channels of the
            host's blocks that have the largest weights; ``'fisher'``, the paper's
            choice, those with the largest Fisher information in a pass over labelled
            training data (:meth:`calibrate`, which ``mmpetl.CalibrationHook`` runs);
            ``'random'`` draws them.
        side_blocks: Indices of the blocks that have a side block, counted over the
            whole backbone; None is all. The side network passes the others by, so that
            they have neither a map D nor a gate (layer dropping of the authors).
        gated: Whether a learned gate weighs what comes from the trunk against the side
            stream, as published; else both are added (``use_gate='none'`` there).
        form: ``'pre_norm'``: side blocks as in vision transformers, a norm in front of
            U, and biases. ``'post_norm'``: the authors' vision-and-language code, with
            norms behind the sums, none in front of U, and D and U without a bias.
    """

    targets = ('embed', 'block', 'out')
    # Side blocks have the heads of the trunk's, and norms where it has them.
    requires = ('attn.core', 'norm1', 'norm2')
    optional = ('downsample',)
    starts_as_identity = False
    family = 'side'
    reads_grid = True
    apart = False
    reads_windows = True
    replaces = ('out',)

    def __init__(
        self,
        reduction: int = 8,
        init: Literal['magnitude', 'fisher', 'random'] = 'magnitude',
        side_blocks: Sequence[int] | None = None,
        gated: bool = True,
        form: Literal['pre_norm', 'post_norm'] = 'pre_norm',
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        if init not in INITS:
            raise PETLError(f'LST has init {" or ".join(INITS)}, got {init!r}')
        if form not in FORMS:
            raise PETLError(f'LST has form {" or ".join(FORMS)}, got {form!r}')
        if side_blocks is not None and not len(side_blocks):
            raise PETLError('LST needs at least one of side_blocks; None takes all')
        self.reduction = reduction
        self.init = init
        self.side_blocks = None if side_blocks is None else tuple(side_blocks)
        self.gated = gated
        self.form = form

    @property
    def calibrates(self) -> bool:
        return self.init == 'fisher'

    def choose(self, sites: list[Site]) -> list[Site]:
        chosen = super().choose(sites)
        if self.side_blocks is None:
            return chosen
        there = {site.block for site in chosen if site.kind == 'block'}
        for block in self.side_blocks:
            if block not in there:
                raise PETLError(
                    f'LST is to have a side block beside block {block}; this backbone '
                    f'has blocks 0 to {max(there)}'
                )
        return [s for s in chosen if s.kind != 'block' or s.block in self.side_blocks]

    def down(self, site: Site) -> nn.Linear:
        """``D``, from the width of the trunk to that of the side network."""
        dims = site.out_dims
        return nn.Linear(dims, dims // self.reduction, bias=self.form == 'pre_norm')

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if site.kind == 'downsample' and site.stride not in ((), (2, 2)):
                raise PETLError(
                    'LST merges 2 x 2 neighbours between stages; this trunk goes from '
                    f'stage {site.stage} to the next in steps of '
                    f'{" x ".join(map(str, site.stride))}'
                )
            parts = self.reduction * (site.num_heads or 1)
            if site.in_dims % parts:
                raise PETLError(
                    f'LST needs widths that {self.reduction} x heads divides; {site} '
                    f'has {site.in_dims} channels and {site.num_heads or 1} heads, so '
                    'take a smaller reduction'
                )

    def share(self, sites: list[Site]) -> nn.Module | None:
        return Calibrated() if self.init == 'fisher' else None

    def build(self, site: Site) -> Delta:
        return PARTS[site.kind](site, self)

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[[str, str], Affine]
    ) -> None:
        for site, delta in deltas.items():
            if site.kind == 'block':
                for kind in ('norm1', 'norm2'):
                    eps = weights(site.host, kind).eps
                    if eps is not None:  # an RMSNorm may leave it to the dtype
                        getattr(delta.block, kind).eps = eps
                if self.init != 'random':
                    check_shapes(site, weights)
        if self.init == 'magnitude':
            self._prune(deltas, weights, weights)

    def _prune(
        self,
        deltas: Mapping[Site, Delta],
        weights: Callable[[str, str], Affine],
        sizes: Callable[[str, str], Affine],
    ) -> None:
        """Start side blocks from the channels of their hosts that are largest."""
        stages: dict[int, list[Site]] = {}
        for site in deltas:
            if site.kind == 'block':
                stages.setdefault(site.stage, []).append(site)
        for sites in stages.values():
            hosts = [HostBlock(site, weights, sizes) for site in sites]
            total = sum(host.residual_size() for host in hosts)
            # One set per stage: all its blocks share the residual stream.
            kept = largest(total, len(total) // self.reduction)
            for site, host in zip(sites, hosts, strict=True):
                host.prune_into(deltas[site].block, kept)

    def information(
        self, backbone: nn.Module, batches: Iterable[Any]
    ) -> dict[nn.Parameter, Tensor]:
        """Empirical Fisher information of every weight of the frozen blocks.

        The mean over samples of the squared gradient of the model's own loss, with the
        head on the frozen feature, everything in eval mode; at most 1024 samples.

        Returns:
            By parameter, in its shape.

        Raises:
            PETLError: There are no data, or no labels.
        """
        place = Place(backbone, self)
        module = place.module
        views = [
            tensor
            for site in place.sites
            if site.kind == 'block'
            for kind in BLOCK_PARTS
            for tensor in _affine(place, site.host, kind).tensors
        ]
        params = list(dict.fromkeys(parameters_behind(module, views).values()))
        total = {
            p: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for p in params
        }
        seen, modes = 0, {m: m.training for m in backbone.modules()}
        try:
            with (
                disabled(module, place.slot),
                only_trains(backbone, params, train_mode=False),
            ):
                for (batch,) in one_epoch(batches, shuffle=True):
                    if seen >= FISHER_IMAGES:
                        break
                    if not isinstance(batch, Mapping) and batch[1] is None:
                        raise PETLError(
                            "LST with init='fisher' needs labels, and these data have "
                            "none; choose init='magnitude'"
                        )
                    for sample in islice(one_by_one(batch), FISHER_IMAGES - seen):
                        seen += 1
                        loss = task_loss(backbone, sample)
                        grads = torch.autograd.grad(loss, params, allow_unused=True)
                        for p, grad in zip(params, grads, strict=True):
                            if grad is not None:
                                total[p] += grad.to(total[p].dtype).square()
        finally:
            for part, mode in modes.items():
                part.training = mode
        if not seen:
            raise PETLError("LST with init='fisher' prunes by data, and there are none")
        return {p: t / seen for p, t in total.items()}

    @torch.no_grad()
    def calibrate(self, backbone: nn.Module, batches: Iterable[Any]) -> None:
        """Start the side blocks from the channels with the most :meth:`information`.

        Raises:
            PETLError: There are no data, or no labels.
        """
        place = Place(backbone, self)
        with torch.enable_grad():
            found = self.information(backbone, batches)
        by_storage = {p.untyped_storage().data_ptr(): (p, f) for p, f in found.items()}

        def same_place(tensor: Tensor) -> Tensor:
            param, info = by_storage[tensor.untyped_storage().data_ptr()]
            start = tensor.storage_offset() - param.storage_offset()
            return info.as_strided(tensor.shape, tensor.stride(), start)

        def sizes(host: str, kind: str) -> Affine:
            affine = _affine(place, host, kind)
            bias = tuple(
                part if part.bias is None else replace(part, bias=same_place(part.bias))
                for part in affine.bias
            )
            weights = tuple(same_place(weight) for weight in affine.weights)
            return Affine(affine.name, weights, bias)

        self._prune(
            {site: place.delta(site) for site in place.sites},
            lambda host, kind: _affine(place, host, kind),
            sizes,
        )
        place.shared.done.fill_(True)


def _affine(place: Place, host: str, kind: str) -> Affine:
    """The map of a kind inside a block."""
    record = place.record
    return record.site_map.affine_at(place.module, record.sites, host, kind)


def largest(size: Tensor, count: int) -> Tensor:
    """Indices of the largest entries along the last axis, ascending."""
    return size.topk(count, dim=-1).indices.sort(dim=-1).values


BLOCK_PARTS = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'ffn.fc1', 'ffn.fc2')


def check_shapes(site: Site, weights: Callable[[str, str], Affine]) -> None:
    """Refuse a block whose channels have no counterparts in a side block.

    Raises:
        PETLError: Its feed-forward network is gated, or its keys are narrow.
    """
    try:
        qkv, proj, fc1, fc2 = (
            sum(map(len, weights(site.host, kind).weights))
            if kind in ('attn.qkv', 'ffn.fc1')
            else weights(site.host, kind).weight.shape[1]
            for kind in ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
        )
    except PETLError as error:
        raise PETLError(
            f'LST starts plain side blocks from those of the trunk, and {error}; '
            "choose init='random'"
        ) from None
    other = 'gates its feed-forward network' if fc1 != fc2 else ''
    other = 'has fewer keys than queries' if qkv != 3 * proj else other
    if other:
        raise PETLError(
            f'LST starts plain side blocks from those of the trunk, and {site.host} '
            f"{other}; choose init='random'"
        )


class HostBlock:
    """The weights of a host's block, and how large each channel is.

    The size of a channel is the sum over all weights attached to it.

    Args:
        site: The block.
        weights: ``weights(host, kind)``: a map inside of it.
        sizes: In the same shapes what each weight counts for, by its magnitude.
    """

    def __init__(
        self,
        site: Site,
        weights: Callable[[str, str], Affine],
        sizes: Callable[[str, str], Affine],
    ) -> None:
        self.heads = site.num_heads
        parts = [weights(site.host, kind) for kind in BLOCK_PARTS]
        self.norm1, self.qkv, self.proj, self.norm2, self.fc1, self.fc2 = parts
        self.size = {kind: sizes(site.host, kind) for kind in BLOCK_PARTS}

    def sized(self, *kinds: str) -> list[tuple[Tensor, Tensor]]:
        """What weight and bias of each part count for, none below zero."""
        parts = [self.size[kind] for kind in kinds]
        return [(part.weight.abs(), part.full_bias().abs()) for part in parts]

    def residual_size(self) -> Tensor:
        """Of each channel of the residual stream, (C,)."""
        into = [w.sum(0) for w, _ in self.sized('attn.qkv', 'ffn.fc1')]
        out = [w.sum(1) + b for w, b in self.sized('attn.proj', 'ffn.fc2')]
        norms = [w + b for w, b in self.sized('norm1', 'norm2')]
        return sum(into + out + norms)

    def prune_into(self, block: SideBlock, kept: Tensor) -> None:
        """Copy the kept residual channels, and the largest inner ones, to ``block``."""
        for norm, host in ((block.norm1, self.norm1), (block.norm2, self.norm2)):
            norm.weight.copy_(host.weight[kept])
            norm.bias.copy_(host.full_bias()[kept])

        # Queries and keys of a head meet channel by channel, values and the output
        # projection likewise, so each pair keeps channels of its own in every head.
        weight, bias = self.qkv.weight, self.qkv.full_bias()
        (w, b), (out, _) = self.sized('attn.qkv', 'attn.proj')
        q, k, v = (w.sum(1) + b).view(3, self.heads, -1)
        v = v + out.sum(0).view(self.heads, -1)
        width = block.proj.in_features // self.heads
        first = torch.arange(self.heads, device=q.device)[:, None] * q.shape[-1]
        qk, v = ((largest(size, width) + first).flatten() for size in (q + k, v))
        inner = self.heads * q.shape[-1]
        rows = torch.cat((qk, qk + inner, v + 2 * inner))
        block.qkv.weight.copy_(weight[rows][:, kept])
        block.qkv.bias.copy_(bias[rows])
        block.proj.weight.copy_(self.proj.weight[kept][:, v])
        block.proj.bias.copy_(self.proj.full_bias()[kept])

        (w, b), (out, _) = self.sized('ffn.fc1', 'ffn.fc2')
        hidden = largest(w.sum(1) + b + out.sum(0), block.fc1.out_features)
        block.fc1.weight.copy_(self.fc1.weight[hidden][:, kept])
        block.fc1.bias.copy_(self.fc1.full_bias()[hidden])
        block.fc2.weight.copy_(self.fc2.weight[kept][:, hidden])
        block.fc2.bias.copy_(self.fc2.full_bias()[kept])
