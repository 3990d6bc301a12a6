from __future__ import annotations

import pytest
import tiny
import torch
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.lora import LoRA


@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [
        ('vit_b', 8, 294_912),
        ('vit_b', 16, 589_824),
        ('timm_vit_b', 8, 294_912),
        ('videomae_b', 8, 294_912),
        ('swin_b', 64, 3_080_192),
        ('swin_b', 16, 770_048),
        ('swin_l', 64, 4_620_288),
        ('video_swin_b', 16, 770_048),
    ],
)
def test_count(size: str, rank: int, number: int) -> None:
    got = counts(size, LoRA(rank=rank)).delta
    assert got == number
    assert got == sum(4 * d * rank for d in widths(size))


def test_published_count_with_the_fgvc_head() -> None:
    assert counts('vit_b', LoRA(rank=16)).delta + FGVC_HEAD == 770_231  # 0.77M


def test_shared_a_over_the_fused_projection_counts_the_same() -> None:
    assert counts('vit_b', LoRA(targets=('attn.qkv',))).delta == 294_912


def pair(dtype: torch.dtype, **args) -> tuple[torch.nn.Module, torch.nn.Module]:
    base = tiny.mmpretrain_vit().to(dtype)
    torch.manual_seed(1)
    for param in base.parameters():
        torch.nn.init.normal_(param, std=0.2)
    tuned = tiny.mmpretrain_vit().to(dtype)
    tuned.load_state_dict(base.state_dict())
    mmpetl.inject(tuned, LoRA(**args))
    for name, param in tuned.named_parameters():
        if '.petl.' in name:
            torch.nn.init.normal_(param, std=0.3)
    base.eval()
    tuned.eval()
    return base, tuned


def test_equals_weights_written_by_hand() -> None:
    """``W + (alpha / r) B A`` on the q and v rows of an untouched model."""
    base, tuned = pair(torch.float64, rank=2, alpha=6.0)
    with torch.no_grad():
        for mine, theirs in zip(base.layers, tuned.layers, strict=True):
            d = theirs.attn.proj.in_features
            for site, rows in (('attn_q', slice(0, d)), ('attn_v', slice(2 * d, None))):
                delta = theirs.petl.get_submodule(f'{site}.0')
                mine.attn.qkv.weight[rows] += 3.0 * delta.B @ delta.A
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for a, b in zip(base(x), tuned(x), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_folding_leaves_the_key_rows_bit_identical() -> None:
    base, tuned = pair(torch.float32, rank=2)
    mmpetl.fold(tuned)
    for mine, theirs in zip(base.layers, tuned.layers, strict=True):
        before, after = mine.attn.qkv.weight, theirs.attn.qkv.weight
        q, k, v = (
            torch.equal(a, b) for a, b in zip(*_thirds(before, after), strict=True)
        )
        assert k
        assert not q
        assert not v


def _thirds(*weights: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [weight.chunk(3) for weight in weights]


def test_dropout_acts_on_the_low_rank_path_only() -> None:
    base, tuned = pair(torch.float64, rank=2, drop_rate=1.0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tuned.train()
    for a, b in zip(base(x), tuned(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'LoRA needs rank of at least 1, got 0'),
        ({'drop_rate': 2}, 'LoRA needs drop_rate of at least 0 and at most 1, got 2'),
        ({'targets': ('attn.sum',)}, "LoRA cannot act at 'attn.sum'"),
        ({'targets': ()}, 'LoRA needs at least one of: attn.qkv'),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError) as info:
        LoRA(**args)
    assert message in str(info.value)


def test_a_rank_as_wide_as_the_projection_is_refused() -> None:
    with pytest.raises(
        PETLError, match=r'below the narrowest projection \(32\), got 32'
    ):
        mmpetl.inject(tiny.mmpretrain_vit(), LoRA(rank=32))


def test_folding_in_and_out_again_restores_the_weights() -> None:
    base, tuned = pair(torch.float64, rank=2, alpha=6.0)
    factors = {
        n: p.detach().clone() for n, p in tuned.named_parameters() if 'petl' in n
    }
    mmpetl.fold(tuned)
    assert (tuned.layers[0].attn.qkv.weight - base.layers[0].attn.qkv.weight).any()
    # The same factors with the other sign take out what was written in.
    mmpetl.inject(tuned, LoRA(rank=2, alpha=6.0))
    with torch.no_grad():
        for name, param in tuned.named_parameters():
            if name in factors:
                param.copy_(factors[name] * (-1 if name.endswith('.B') else 1))
    mmpetl.fold(tuned)
    want = dict(base.named_parameters())
    assert [n for n, _ in tuned.named_parameters()] == list(want)
    for name, param in tuned.named_parameters():
        assert (param - want[name]).abs().max() <= 1e-12, name


def test_a_folded_model_cannot_be_folded_twice() -> None:
    _, tuned = pair(torch.float32, rank=2)
    weight = mmpetl.fold(tuned).layers[0].attn.qkv.weight.clone()
    with pytest.raises(PETLError, match='holds 0 injected backbones'):
        mmpetl.fold(tuned)
    assert torch.equal(tuned.layers[0].attn.qkv.weight, weight)
