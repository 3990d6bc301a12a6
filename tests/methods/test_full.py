from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts

import mmpetl
from mmpetl.methods.full import Full


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 85_798_656),  # published 85.8M
        ('timm_vit_b', 85_798_656),
        ('swin_b', 86_743_224),
        ('swin_b_dense', 86_745_016),  # published 86.75M
        ('swin_l', 194_995_476),
        ('swin_l_dense', 194_998_164),
        ('videomae_b', 86_227_200),
        ('video_swin_b', 87_638_984),  # published 87.64M
    ],
)
def test_count_is_the_whole_backbone(size: str, number: int) -> None:
    got = counts(size, 'Full')
    assert (got.delta, got.selected, got.base) == (0, number, 0)


def test_what_was_frozen_before_stays_frozen() -> None:
    model = tiny.base('timm_vit')
    model.pos_embed.requires_grad_(False)
    mmpetl.inject(model, Full())
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ['pos_embed']


def test_the_whole_backbone_is_in_training_mode() -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), Full())
    model.train()
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize('name', ['mmpretrain_vit', 'mmpretrain_swin', 'mmaction_vit'])
def test_every_parameter_moves_but_the_key_bias(name: str) -> None:
    x = tiny.images(name, dtype=torch.float64)
    model = tiny.Tuned(mmpetl.inject(tiny.base(name, torch.float64), Full()), x)
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    # Plain steps: Adam would blow a key's rounding errors up to a step of their own.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        tiny.loss_of(model(x)).backward()
        optimizer.step()
    step = {n: (p - before[n]).abs() for n, p in model.named_parameters()}
    assert [n for n, moved in step.items() if not moved.any()] == []
    fused = [moved for n, moved in step.items() if n.endswith('qkv.bias')]
    # VideoMAE has biases of queries and values alone.
    assert bool(fused) is (name != 'mmaction_vit')
    for moved in fused:
        q, k, v = moved.chunk(3)
        assert k.max() < 1e-10 * v.max()
        assert q.max() > 1e-6 * v.max()
