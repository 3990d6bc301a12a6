"""Bi-LoRA and Bi-AdaptFormer: matrices of few bits, also in a packed file."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.few_bits import FewBits, code_book
from mmpetl.core.packing import packed_tensors
from mmpetl.methods.binary import BiAdaptFormer, BiLoRA

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'
METHODS = [BiAdaptFormer, BiLoRA]


@pytest.mark.parametrize(
    ('method', 'size', 'number', 'kib'),
    [
        (BiAdaptFormer, 'vit_b', 589_824, '72.2'),
        (BiAdaptFormer, 'videomae_b', 589_824, '72.2'),
        (BiLoRA, 'vit_b', 1_179_648, '144.4'),
        (BiAdaptFormer, 'swin_b', 770_048, '94.4'),
    ],
)
def test_count_of_values_and_bytes(method, size, number, kib) -> None:
    got = counts(size, method()).delta
    matrices = (4 if method is BiLoRA else 2) * len(widths(size))
    assert got == number == matrices // len(widths(size)) * 32 * sum(widths(size))
    assert f'{(number / 8 + 8 * matrices) / 1024:.1f}' == kib


def test_a_packed_file_has_the_published_bytes() -> None:
    """Two matrices of a block of ViT-B; mean and deviation in two numbers each."""
    delta = BiAdaptFormer().build(tiny_site(768))
    state = {'down.weight': delta.down.used(), 'up.weight': delta.up.used()}
    held, _ = packed_tensors(state, dict.fromkeys(state, 1))
    size = sum(value.numel() * value.element_size() for value in held.values())
    assert 12 * size == 73_920  # 72.2 KB


def tiny_site(width: int) -> mmpetl.core.Site:
    return mmpetl.core.Site('ffn.sum', 'b', width, width)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_codes_halve_the_probability_of_their_cells(bits: int) -> None:
    codes, normal = code_book(bits), NormalDist()
    edges = [normal.cdf((a + b) / 2) for a, b in zip(codes, codes[1:], strict=False)]
    edges = [0.0, *edges, 1.0]
    for code, low, high in zip(codes, edges, edges[1:], strict=False):
        assert normal.cdf(code) == pytest.approx((low + high) / 2, abs=1e-9)
    assert list(codes) == pytest.approx([-c for c in reversed(codes)])


def test_eight_bits_have_as_many_codes() -> None:
    assert len(set(code_book(8))) == 256
    assert list(code_book(8)) == sorted(code_book(8))


def test_layer_equals_that_of_the_reference() -> None:
    with np.load(GOLDEN / 'bi_linear_1bit.npz') as file:
        tensors = {k: torch.from_numpy(file[k]) for k in file.files}
    layer = FewBits(tensors['param/weight'].clone(), 1).double()
    assert torch.equal(layer.half().double().codes, tensors['codes'])
    layer.weight.data.copy_(tensors['param/weight'])  # which half precision rounded
    x = tensors['input'].double().requires_grad_()
    y = layer(x)
    (y**2).sum().backward()
    for ours, key in (
        (y, 'output'),
        (x.grad, 'grad_input'),
        (layer.weight.grad, 'grad/weight'),
    ):
        theirs = tensors[key].double()
        assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max(), key


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_each_entry_takes_the_nearest_code(bits: int) -> None:
    layer = FewBits(torch.randn(12, 20), bits).double()
    W = layer.weight.detach()
    m, sigma = W.mean(), W.std()
    w = (W - m) / (sigma + 1e-5)
    codes = torch.tensor(code_book(bits), dtype=F64)
    nearest = (w[..., None] - codes).abs().argmin(-1)
    want = codes[nearest] * sigma + m
    torch.testing.assert_close(layer.used(), want, rtol=0, atol=1e-6)
    assert len(layer.used().unique()) <= 2**bits


def test_start_values() -> None:
    delta = BiLoRA(8).build(mmpetl.core.Site('attn.q', 'b', 64, 64))
    assert 0.9 * 64**-0.5 < delta.down.weight.abs().max() <= 64**-0.5
    assert 0.0015 < delta.up.weight.abs().max() <= 0.002
    assert 0.0008 < delta.up.weight.std() < 0.001


@pytest.mark.parametrize('method', [BiAdaptFormer(3, scale=0.5), BiLoRA(3, scale=0.5)])
def test_equals_the_formula(method: BiAdaptFormer | BiLoRA) -> None:
    model = plain_vit.tuned(method)

    def update(delta: nn.Module, x: Tensor) -> Tensor:
        low = x @ delta.down.used().T
        low = low.relu() if isinstance(method, BiAdaptFormer) else low
        return 0.5 * low @ delta.up.used().T

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if isinstance(method, BiAdaptFormer):
            if place != 'x2':
                return value
            return value + update(plain_vit.delta(model, block, 'ffn_sum'), seen['x1'])
        if place != 'qkv':
            return value
        parts = list(value.chunk(3, dim=-1))
        for i, key in ((0, 'attn_q'), (2, 'attn_v')):
            delta = plain_vit.delta(model, block, key)
            parts[i] = parts[i] + update(delta, seen['qkv_in'])
        return torch.cat(parts, dim=-1)

    plain_vit.check(model, edit)


def test_beside_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Flatten()).double()
    x = torch.randn(2, 2, 5, 4, dtype=F64)
    mmpetl.inject(model, BiLoRA(2, scale=3.0)).eval()
    delta = next(m for m in model.modules() if hasattr(m, 'scale'))
    with torch.no_grad():
        added = 3 * delta.up.used() @ delta.down.used()
        weight = model[0].weight + added.view(6, 2, 3, 3)
        want = nn.functional.conv2d(x, weight, model[0].bias, padding=1).flatten(1)
        torch.testing.assert_close(model(x), want)
        torch.testing.assert_close(mmpetl.fold(model)(x), want)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('bits', [0, 3, 16, True, 1.5])
def test_bits_that_bytes_do_not_hold_are_refused(method, bits) -> None:
    with pytest.raises(PETLError, match=f'{method.__name__} needs bits of 1, 2, 4, 8'):
        method(bits=bits)


def test_bad_arguments() -> None:
    with pytest.raises(PETLError, match=r'below the narrowest projection \(32\)'):
        mmpetl.inject(tiny.timm_vit(), BiLoRA())
    with pytest.raises(PETLError, match='BiAdaptFormer needs hidden_dims of at least'):
        BiAdaptFormer(0)
