from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.fact_tt import FacTTT

OFFICIAL_RANKS = (8, 16, 8, 16, 8, 16, 8, 8, 8, 8, 8, 16, 4, 16, 16, 16, 16, 16, 8)
"""Of the authors' 19 VTAB-1k settings, from CIFAR-100 to sNORB/elevation."""


@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [
        ('vit_b', 4, 8_448),
        ('vit_b', 8, 21_504),
        ('vit_b', 16, 61_440),
        ('vit_b', 32, 196_608),
        ('timm_vit_b', 16, 61_440),
        ('videomae_b', 16, 61_440),
        ('swin_b', 16, 135_168),
        ('video_swin_b', 16, 135_168),
    ],
)
def test_count_holds_shared_factors_once(size: str, rank: int, number: int) -> None:
    got = counts(size, FacTTT(rank=rank)).delta
    d = widths(size)
    assert got == number
    assert got == sum(2 * w * rank for w in set(d)) + len(d) * 12 * rank**2


def test_mean_count_over_the_official_ranks() -> None:
    each = {r: counts('vit_b', FacTTT(rank=r)).delta for r in set(OFFICIAL_RANKS)}
    mean = sum(each[r] for r in OFFICIAL_RANKS) / len(OFFICIAL_RANKS)
    assert round(mean) == 39_734


KEYS = ('attn_q', 'attn_k', 'attn_v', 'attn_proj', 'ffn_fc1', 'ffn_fc2')


def slices(model: torch.nn.Module, i: int, key: str) -> list[torch.Tensor]:
    """``scale * v S u`` for each D x D block of a projection, one product at a time."""
    own = plain_vit.delta(model, i, key)
    shared = model.petl.get_submodule('shared.0.stage0')
    rank = len(shared.u)
    cores = own.core.split(rank, dim=0 if key != 'ffn_fc2' else 1)
    return [own.scale * shared.v @ s @ shared.u for s in cores]


def test_equals_the_formula() -> None:
    model = plain_vit.tuned(FacTTT(rank=3, scale=0.5))

    def edit(place, i, z, seen):
        if place == 'qkv':
            w = torch.cat([s for k in KEYS[:3] for s in slices(model, i, k)])
            return z + seen['qkv_in'] @ w.T
        if place == 'm':
            return z + seen['proj_in'] @ slices(model, i, 'attn_proj')[0].T
        if place == 'u':
            rows = torch.cat(slices(model, i, 'ffn_fc1'))
            return z + seen['fc1_in'] @ rows.T
        if place == 'f':
            columns = torch.cat(slices(model, i, 'ffn_fc2'), dim=1)
            return z + seen['fc2_in'] @ columns.T
        return z

    plain_vit.check(model, edit)


def folded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What folding adds to each weight, by name."""
    plain = dict(tiny.base('timm_vit', torch.float64).named_parameters())
    after = mmpetl.core.fold(model).named_parameters()
    return {n: p.detach() - plain[n].detach() for n, p in after if n.endswith('weight')}


def test_every_increment_has_at_most_the_rank() -> None:
    added = folded(plain_vit.tuned(FacTTT(rank=3)))
    qkv = added['blocks.1.attn.qkv.weight'].split(32)
    fc1 = added['blocks.1.mlp.fc1.weight'].split(32)
    fc2 = added['blocks.1.mlp.fc2.weight'].split(32, dim=1)
    squares = [*qkv, added['blocks.1.attn.proj.weight'], *fc1, *fc2]
    assert len(squares) == 3 + 1 + 2 + 2
    for square in squares:
        assert torch.linalg.matrix_rank(square, rtol=1e-8) == 3


@pytest.mark.parametrize('key', KEYS)
def test_a_core_changes_only_its_own_linear(key: str) -> None:
    def one(moved: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = plain_vit.tuned(FacTTT(rank=3))
        if moved:
            with torch.no_grad():
                plain_vit.delta(model, 1, key).core.add_(1.0)
        return folded(model)

    a, b = one(False), one(True)
    changed = {n for n in a if not torch.equal(a[n], b[n])}
    layer = {
        'attn_proj': 'attn.proj',
        'ffn_fc1': 'mlp.fc1',
        'ffn_fc2': 'mlp.fc2',
    }.get(key, 'attn.qkv')
    assert changed == {f'blocks.1.{layer}.weight'}
    if layer == 'attn.qkv':
        name = 'blocks.1.attn.qkv.weight'
        parts = zip(a[name].split(32), b[name].split(32), strict=True)
        same = [torch.equal(x, y) for x, y in parts]
        assert same == [k != key for k in KEYS[:3]]


def test_factors_are_stored_once_per_stage() -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), FacTTT(rank=3))
    shared = [n for n in model.state_dict() if n.endswith(('.u', '.v'))]
    assert shared == [
        f'petl.shared.0.stage{i}.{n}' for i in range(2) for n in ('u', 'v')
    ]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'mlp_ratio': 2.5}, 'a multiple of the other; .*ffn.fc1 maps 32 to 80'),
        ({}, 'rank of at most the width .32 at blocks.0:attn.q., got 33'),
    ],
)
def test_what_does_not_fit_is_refused(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.timm_vit(**args), FacTTT(rank=33 if not args else 4))
