from __future__ import annotations

import pytest
import tiny
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
