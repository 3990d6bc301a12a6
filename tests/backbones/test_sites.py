"""Every site that a backbone names is run, with the features it promises."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tiny import TINY, Nothing, bare, base, images, loss_of, outputs, record
from torch import Tensor, nn

from mmpetl.core import (
    AFTER_ONLY,
    KINDS,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    inject,
)

SEEN: list[tuple[Site, str]] = []


def _shape(site: Site, x: Tensor, ctx: Context, dims: int) -> None:
    assert x.ndim == 3
    assert x.shape[-1] == dims, site
    if site.has_grid:
        assert x.shape[1] == ctx.num_prefix + math.prod(ctx.grid), site


def _stretched(x: Tensor, number: Tensor) -> Tensor:
    """Channels times a number that counts more from one to the next.

    A common factor of all of them is lost where unit vectors are made of them.
    """
    return x * (1 + (number - 1) * torch.linspace(1, 2, x.shape[-1], dtype=x.dtype))


class After(Delta):
    """Scales what leaves by a trained number, and looks at what passes."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.scale = nn.Parameter(torch.tensor(1.1))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        SEEN.append((self.site, 'after'))
        if self.site.kind == 'attn.core':
            q, _, _ = x
            assert q.ndim == 4
            assert y.shape == q.shape
            assert q.shape[1] == self.site.num_heads
            assert q.shape[1] * q.shape[3] == self.site.in_dims
        elif self.site.kind == 'downsample':
            assert x.shape[-1] == self.site.in_dims
            _shape(self.site, y, ctx, self.site.out_dims)
        else:
            _shape(self.site, x, ctx, self.site.in_dims)
            _shape(self.site, y, ctx, self.site.out_dims)
        return _stretched(y, self.scale)


class Both(After):
    """Scales what enters as well, by a number of its own."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scale_before = nn.Parameter(torch.tensor(1.2))

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        SEEN.append((self.site, 'before'))
        if self.site.kind == 'attn.core':
            q, k, v = x
            return q, k, _stretched(v, self.scale_before)
        return _stretched(x, self.scale_before)


class Look(Method):
    """Probes every site of one kind."""

    across = True  # what enters is looked at, and what leaves is scaled

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.targets = (kind,)

    def build(self, site: Site) -> Delta:
        return (After if self.kind in NO_BEFORE else Both)(site)


# Ports that no module stands behind: the first has nothing before it, the others
# are two ends of one place.
NO_BEFORE = {*AFTER_ONLY, 'embed.proj', 'embed', 'attn.sum', 'ffn.sum'}


def _kinds(stem: str) -> list[str]:
    model = inject(base(stem), Nothing())
    return list(dict.fromkeys(s.kind for s in record(model).sites))


def test_sites_run_where_and_with_what_they_promise(any_stem: str) -> None:
    """One kind at a time: what stands at one site must not hang on another's."""
    x = images(any_stem, odd=True, dtype=torch.float64)
    plain = outputs(bare(any_stem, torch.float64), x)
    for kind in _kinds(any_stem):
        model = inject(base(any_stem, torch.float64), Look(kind))
        sites = [s for s in record(model).sites if s.kind == kind]
        ports = ('after',) if kind in NO_BEFORE else ('before', 'after')
        SEEN.clear()
        ys = outputs(model, x)
        assert Counter(SEEN) == Counter((s, p) for s in sites for p in ports), kind
        assert max((a - b).abs().max() for a, b in zip(ys, plain, strict=True)) > 0
        loss_of(ys).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        grads = {n: g for n, g in grads.items() if 'petl' in n.split('.')}
        assert len(grads) == len(sites) * len(ports)
        assert all(g is not None and g != 0 for g in grads.values()), kind


def test_sites_are_told_apart_and_stand_in_the_order_of_the_pass(any_stem: str) -> None:
    model = inject(base(any_stem), Nothing())
    sites = record(model).sites
    assert len({s.path for s in sites}) == len(sites)
    assert {s.kind for s in sites} <= KINDS.keys()
    blocks = [s.block for s in sites if s.kind == 'block']
    assert blocks == list(range(sites[0].num_blocks))
    scored = any(site.kind == 'attn.core' for site in sites)
    for site in sites:
        if site.block is not None:
            assert site.mlp_dims > 0
        if site.kind.startswith('attn') and scored:
            assert site.num_heads > 0
    wide = [s for s in sites if s.kind == 'ffn.fc1']
    for site in wide:
        assert site.in_dims < site.out_dims == site.mlp_dims * (1 + site.gated)


def test_between_them_the_backbones_offer_every_kind() -> None:
    offered = {kind for stem in TINY for kind in _kinds(stem)}
    assert offered == KINDS.keys()


class AddTokens(Delta):
    """Two more tokens behind the class tokens, for one block."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        own = ctx.num_prefix - ctx.num_extra
        more = torch.full_like(x[:, :1], 0.5).expand(-1, 2, -1)
        ctx.num_prefix += 2
        ctx.num_extra += 2
        return torch.cat((x[:, :own], more, x[:, own:]), dim=1)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        own = ctx.num_prefix - ctx.num_extra
        ctx.num_prefix -= 2
        ctx.num_extra -= 2
        return torch.cat((y[:, :own], y[:, own + 2 :]), dim=1)


class StayingTokens(AddTokens):
    """Join at the first block and leave with the outputs."""

    after = Delta.after


class Tokens(Method):
    """Adds constant tokens in every block, or in the first for good."""

    targets = ('tokens',)

    def __init__(self, stay: bool) -> None:
        self.stay = stay

    def wants(self, site: Site) -> bool:
        return site.kind == 'tokens' and (not self.stay or site.block == 0)

    def build(self, site: Site) -> Delta:
        return StayingTokens() if self.stay else AddTokens()


@pytest.mark.parametrize('stay', [False, True], ids=['each block', 'for good'])
@torch.no_grad()
def test_extra_tokens_act_and_never_leave(any_stem: str, stay: bool) -> None:
    if 'tokens' not in _kinds(any_stem):
        with pytest.raises(PETLError, match=r'tokens; .*\(tokens: .*\)'):
            inject(base(any_stem), Tokens(stay))
        return
    for odd in (False, True):
        x = images(any_stem, odd=odd)
        plain = outputs(base(any_stem), x)
        ys = outputs(inject(base(any_stem), Tokens(stay)), x)
        assert [y.shape for y in ys] == [y.shape for y in plain]
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(ys, plain, strict=True))


class Recomputed(Delta):
    """What leaves a projection, computed again from the weights of the base."""

    reads_base = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        SEEN.append((self.kind, 'after'))
        affine = ctx.fork().affine(self.kind)
        again = nn.functional.linear(x, affine.weight, affine.full_bias())
        torch.testing.assert_close(again, y, rtol=1e-9, atol=1e-9)
        return again


class Recompute(Method):
    """Such a delta at every projection of a block."""

    family = 'baseline'
    targets = (
        *('attn.qkv', 'attn.q', 'attn.k', 'attn.v'),
        *('attn.proj', 'ffn.fc1', 'ffn.fc2'),
    )
    targets_any = True

    def build(self, site: Site) -> Recomputed:
        return Recomputed(site.kind)


@torch.no_grad()
def test_a_delta_can_read_the_base_weights_of_its_site(any_stem: str) -> None:
    x = images(any_stem, odd=True, dtype=torch.float64)
    model = inject(base(any_stem, torch.float64), Recompute())
    SEEN.clear()
    ours = outputs(model, x)
    wanted = {site.kind for site in record(model).slots['0'].sites}
    assert {kind for kind, _ in SEEN} == wanted
    for y, z in zip(ours, outputs(bare(any_stem, torch.float64), x), strict=True):
        torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-9)
