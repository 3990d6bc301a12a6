"""VFPT: prompts behind a Fourier transform."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import Context, PETLError, Site
from mmpetl.methods.vfpt import VFPT
from mmpetl.methods.vpt_deep import VPTDeep

SITE = Site('tokens', 'b', 8, 8, 0, patch_dims=4, embed_dims=8)


def prompts(**args) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameter of a delta and what joins the stream, (P, 8) each."""
    delta = VFPT(6, drop_rate=0.0, **args).build(SITE).double()
    delta.attach('0', None)
    joined = delta.before(torch.zeros(1, 4, 8).double(), Context((2, 2)))
    return delta.E.detach(), joined[0, :6].detach()


def fourier(rows: int) -> torch.Tensor:
    """The matrix of the transform, written out."""
    at = torch.arange(rows, dtype=torch.double)
    angle = -2 * torch.pi * at[:, None] * at / rows
    return torch.complex(angle.cos(), angle.sin())


def test_counts():
    assert counts('vit_b', VFPT(10)).delta == 92_160
    assert counts('vit_b', VFPT(50)).delta == 460_800
    assert counts('swin_b', VFPT(7)).delta == 7 * sum(widths('swin_b'))


@pytest.mark.parametrize('norm', [None, 'ortho'])
@pytest.mark.parametrize(
    ('axes', 'fraction', 'f'),
    [('both', 0.5, 3), ('hidden', 1, 6), ('sequence', 0.7, 4)],
)
def test_the_first_prompts_are_sums_of_cosines(axes, fraction, f, norm):
    e, joined = prompts(fraction=fraction, axes=axes, norm=norm)
    z = torch.complex(e[:f], torch.zeros_like(e[:f]))
    size = 1
    if axes != 'sequence':
        z, size = z @ fourier(8), size * 8
    if axes != 'hidden':
        z, size = fourier(f) @ z, size * f
    want = z.real if norm is None else z.real / size**0.5
    torch.testing.assert_close(joined[:f], want, rtol=1e-10, atol=1e-10)
    assert torch.equal(joined[f:], e[f:])


@torch.no_grad()
def test_without_a_share_it_is_vpt_deep_bit_for_bit(stem):
    x, models = tiny.images(stem), []
    for method in (VFPT(3, fraction=0.0), VPTDeep(3)):
        models.append(mmpetl.inject(tiny.base(stem), method))
        tiny.shake_(models[-1], 1.0)
        models[-1].eval()
        for module in models[-1].modules():
            if hasattr(module, 'E'):
                module.E.copy_(
                    torch.linspace(-1, 1, module.E.numel()).view_as(module.E)
                )
    got, want = (tiny.outputs(model, x) for model in models)
    assert all(map(torch.equal, got, want))


def test_shares_round_down_to_whole_prompts():
    assert VFPT(100, fraction=0.29).num_fourier == 29
    assert [VFPT(10, fraction=a).num_fourier for a in (0.3, 0.55, 0.7)] == [3, 5, 7]


def test_half_floats_are_transformed_in_float32():
    delta = VFPT(6, drop_rate=0.0, fraction=1.0).build(SITE)
    want = delta.tokens(1)
    got = delta.bfloat16().tokens(1)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    'args', [{'fraction': 1.5}, {'axes': 'all'}, {'norm': 'forward'}, {'num_tokens': 0}]
)
def test_bad_arguments_are_refused(args):
    with pytest.raises(PETLError, match=next(iter(args))):
        VFPT(**args)
