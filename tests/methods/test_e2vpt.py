"""E2VPT: prompts, and learned keys and values."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import nn

import mmpetl
from mmpetl.core import PETLError, Site
from mmpetl.methods.e2vpt import E2VPT
from mmpetl.methods.vpt_deep import VPTDeep


def test_counts():
    assert counts('vit_b', E2VPT()).delta == 138_240
    assert counts('vit_b', E2VPT(share_kv=False)).delta == 92_160 + 2 * 46_080
    assert counts('swin_b', E2VPT(7, 3)).delta == 10 * sum(widths('swin_b'))


@pytest.mark.parametrize('share', [True, False])
def test_equals_a_plain_vit_with_longer_keys(share):
    model = plain_vit.tuned(E2VPT(3, 2, share_kv=share), 0.5)
    plain = tiny.base('timm_vit', torch.double)
    x = tiny.images('timm_vit', dtype=torch.double)
    h = plain._pos_embed(plain.patch_embed(x))
    for i, b in enumerate(plain.blocks):
        kv = plain_vit.delta(model, i, 'attn_core')
        e = plain_vit.delta(model, i, 'tokens').E.expand(2, -1, -1)
        h = torch.cat((h[:, :1], e, h[:, 1:]), dim=1)
        parts = b.attn.qkv(b.norm1(h)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        q, k, v = parts
        ek, ev = (
            t.view(1, 2, 4, 8).transpose(1, 2).expand(2, -1, -1, -1)
            for t in (kv.Ek, kv.Ek if share else kv.Ev)
        )
        k, v = torch.cat((ek, k), dim=2), torch.cat((ev, v), dim=2)
        o = torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v
        h = h + b.attn.proj(o.transpose(1, 2).flatten(2))
        h = h + b.mlp(b.norm2(h))
        h = torch.cat((h[:, :1], h[:, 4:]), dim=1)
    want = plain.head(plain.norm(h)[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_masked_segments_are_channels_of_one_remainder():
    site = Site('tokens', 'b', 8, 8, 0, patch_dims=4, embed_dims=8)
    method = E2VPT(3, 0, token_mask=[1, 0, 1], segment_mask=[[1, 0, 1, 1]] * 3)
    delta = method.build(site).eval()
    nn.init.ones_(delta.E)
    want = torch.ones(3, 8)
    want[1] = 0
    want[:, [1, 5]] = 0
    assert torch.equal(delta.tokens(1)[0], want)
    assert 'mask' in delta.state_dict()


@torch.no_grad()
def test_a_masked_token_still_takes_attention():
    x, outputs = tiny.images('timm_vit'), []
    for mask in ([1, 0], None):
        model = mmpetl.inject(tiny.base('timm_vit'), E2VPT(2, 0, token_mask=mask))
        for param in model.parameters():
            if param.requires_grad and param.shape == (2, 32):
                param.fill_(1)
                if mask is None:
                    param[1] = 0
        model.eval()
        outputs.append(model(x))
    assert torch.equal(*outputs)


@torch.no_grad()
def test_without_keys_and_values_it_is_vpt_deep():
    x, models = tiny.images('timm_vit'), []
    for method in (E2VPT(3, 0), VPTDeep(3)):
        models.append(mmpetl.inject(tiny.base('timm_vit'), method))
        tiny.shake_(models[-1], 1.0)
        models[-1].eval()
        for block in models[-1].blocks:
            block.petl.tokens['0'].E.fill_(0.5)
    assert torch.equal(*(model(x) for model in models))
    with pytest.raises(PETLError, match='num_tokens or num_kv_tokens'):
        E2VPT(0, 0)


def test_the_order_of_keys_and_values_does_not_matter():
    model = plain_vit.tuned(E2VPT(3, 4), 0.5)
    x = tiny.images('timm_vit', dtype=torch.double)
    before = model(x)
    with torch.no_grad():
        for i in range(2):
            kv = plain_vit.delta(model, i, 'attn_core')
            kv.Ek.copy_(kv.Ek.roll(1, 0))
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)


def test_keys_and_values_start_within_the_bound_of_heads():
    site = Site('attn.core', 'b', 64, 64, num_heads=4)
    kv = E2VPT(1, 100, share_kv=False).build(site)
    bound = (6 / (100 * 16)) ** 0.5
    for e in (kv.Ek, kv.Ev):
        assert 0.99 * bound < e.abs().max() <= bound


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ({'token_mask': [1]}, '10 prompts, got 1 in token_mask'),
        ({'num_tokens': 2, 'segment_mask': [[1], [1, 0]]}, 'as many segments'),
        ({'num_tokens': 1, 'token_mask': [2]}, '0 and 1'),
    ],
)
def test_masks_that_do_not_fit_are_refused(args, said):
    with pytest.raises(PETLError, match=said):
        E2VPT(**args)


class Scores(nn.Module):
    """A classifier of one backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def test_importance_is_the_gradient_by_a_mask() -> None:
    """Of a mask that multiplies the prompts of both blocks, batch by batch."""
    prune = {'tokens': 0.34, 'segments': 0.5, 'num_segments': 8}
    method = E2VPT(3, 2, prune=prune)
    model = Scores(mmpetl.inject(tiny.base('timm_vit', torch.double), method))
    tiny.shake_(model, 0.5)
    torch.manual_seed(0)
    batches = [(torch.randn(2, 3, 32, 32).double(), torch.tensor([0, 3]))] * 2
    batches[1] = (batches[1][0] + 1, torch.tensor([4, 1]))
    got = method.importance(model.train(), batches)
    assert model.training
    model.eval()
    mask = torch.ones(3, 8, dtype=torch.double, requires_grad=True)
    deltas = [block.petl.tokens['0'] for block in model.backbone.blocks]
    for delta in deltas:
        tokens = mask[:, torch.arange(32) % 8] * delta.E.detach()
        delta.tokens = lambda batch, tokens=tokens: tokens.expand(batch, -1, -1)
    want = torch.zeros(3, 8).double()
    for x, labels in batches:
        loss = nn.functional.cross_entropy(model(x), labels)
        want += torch.autograd.grad(loss, mask, retain_graph=True)[0] / 2
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    masks = method.masks(want)
    assert masks['token_mask'].index(0) == want.sum(1).argmin()
    assert sum(masks['token_mask']) == 2
    for row, scores in zip(masks['segment_mask'], want, strict=True):
        gone = scores[[i for i, bit in enumerate(row) if not bit]]
        left = scores[[i for i, bit in enumerate(row) if bit]]
        assert len(gone) == len(left) == 4
        assert gone.max() <= left.min()


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ({'prune': 0.5}, r'prune=dict\(tokens=\.\.\., segments=\.\.\.\)'),
        ({'prune': {'tokens': 2, 'segments': 0}}, 'prune of E2VPT needs tokens of'),
        ({'prune': {'tokens': 1, 'segments': 0}}, 'needs some that are left'),
        (
            {'prune': {'tokens': 0, 'segments': 0}, 'token_mask': [1] * 10},
            'prune or masks, not both',
        ),
    ],
)
def test_shares_that_cannot_be_pruned_are_refused(args, said):
    with pytest.raises(PETLError, match=said):
        E2VPT(**args)
