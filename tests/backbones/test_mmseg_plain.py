"""VisionTransformer, BEiT and MAE of mmseg against upstream's own forward pass."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import Nothing, loss_of, randomise_
from torch import nn

from mmpetl.core import PETLError, inject

VIT: list[dict[str, Any]] = [
    {'patch_bias': False, 'qkv_bias': False},
    {'patch_norm': True, 'pre_norm': True},
    {'with_cls_token': False},
    {'output_cls_token': True, 'out_origin': True},
    {'final_norm': False, 'out_indices': -1},
    {'with_cp': True},
    {'act_cfg': {'type': 'ReLU'}, 'norm_cfg': {'type': 'LN', 'eps': 1e-3}},
]
BEIT: list[dict[str, Any]] = [
    {'qv_bias': False},
    {'patch_norm': True},
    {'final_norm': False, 'out_indices': -1},
    {'kind': 'MAE'},
    {'kind': 'MAE', 'patch_norm': True},
]
CASES = [('mmseg_vit', args) for args in VIT] + [('mmseg_beit', args) for args in BEIT]


def build(stem: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    made = randomise_(importlib.import_module(f'trunks.{stem}').build(**args))
    made.eval()
    return made


def flat(outputs: Any) -> list[torch.Tensor]:
    """Every tensor, however it is packed."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flat(part)]


@pytest.mark.parametrize(('trunk', 'args'), CASES, ids=str)
def test_options_agree_in_outputs_and_gradients(
    trunk: str, args: dict[str, Any]
) -> None:
    plain = build(trunk, **args).double()
    # torch's attention has a fast path in eval mode, which sums in another order.
    plain.train()
    ours = inject(copy.deepcopy(plain), 'Full')
    for size in ((32, 32), (37, 50)) if trunk == 'mmseg_vit' else ((32, 32),):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        theirs, got = plain(x), ours(x)
        assert type(got) is type(theirs)
        assert [type(y) for y in got] == [type(y) for y in theirs]
        pairs = list(zip(flat(got), flat(theirs), strict=True))
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for ys in (flat(theirs), flat(got)):
        loss_of(ys).backward()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        grads = [torch.zeros_like(p) if t.grad is None else t.grad for t in (p, q)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9, msg=name)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['BEiT', 'MAE'])
def test_prompts_stand_between_class_token_and_patches_without_a_bias(
    kind: str,
) -> None:
    model = build('mmseg_beit', kind=kind, final_norm=False, out_indices=1).double()
    tuned = inject(copy.deepcopy(model), {'type': 'VPTDeep', 'num_tokens': 3})
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    h = model.patch_embed(x)[0]
    h = torch.cat((model.cls_token.expand(2, -1, -1), h), dim=1)
    h = h + model.pos_embed if kind == 'MAE' else h
    own = [0, *range(4, 20)]
    for ours, block in zip(tuned.layers, model.layers, strict=True):
        prompts = ours.petl.tokens['0'].E.expand(2, -1, -1).double()
        h = torch.cat((h[:, :1], prompts, h[:, 1:]), dim=1)
        attn = block.attn
        qkv = attn.qkv(block.norm1(h))
        if attn.bias == 'qv_bias':
            zero = torch.zeros_like(attn.q_bias)
            qkv = qkv + torch.cat((attn.q_bias, zero, attn.v_bias))
        q, k, v = qkv.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        bias = torch.zeros(4, 20, 20, dtype=torch.float64)
        for i, row in enumerate(own):
            for j, column in enumerate(own):
                entry = attn.relative_position_index[i, j]
                bias[:, row, column] = attn.relative_position_bias_table[entry]
        o = F.softmax(q @ k.mT * 8**-0.5 + bias, dim=-1) @ v
        o = attn.proj(o.transpose(1, 2).flatten(2))
        h = h + block.gamma_1 * o
        h = h + block.gamma_2 * block.ffn(block.norm2(h))
        h = torch.cat((h[:, :1], h[:, 4:]), dim=1)
    expected = h[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    (got,) = tuned(x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_another_size_is_refused_in_one_line() -> None:
    model = inject(build('mmseg_beit'), Nothing())
    with pytest.raises(PETLError, match="set img_size .*mode='slide'"):
        model(torch.randn(1, 3, 48, 32))


def test_what_upstream_freezes_stays_frozen() -> None:
    model = build('mmseg_vit', frozen_exclude=['pos_embed'])
    inject(model, 'Full')
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ['pos_embed']
