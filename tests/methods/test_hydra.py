from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.hydra import Hydra
from mmpetl.methods.lora import LoRA

VTAB_HEAD = 38_045  # mean over the classes of the 19 tasks


@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [
        ('vit_b', 2, 239_712),
        ('vit_b', 8, 848_256),
        ('timm_vit_b', 2, 239_712),
        ('videomae_b', 2, 239_712),
        ('swin_b', 2, 313_024),
        ('video_swin_b', 2, 313_024),
    ],
)
def test_count(size: str, rank: int, number: int) -> None:
    got = counts(size, Hydra(rank=rank)).delta
    assert got == number
    assert got == sum(11 * d * rank + 4 * rank + 4 * d for d in widths(size))


def test_published_count_holds_the_head() -> None:
    # Published 0.28M on VTAB-1k.
    assert counts('vit_b', Hydra()).delta + VTAB_HEAD == 277_757


def test_equals_the_formula() -> None:
    model = plain_vit.tuned(Hydra(rank=3, scale=0.5))
    at = {'m': ('proj_in', 'attn_proj'), 'f': ('fc2_in', 'ffn_fc2')}

    def edit(place, i, y0, seen):
        if place not in at:
            return y0
        inside, key = at[place]
        own = plain_vit.delta(model, i, key)
        p, s = own.parallel, own.sequential
        beside = (seen[inside] @ p.down.weight.T + p.down.bias) @ p.up.weight.T
        behind = (y0 @ s.down.weight.T + s.down.bias) @ s.up.weight.T
        return y0 + 0.5 * (beside + p.up.bias + behind + s.up.bias)

    plain_vit.check(model, edit)


def one_branch(branch: str) -> torch.nn.Module:
    """A tuned model in which only one branch acts."""
    model = plain_vit.tuned(Hydra(rank=3, scale=0.5, targets=['attn.proj']))
    other = {'parallel': 'sequential', 'sequential': 'parallel'}[branch]
    with torch.no_grad():
        for block in model.blocks:
            silent = getattr(block.petl.attn_proj['0'], other)
            silent.up.weight.zero_()
            silent.up.bias.zero_()
    return model


@torch.no_grad()
def test_sequential_branch_alone_folds_to_q_times_w() -> None:
    model = one_branch('sequential')
    own = plain_vit.delta(model, 1, 'attn_proj').sequential
    q = torch.eye(32).double() + 0.5 * own.up.weight @ own.down.weight
    proj = tiny.base('timm_vit', torch.float64).blocks[1].attn.proj
    shift = 0.5 * (own.up.weight @ own.down.bias + own.up.bias)
    folded = mmpetl.core.fold(model).blocks[1].attn.proj
    torch.testing.assert_close(folded.weight, q @ proj.weight)
    torch.testing.assert_close(folded.bias, q @ proj.bias + shift)


@torch.no_grad()
def test_parallel_branch_alone_is_lora() -> None:
    model = one_branch('parallel')
    other = mmpetl.inject(
        tiny.base('timm_vit', torch.float64),
        LoRA(rank=3, alpha=1.5, targets=['attn.proj']),
    )
    other.eval()
    for mine, theirs in zip(model.blocks, other.blocks, strict=True):
        own = mine.petl.attn_proj['0'].parallel
        own.down.bias.zero_()
        own.up.bias.zero_()
        theirs.petl.attn_proj['0'].A.copy_(own.down.weight)
        theirs.petl.attn_proj['0'].B.copy_(own.up.weight)
    x = tiny.images('timm_vit', dtype=torch.float64)
    torch.testing.assert_close(model(x), other(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', ['mmpretrain_swin', 'mmaction_vit', 'mmaction_swin3d'])
def test_folds_at_every_projection_where_keys_have_no_bias(name: str) -> None:
    x = tiny.images(name, odd=True, dtype=torch.float64)
    method = Hydra(scale=2.0, targets=['attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2'])
    model = mmpetl.inject(tiny.base(name, torch.float64), method)
    model.eval()
    tiny.shake_(model)
    with torch.no_grad():
        want = tiny.outputs(model, x)
        got = tiny.outputs(mmpetl.core.fold(model), x)
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_dropout_acts_in_training_only() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), Hydra(drop_rate=0.5))
    tiny.shake_(model)
    x = tiny.images('timm_vit')
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'rank of at least 1, got 0'),
        ({'drop_rate': 1.5}, 'drop_rate of at least 0 and at most 1, got 1.5'),
        ({'targets': ['attn']}, "Hydra cannot act at 'attn'"),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        Hydra(**args)


def test_rank_of_a_whole_width_is_refused() -> None:
    with pytest.raises(PETLError, match=r'narrowest projection \(32\), got 32'):
        mmpetl.inject(tiny.timm_vit(), Hydra(rank=32))
