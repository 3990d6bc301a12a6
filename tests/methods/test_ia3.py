from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.ia3 import IA3


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 55_296),
        ('timm_vit_b', 55_296),
        ('videomae_b', 55_296),
        ('swin_b', 72_192),
        ('video_swin_b', 72_192),
    ],
)
def test_count(size: str, number: int) -> None:
    got = counts(size, IA3()).delta
    assert got == number
    assert got == sum(d + d + 4 * d for d in widths(size))


def test_equals_the_formula() -> None:
    model = plain_vit.tuned(IA3(), std=0.3)

    def edit(place, i, z, seen):
        if place == 'qkv':
            q, k, v = z.chunk(3, -1)
            k, v = (
                part * plain_vit.delta(model, i, key).scale
                for part, key in ((k, 'attn_k'), (v, 'attn_v'))
            )
            return torch.cat((q, k, v), -1)
        if place == 'fc2_in':
            return z * plain_vit.delta(model, i, 'ffn_fc2').scale
        return z

    plain_vit.check(model, edit)


def test_queries_stay_when_it_is_folded() -> None:
    model = plain_vit.tuned(IA3())
    plain = tiny.base('timm_vit', torch.float64)
    weights = [m.blocks[0].attn.qkv.weight for m in (mmpetl.fold(model), plain)]
    thirds = (weight.chunk(3) for weight in weights)
    q, k, v = (torch.equal(*parts) for parts in zip(*thirds, strict=True))
    assert q
    assert not k
    assert not v


def test_a_trunk_without_attention_is_scaled_at_its_hidden_features() -> None:
    model = mmpetl.inject(tiny.base('timm_convnext'), IA3())
    kinds = {site.kind for site in tiny.record(model).slots['0'].sites}
    assert kinds == {'ffn.fc2'}


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(PETLError, match="IA3 cannot act at 'attn'"):
        IA3(targets=('attn',))
