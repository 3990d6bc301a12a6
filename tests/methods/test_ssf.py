from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import Context, PETLError
from mmpetl.methods.ssf import SSF

EXACT = SSF(exact_identity=True)


@pytest.mark.parametrize(
    ('size', 'plain', 'with_merging'),
    [
        ('vit_b', 205_824, 205_824),  # published 0.21M, VTAB-1k
        ('timm_vit_b', 205_824, 205_824),
        ('swin_b', 267_264, 274_432),
        ('swin_l', 400_896, 411_648),
        ('videomae_b', 205_824, 205_824),
        ('video_swin_b', 267_264, 274_432),
    ],
)
def test_count(size: str, plain: int, with_merging: int) -> None:
    assert counts(size, SSF()).delta == plain
    assert counts(size, SSF(on_merge_norm=True)).delta == with_merging
    d = widths(size)
    stem = (4 if 'swin' in size else 2) * d[0]
    assert plain == sum(22 * w for w in d) + stem + 2 * d[-1]


def test_published_fgvc_count_holds_the_head() -> None:
    assert counts('vit_b', SSF()).delta + FGVC_HEAD == 386_231  # published 0.39M


def test_exact_identity_is_exact(stem: str) -> None:
    x = tiny.images(stem, odd=True)
    plain = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), EXACT)
    for a, b in zip(tiny.outputs(plain, x), tiny.outputs(model, x), strict=True):
        assert torch.equal(a, b)
    assert EXACT.starts_as_identity
    assert not SSF().starts_as_identity


def test_published_start_is_near_the_base_and_not_equal(stem: str) -> None:
    x = tiny.images(stem)
    model = mmpetl.inject(tiny.base(stem), SSF())
    with torch.no_grad():
        want, got = tiny.outputs(tiny.base(stem), x), tiny.outputs(model, x)
    for a, b in zip(want, got, strict=True):
        assert 0.01 < ((a - b).norm() / a.norm()).item() < 0.2


def test_equals_the_formula() -> None:
    model = plain_vit.tuned(SSF())
    inside = {
        'a': 'norm1',
        'qkv': 'attn_qkv',
        'm': 'attn_proj',
        'g': 'norm2',
        'u': 'ffn_fc1',
        'f': 'ffn_fc2',
    }
    ends = {'embed': 'embed_proj', 'final': 'out_norm_1'}

    def edit(place, i, z, seen):
        if place in inside:
            pair = plain_vit.delta(model, i, inside[place])
        elif place in ends:
            pair = model.petl.get_submodule(f'{ends[place]}.0')
        else:
            return z
        return z * pair.gamma + pair.beta

    plain_vit.check(model, edit)


@pytest.mark.parametrize('name', ['mmpretrain_vit', 'mmpretrain_swin', 'mmaction_vit'])
def test_key_rows_of_the_fused_shift_get_no_gradient(name: str) -> None:
    model = mmpetl.inject(tiny.base(name, torch.float64), SSF())
    x = tiny.images(name, odd=True, dtype=torch.float64)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    shifts = [p for n, p in model.named_parameters() if n.endswith('attn_qkv.0.beta')]
    assert shifts
    for shift in shifts:
        q, k, v = shift.grad.chunk(3)
        assert k.abs().max() < 1e-10 * v.abs().max()
        assert q.abs().max() > 1e-6 * v.abs().max()


def test_merging_norms_fold_too() -> None:
    name = 'mmpretrain_swin'
    x = tiny.images(name, odd=True, dtype=torch.float64)
    method = SSF(on_merge_norm=True)
    model = mmpetl.inject(tiny.base(name, torch.float64), method)
    tiny.shake_(model)
    assert 'petl.downsample_norm_0.0.gamma' in model.state_dict()
    with torch.no_grad():
        want = model(x)
        for a, b in zip(want, mmpetl.core.fold(model)(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_shift_needs_a_bias_to_fold_into() -> None:
    model = mmpetl.inject(tiny.timm_vit(qkv_bias=False), SSF())
    with pytest.raises(PETLError, match='attn.qkv has no bias to fold a shift into'):
        mmpetl.core.fold(model)


def test_half_precision_keeps_scales_near_one() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), EXACT)
    pair = plain_vit.delta(model, 0, 'ffn_fc2')
    y = torch.linspace(64, 128, 32 * 128).view(1, 128, 32).bfloat16()
    with torch.no_grad():
        pair.gamma.fill_(1.0035)  # rounds to 1 in bfloat16
        out = pair.after(y, y, Context(()))
    assert out.dtype is y.dtype
    assert out.double().mean() > 1.002 * y.double().mean()
