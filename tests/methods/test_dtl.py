"""DTL: a low-rank residual beside the blocks, fed back into the late ones."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import Context, PETLError
from mmpetl.core.inject import injection_of
from mmpetl.methods.dtl import DTL


def deep(method: DTL, depth: int = 4) -> nn.Module:
    torch.manual_seed(5)
    model = mmpetl.inject(tiny.randomise_(tiny.timm_vit(depth=depth)).double(), method)
    model.eval()
    return model


def deltas(model: nn.Module) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == 'block']
    return [core.get_submodule(site.path)['0'] for site in sites]


@pytest.mark.parametrize(
    ('host', 'args', 'count'),
    [
        ('vit_b', {}, 36_864),
        ('vit_b', {'kernel_size': 3}, 43_776),
        ('vit_b', {'kernel_size': 4}, 49_152),
        ('vit_b', {'kernel_size': 5}, 56_064),
        ('swin_b', {'rank': 4}, 90_112),
        ('swin_b', {'rank': 4, 'kernel_size': 5}, 90_112 + 38_400),
        ('swin_l_dense', {'rank': 4}, 135_168),
        ('video_swin_b', {'rank': 4}, 90_112),
    ],
)
def test_published_and_specified_counts(host, args, count):
    assert counts(host, DTL(**args)).delta == count


def test_equals_the_recursion_written_out():
    model, plain = deep(DTL(add_after=[2, 3])), deep(tiny.Nothing())
    tiny.shake_(model, 0.2)
    x = tiny.images('timm_vit', dtype=torch.double)
    z = plain._pos_embed(plain.patch_embed(x))
    h = torch.zeros_like(z)
    for i, delta in enumerate(deltas(model)):
        h = h + z @ delta.A.T @ delta.B.T
        z = plain.blocks[i](z, Context((4, 4), 1))
        if i >= 2:
            z = z + h / (1 + torch.exp(-100 * h))
    want = plain.head(plain.norm(z[:, 1:].mean(1)))
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kernel', [None, 3, 4])
def test_starts_bit_for_bit_at_the_frozen_model(stem, kernel):
    x = tiny.images(stem)
    frozen = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), DTL(1, kernel_size=kernel, patch_mean=False))
    frozen.eval(), model.eval()
    for got, want in zip(tiny.outputs(model, x), tiny.outputs(frozen, x), strict=True):
        assert torch.equal(got, want)


def test_feature_is_the_normed_mean_over_patches():
    model, plain = deep(DTL()), deep(tiny.Nothing())
    x = tiny.images('timm_vit', dtype=torch.double)
    seen = []
    plain.blocks[-1].register_forward_hook(lambda m, i, y: seen.append(y))
    plain(x)
    want = plain.head(plain.norm(seen[0][:, 1:].mean(1)))
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


def test_averaged_features_keep_their_pooling():
    for stem in ('mmpretrain_swin', 'mmpretrain_swin_cls', 'mmaction_vit'):
        model = mmpetl.inject(tiny.base(stem), DTL(1))
        kinds = {s.kind for s in injection_of(model)[1].slots['0'].sites}
        assert kinds == {'block'}


def test_gradients_stop_behind_the_first_addition():
    model, seen = deep(DTL(add_after=[2, 3])), []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda m, i, y: seen.append(i[0]))
    model.train()
    model(tiny.images('timm_vit', dtype=torch.double)).sum().backward()
    assert [z.requires_grad for z in seen] == [False, False, False, True]


def test_at_the_start_only_B_gets_a_gradient():
    model = deep(DTL())
    model(tiny.images('timm_vit', dtype=torch.double)).square().sum().backward()
    for delta in deltas(model):
        assert delta.B.grad.any()
        assert not delta.A.grad.any()


def test_second_half_adds_and_whole_stages_feed():
    assert [d.adds for d in deltas(deep(DTL(), 6))] == [False] * 3 + [True] * 3
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), DTL(1))
    sites = injection_of(model)[1].slots['0'].sites
    assert [(s.stage, s.block) for s in sites] == [(1, 2), (1, 3)]


def test_published_blocks_on_swin_b():
    method = DTL(4)
    sites = [
        mmpetl.core.Site('block', '', 8, 8, i, stage, 24, window=(7, 7))
        for i, stage in enumerate([0] * 2 + [1] * 2 + [2] * 18 + [3] * 2)
    ]
    chosen = method.choose(sites)
    assert [s.block for s in chosen] == list(range(4, 24))
    assert [s.block for s in chosen if method.adds(s)] == list(range(14, 24))


def test_blocks_that_attend_to_all_are_no_reason_to_begin_elsewhere():
    """As in Twins-SVT-B, where each second one does."""
    method = DTL(4)
    sites = [
        mmpetl.core.Site(
            'block', '', 8, 8, i, stage, 24, window=None if i % 2 else (7, 7)
        )
        for i, stage in enumerate([0] * 2 + [1] * 2 + [2] * 18 + [3] * 2)
    ]
    chosen = method.choose(sites)
    assert [s.block for s in chosen if method.adds(s)] == list(range(14, 24))


def test_side_state_does_not_cross_a_patch_merging():
    x = tiny.images('mmpretrain_swin', dtype=torch.double)
    model = mmpetl.inject(
        tiny.base('mmpretrain_swin', torch.double), DTL(1, add_after=[1, 3])
    )
    tiny.shake_(model, 0.3)
    contexts = []
    block = model.stages[1].blocks[1]
    block.register_forward_pre_hook(lambda m, i: contexts.append(i[1]))
    model.eval()
    model(x)
    first, second = contexts[0].notes['0'].values()
    assert first.shape == (2, 64, 16)
    assert second.shape == (2, 16, 32)
    fed = deltas(model)[2:]
    z = []
    for b in model.stages[1].blocks:
        b.register_forward_pre_hook(lambda m, i: z.append(i[0]))
    model(x)
    want = sum(t @ d.A.T @ d.B.T for t, d in zip(z, fed, strict=True))
    torch.testing.assert_close(second, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('side', [4, 14])
def test_an_even_kernel_keeps_the_size_and_the_class_token(side):
    model = deep(DTL(kernel_size=4, add_after=[0]), 2)
    tiny.shake_(model, 0.3)
    delta, ctx = deltas(model)[0], Context((side, side), 1)
    x = torch.randn(2, 1 + side**2, 32, dtype=torch.double)
    delta.before(x, ctx)
    y = torch.zeros_like(x)
    got = delta.after(x, y, ctx)
    assert got.shape == x.shape
    h = x @ delta.A.T @ delta.B.T
    want = (h * torch.sigmoid(100 * h))[:, 0]
    torch.testing.assert_close(got[:, 0], want, rtol=1e-9, atol=1e-9)


def test_a_block_that_is_not_there_is_refused():
    for blocks in ([2, 9], [9]):
        with pytest.raises(PETLError, match='behind block 9; .* blocks 0 to 3'):
            deep(DTL(add_after=blocks))
    with pytest.raises(PETLError, match='at least one block in add_after'):
        DTL(add_after=[])


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(PETLError, match=r'below the width \(32\), got 32'):
        deep(DTL(32))


def test_of_twelve_blocks_the_first_seven_build_no_graph():
    model, seen = deep(DTL(), 12), []
    tiny.shake_(model, 0.2)
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda m, i, y: seen.append(i[0]))
    model.train()
    x = tiny.images('timm_vit', dtype=torch.double)
    alone = model(x)
    assert [z.requires_grad for z in seen] == [False] * 7 + [True] * 5
    alone.square().sum().backward()
    # The recursion written out, with everything in the graph.
    plain = deep(tiny.Nothing(), 12)
    z = plain._pos_embed(plain.patch_embed(x)).detach().requires_grad_()
    h = torch.zeros_like(z)
    factors = [
        tuple(t.detach().clone().requires_grad_() for t in (delta.A, delta.B))
        for delta in deltas(model)
    ]
    for i, (a, b) in enumerate(factors):
        h = h + z @ a.T @ b.T
        z = plain.blocks[i](z, Context((4, 4), 1))
        if i >= 6:
            z = z + h * torch.sigmoid(100 * h)
    whole = plain.head(plain.norm(z[:, 1:].mean(1)))
    whole.square().sum().backward()
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-9)
    for delta, (a, b) in zip(deltas(model), factors, strict=True):
        for got, want in ((delta.A.grad, a.grad), (delta.B.grad, b.grad)):
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
            assert got.any()


@pytest.mark.parametrize(
    ('host', 'exact'),
    [('mmpretrain_swin', True), ('mmaction_vit', True), ('mmpretrain_vit', False)],
)
@torch.no_grad()
def test_it_says_whether_this_backbone_starts_as_it_was(host, exact):
    x = tiny.images(host, dtype=torch.double)
    plain = tiny.outputs(
        mmpetl.inject(tiny.base(host, torch.double), tiny.Nothing()), x
    )
    model = mmpetl.inject(tiny.base(host, torch.double), DTL())
    same = map(torch.equal, tiny.outputs(model, x), plain)
    assert all(same) is exact
    assert mmpetl.slots(model)[0].method.starts_as_identity is exact
