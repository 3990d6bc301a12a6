from __future__ import annotations

import plain_vit
import pytest
import tiny
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.arc import ARC

SITES = {'qkv_in': 'attn_qkv', 'fc1_in': 'ffn_fc1'}


@pytest.mark.parametrize(
    ('size', 'style', 'number'),
    [
        ('vit_b', 'block', 96_432),
        ('vit_b', 'attn', 48_216),
        ('timm_vit_b', 'block', 96_432),
        ('videomae_b', 'block', 96_432),
        ('swin_b', 'block', 218_464),
    ],
)
def test_count_holds_shared_matrices_once(size: str, style: str, number: int) -> None:
    got = counts(size, ARC(style)).delta
    each = widths(size)
    positions = {'block': 2, 'attn': 1}[style]
    assert got == number
    assert got == positions * (50 * sum(set(each)) + sum(50 + d for d in each))


def test_published_count_holds_the_head() -> None:
    got = counts('vit_b', ARC()).delta
    assert got + 38_045 == 134_477  # published 0.13M with the mean head of VTAB-1k


@pytest.mark.parametrize('style', ['block', 'attn'])
def test_equals_the_formula(style: str) -> None:
    model = plain_vit.tuned(ARC(style, rank=5), std=0.3)

    def edit(place, i, z, seen):
        if place not in SITES or (style == 'attn' and place == 'fc1_in'):
            return z
        key = SITES[place]
        own = plain_vit.delta(model, i, key)
        d = model.get_parameter(f'petl.shared.0.{key}_stage0_32')
        return z + z @ (d * own.c) @ d.T + own.t

    plain_vit.check(model, edit)


def test_blocks_of_a_stage_share_a_matrix_for_each_position() -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), ARC(rank=3))
    shared = {n for n, _ in model.named_parameters() if '.shared.' in n}
    assert shared == {
        f'petl.shared.0.{kind}_stage{i}_{dims}'
        for i, dims in enumerate((16, 32))
        for kind in ('attn_qkv', 'ffn_fc1')
    }
    deltas = [m for m in model.modules() if hasattr(m, 'factor')]
    assert {id(delta.factor()) for delta in deltas} == {
        id(model.get_parameter(name)) for name in shared
    }


def test_only_adapters_of_networks_start_away_from_zero() -> None:
    def start(**args) -> tuple[float, float]:
        model = mmpetl.inject(tiny.base('timm_vit'), ARC(rank=50, **args))
        return tuple(
            plain_vit.delta(model, 0, key).c.abs().max().item()
            for key in SITES.values()
        )

    attention, network = start()
    bound = (6 / 51) ** 0.5
    assert attention == 0
    assert 0.5 * bound < network <= bound
    assert start(exact_identity=True) == (0, 0)
    assert not ARC().starts_as_identity
    assert ARC('attn').starts_as_identity


def test_bad_style_is_named() -> None:
    with pytest.raises(PETLError, match="ARC needs style block or attn, got 'ffn'"):
        ARC('ffn')
