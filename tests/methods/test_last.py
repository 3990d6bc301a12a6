"""LAST: tiny attention layers beside the frozen blocks correct their feature."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import tiny
import torch
from full_size import counts
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, PETLError, Site, from_windows, shift_mask, to_windows
from mmpetl.core.inject import injection_of
from mmpetl.methods.last import LAST, GroupDelta, LowRankAttention

ADAPTED = ['mmpretrain_vit', 'mmpretrain_swin', 'mmaction_vit', 'mmaction_swin3d']


def tuned(stem: str, std: float = 0.3, **args) -> nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), LAST(**args))
    model.eval()
    tiny.shake_(model, std)
    return model


def parts(model: nn.Module, kind: str) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == kind]
    return [core.get_submodule(site.path)['0'] for site in sites]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'sublayers')]


@pytest.mark.parametrize('host', ['vit_b', 'timm_vit_b', 'videomae_b'])
def test_specified_counts(host):
    assert counts(host, LAST()).delta == 663_552
    assert counts(host, LAST(rank=16, units=1)).delta == 608_256


def test_count_follows_its_formula():
    def per(c):
        return 3 * (4 * c * 5 + 2 * c)

    assert counts('vit_b', LAST(5, 3, group_size=4)).delta == 3 * per(768)
    dense = 2 * per(128) + 2 * per(256) + 18 * per(512) + 2 * per(1024)
    assert counts('swin_b_dense', LAST(5, 3)).delta == dense
    # One output: side networks of earlier stages would reach nothing.
    assert counts('swin_b', LAST(5, 3)).delta == 2 * per(1024)


def test_starts_as_the_frozen_model(stem):
    x = tiny.images(stem, odd=True)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    start = tiny.outputs(mmpetl.inject(tiny.base(stem), LAST()), x)
    assert all(map(torch.equal, start, plain))
    assert not torch.equal(tiny.outputs(tuned(stem), x.double())[0].float(), plain[0])


@pytest.mark.parametrize('group_size', [1, 2])
def test_equals_the_sums_of_the_paper_written_out(group_size):
    """u_i = F_i(u_{i-1} + z_i), and u_m minus all z but the last."""
    plain = tiny.base('timm_vit', torch.double)
    model = tuned('timm_vit', rank=3, units=2, group_size=group_size)
    x = tiny.images('timm_vit', dtype=torch.double)
    z = plain._pos_embed(plain.patch_embed(x))
    u, frozen = z, [z]
    groups = iter(parts(model, 'block'))
    for i, block in enumerate(plain.blocks):
        z = block(z)
        if (i + 1) % group_size:
            continue
        u = u + z
        frozen.append(z)
        (units,) = next(groups).units
        for unit in units:
            h = nn.functional.layer_norm(u, (32,), unit.norm.weight, unit.norm.bias)
            q, k, v = (h @ unit.qkv.weight.T).split(3, dim=-1)
            rows = torch.softmax(q @ k.transpose(1, 2) / 3**0.5, dim=-1)
            u = u + rows @ v @ unit.out.weight.T
    want = plain.forward_head(plain.norm(u - sum(frozen[:-1])))
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_unit_equals_scaled_dot_product_attention_with_one_head():
    unit = LowRankAttention(Site('block', 'b', 32, 32), 5).double()
    nn.init.normal_(unit.out.weight)
    x = torch.randn(2, 9, 32).double()
    q, k, v = unit.qkv(unit.norm(x)).split(5, dim=-1)
    want = nn.functional.scaled_dot_product_attention(
        q[:, None], k[:, None], v[:, None]
    )
    torch.testing.assert_close(unit(x, Context((3, 3))), want[:, 0] @ unit.out.weight.T)


@pytest.mark.parametrize('shift', [(0, 0), (2, 2)])
def test_windows_are_those_of_the_paired_block(shift):
    site = Site('block', 'b', 8, 8, window=(4, 4), shift=shift)
    unit, grid = LowRankAttention(site, 3).double(), (6, 9)
    nn.init.normal_(unit.out.weight)
    x = torch.randn(2, 54, 8).double()
    q, k, v = to_windows(unit.qkv(unit.norm(x)), grid, (4, 4), shift).split(3, -1)
    rows = q @ k.transpose(1, 2) / 3**0.5
    mask = shift_mask(grid, (4, 4), shift, x.device)
    if mask is not None:
        rows = rows + mask.repeat(2, 1, 1)
    o = from_windows(rows.softmax(-1) @ v, grid, (4, 4), shift)
    torch.testing.assert_close(
        unit(x, Context(grid)), o @ unit.out.weight.T, rtol=1e-9, atol=1e-9
    )


def test_the_trunk_has_no_graph_and_no_gradient(stem):
    model, seen = tuned(stem), []
    for block in blocks(model):
        block.register_forward_hook(lambda m, i, y: seen.append(y))
    model.train()
    x = tiny.images(stem, odd=True, dtype=torch.double)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    assert len(seen) == len(blocks(model))
    assert not any(z.requires_grad for z in seen)
    core, state = injection_of(model)
    for name, param in core.named_parameters():
        if name in state.base:
            head = name in state.head and param.requires_grad
            assert param.grad is None or head, name
        else:
            assert param.grad is not None, name
            assert param.grad.any(), name


@pytest.mark.parametrize('units', [1, 2, 5])
def test_autograd_keeps_of_the_trunk_only_what_groups_read(units):
    """One (B, N, C) per group however deep it is; nothing of a block's inside."""
    model = tuned('mmpretrain_vit', units=units)
    model.train()
    params = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in params:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 8
        return t

    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    tokens, wide = 2 * 17, 2 * 17 * 32
    sizes = list(kept.values())
    # What each of two groups reads, and what the final norm reads.
    assert sizes.count(wide) == 3
    assert sum(sizes) - 3 * wide < 100 * tokens * 2 * units


@pytest.mark.parametrize('window', [None, (4, 4)])
@pytest.mark.parametrize('later', [False, True])
def test_thin_sums_equal_the_formula(window, later):
    """What units give from one look at the features is what each gives by itself."""
    site = Site('block', 'b', 24, 24, window=window, shift=window and (2, 2))
    units = nn.ModuleList(LowRankAttention(site, 3) for _ in range(3)).double()
    for param in units.parameters():
        nn.init.normal_(param, 0.1, 0.5)
    total = 3 + 2 * torch.randn(2, 54, 24).double()
    e = torch.randn(2, 54, 24).double().requires_grad_() if later else None
    ctx, found = Context((6, 9)), []
    for run in (GroupDelta.grown_thin, partial(GroupDelta.grown, dtype=total.dtype)):
        out = run(units, total, e, ctx=ctx)
        learns = [*units.parameters(), *([e] if later else [])]
        found.append([out, *torch.autograd.grad(out.square().sum(), learns)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize('host', ADAPTED)
def test_identical_parallel_networks_stay_identical(host):
    model = mmpetl.inject(tiny.base(host, torch.double), LAST(num_parallel=3))
    one, x = tuned(host), tiny.images(host, odd=True, dtype=torch.double)
    model.eval()
    for many, single in zip(parts(model, 'block'), parts(one, 'block'), strict=True):
        for units in many.units:
            units.load_state_dict(single.units[0].state_dict())
    want = tiny.outputs(one, x)
    for y, z in zip(tiny.outputs(model, x), want, strict=True):
        assert len(y) == 3 * len(z)
        for chunk in y.chunk(3):
            torch.testing.assert_close(chunk, z, rtol=1e-12, atol=1e-12)


def run(model: nn.Module, heads: list[nn.Linear], rates: list[float]) -> list[Tensor]:
    """Three steps of SGD, one rate per side network and its head."""
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model.train()
    groups = []
    for p, (head, rate) in enumerate(zip(heads, rates, strict=True)):
        mine = [u for d in parts(model, 'block') for u in d.units[p].parameters()]
        groups.append({'params': [*mine, *head.parameters()], 'lr': rate})
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        ys = model(x)[0].chunk(len(heads))
        scores = [head(y) for head, y in zip(heads, ys, strict=True)]
        sum(nn.functional.cross_entropy(s, torch.arange(2)) for s in scores).backward()
        optimizer.step()
    return [*(s.detach() for s in scores), *(h.weight.detach() for h in heads)]


def test_parallel_networks_with_own_rates_equal_single_runs():
    rates = [0.3, 0.03, 0.003]
    torch.manual_seed(5)
    head = nn.Linear(32, 3).double()

    def fresh(count: int) -> tuple[nn.Module, list[nn.Linear]]:
        torch.manual_seed(6)
        model = mmpetl.inject(tiny.base('mmpretrain_vit', torch.double), LAST())
        many = mmpetl.inject(
            tiny.base('mmpretrain_vit', torch.double), LAST(num_parallel=count)
        )
        for a, b in zip(parts(many, 'block'), parts(model, 'block'), strict=True):
            for units in a.units:
                units.load_state_dict(b.units[0].state_dict())
        heads = [nn.Linear(32, 3).double() for _ in range(count)]
        for h in heads:
            h.load_state_dict(head.state_dict())
        return many, heads

    together = run(*fresh(3), rates)
    for p, rate in enumerate(rates):
        scores, weight = run(*fresh(1), [rate])
        torch.testing.assert_close(together[p], scores, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together[3 + p], weight, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together[3], together[4])


@torch.no_grad()
def test_sums_are_kept_in_single_precision():
    """In bfloat16 a hundred units that add 1 / 512 each to 1 still add up."""
    site = Site('block', 'b', 8, 8)
    delta = LAST(units=100).build(site).bfloat16()
    for unit in delta.units[0]:
        nn.init.zeros_(unit.qkv.weight)
        unit.out.register_forward_hook(lambda m, i, y: torch.full_like(y, 1 / 512))
    ctx, z = Context((2, 2)), torch.ones(1, 4, 8).bfloat16()
    delta.notes(ctx)[None] = z.float(), None
    delta.after(z, z, ctx)
    _, (e,) = delta.notes(ctx)[None]
    assert e.dtype == torch.float32
    torch.testing.assert_close(e, torch.full_like(e, 100 / 512))


def test_two_side_networks_do_not_mix():
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model = tuned('mmpretrain_vit')
    alone = model(x)[0]
    mmpetl.inject(model, LAST(rank=2))
    model.eval()
    torch.testing.assert_close(model(x)[0], alone, rtol=1e-12, atol=1e-12)


def test_prompts_beside_it_stay_out_of_the_side_network():
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model = mmpetl.inject(tiny.base('mmpretrain_vit', torch.double), 'VPTDeep')
    model.eval()
    prompted = model(x)[0]
    mmpetl.inject(model, LAST())
    model.eval()
    torch.testing.assert_close(model(x)[0], prompted, rtol=1e-12, atol=1e-12)
    tiny.shake_(model, 0.1)
    assert torch.isfinite(model(x)[0]).all()


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match='LAST needs units of at least 1, got 0'):
        LAST(units=0)
    with pytest.raises(PETLError, match='stage 0 has 2 blocks, and group_size is 3'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), LAST(group_size=3))
    with pytest.raises(PETLError, match=r'rank below the width \(16\), got 16'):
        mmpetl.inject(tiny.base('mmpretrain_swin'), LAST(rank=16))
    swin = tiny.mmpretrain_swin(out_indices=(0, 1), out_after_downsample=True)
    with pytest.raises(PETLError, match='behind the patch merging'):
        mmpetl.inject(swin, LAST())


def test_an_output_within_the_first_group_is_the_trunks():
    plain = tiny.randomise_(tiny.mmpretrain_vit(out_indices=[0, 1]))
    plain.eval()
    x = tiny.images('mmpretrain_vit')
    model = mmpetl.inject(
        copy.deepcopy(plain), LAST(rank=2, group_size=2, num_parallel=2)
    )
    tiny.shake_(model)
    with torch.no_grad():
        (first, last), wanted = model(x), plain(x)
    torch.testing.assert_close(first, wanted[0].repeat(2, 1))
    assert not torch.allclose(last, wanted[1].repeat(2, 1))
