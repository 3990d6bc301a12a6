"""FourierFT and WaveFT: increments with few coefficients in another basis."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, Site
from mmpetl.methods.fourier_ft import FourierFT, from_haar, from_waves

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'


@pytest.mark.parametrize(
    ('number', 'count'), [(3_000, 72_000), (10_000, 240_000), (2_592, 62_208)]
)
def test_count(number: int, count: int) -> None:
    for size in ('vit_b', 'videomae_b'):
        got = counts(size, FourierFT(number)).delta
        assert got == count == 2 * number * len(widths(size))
    assert counts('swin_b', FourierFT(number)).delta == 48 * number


def delta_of(method: FourierFT, out: int, width: int) -> nn.Module:
    """A delta by itself, its coefficients drawn."""
    site = Site('layer.linear', 'a', width, out)
    delta = method.build(site).double()
    delta.attach('0', method.share([site]))
    nn.init.normal_(delta.c)
    return delta


def coefficients(delta: nn.Module) -> Tensor:
    """The sparse matrix, (out, in)."""
    C = torch.zeros(delta.shape, dtype=F64).flatten()
    C[delta.shared.get_buffer(delta.name)[: len(delta.c)].long()] = delta.c.detach()
    return C.view(delta.shape)


def test_each_coefficient_is_a_wave() -> None:
    delta = delta_of(FourierFT(20, scale=7.0), 6, 10)
    rows, columns = torch.arange(6.0, dtype=F64), torch.arange(10.0, dtype=F64)
    want = torch.zeros(6, 10, dtype=F64)
    C = coefficients(delta)
    assert C.count_nonzero() == 20
    for u, v in C.nonzero().tolist():
        phase = u * rows[:, None] / 6 + v * columns / 10
        want += 7 * C[u, v] * torch.cos(2 * math.pi * phase) / 60
    torch.testing.assert_close(delta.increment(delta.c.double()), want)


def test_each_coefficient_of_haar_is_a_square_of_four() -> None:
    for quarter, square in (
        ((0, 0), [[1, 1], [1, 1]]),
        ((0, 1), [[1, 1], [-1, -1]]),
        ((1, 0), [[1, -1], [1, -1]]),
        ((1, 1), [[1, -1], [-1, 1]]),
    ):
        C, want = torch.zeros(4, 6), torch.zeros(4, 6)
        C[1 + 2 * quarter[0], 2 + 3 * quarter[1]] = 3.0
        want[2:, 4:] = 1.5 * torch.tensor(square)
        assert torch.equal(from_haar(C), want)


def test_haar_keeps_the_norm() -> None:
    delta = delta_of(FourierFT(20, scale=7.0, transform='haar'), 6, 10)
    got = delta.increment(delta.c.double())
    torch.testing.assert_close(got.norm(), 7 * delta.c.norm())
    torch.testing.assert_close(got, 7 * from_haar(coefficients(delta)))


def test_without_a_transform_coefficients_are_entries() -> None:
    delta = delta_of(FourierFT(20, scale=7.0, transform='none'), 6, 10)
    assert torch.equal(delta.increment(delta.c.double()), 7 * coefficients(delta))


def test_weights_of_one_shape_share_their_places() -> None:
    targets = ['attn.q', 'attn.v', 'ffn.fc1']
    model = mmpetl.inject(tiny.timm_vit(), FourierFT(50, targets=targets))
    shared = dict(model.petl.shared.named_buffers())
    assert shared.keys() == {'0.at_32x32', '0.at_64x32'}
    for places, size in zip(shared.values(), (1024, 2048), strict=True):
        assert places.dtype == torch.int32
        assert len(set(places.tolist())) == 50
        assert 0 <= places.min() <= places.max() < size
    other = mmpetl.inject(tiny.timm_vit(), FourierFT(50, seed=1, targets=targets))
    assert not torch.equal(other.petl.shared['0'].at_32x32, shared['0.at_32x32'])


def test_equals_the_formula() -> None:
    model = plain_vit.tuned(FourierFT(60, scale=200.0))

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if place != 'qkv':
            return value
        parts = list(value.chunk(3, dim=-1))
        for i, key in ((0, 'attn_q'), (2, 'attn_v')):
            C = coefficients(plain_vit.delta(model, block, key))
            dW = 200 * torch.fft.ifft2(C).real
            parts[i] = parts[i] + seen['qkv_in'] @ dW.T
        return torch.cat(parts, dim=-1)

    plain_vit.check(model, edit)


def test_gives_the_increments_of_the_reference() -> None:
    facts = json.loads((GOLDEN / 'fourierft.json').read_text())['config']
    with np.load(GOLDEN / 'fourierft.npz') as file:
        at = 'base_model.model.blocks.1.mlp.fc1'
        c = torch.from_numpy(file[f'param/{at}.fourierft_spectrum.default'])
        rows, columns = torch.from_numpy(file[f'index/{at}'])
        want = torch.from_numpy(file[f'delta/{at}'])
    delta = delta_of(FourierFT(len(c), scale=facts['scaling']), 128, 32)
    with torch.no_grad():
        delta.shared.at_128x32.copy_(rows * 32 + columns)
        delta.c.copy_(c)
    gap = (delta.increment(delta.c.double()) - want).abs().max()
    assert gap < 1e-6 * want.abs().max()


@pytest.mark.parametrize('shape', [(4, 6), (5, 3), (4, 5), (3, 4), (1, 1), (2, 1)])
def test_half_of_the_columns_say_all(shape: tuple[int, int]) -> None:
    """With entries at each place, their mirror images and own mirrors among them."""
    places = torch.randperm(shape[0] * shape[1])
    c = torch.randn(len(places), dtype=F64, requires_grad=True)
    C = torch.zeros(len(places), dtype=F64).index_copy(0, places, c).view(shape)
    want, got = torch.fft.ifft2(C).real, from_waves(c, places, shape)
    torch.testing.assert_close(got, want)
    weights = torch.randn(shape, dtype=F64)
    grads = [torch.autograd.grad((t * weights).sum(), c)[0] for t in (got, want)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('transform', ['fourier', 'haar'])
def test_beside_a_convolution(transform: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Flatten()).double()
    x = torch.randn(2, 2, 5, 4, dtype=F64)
    mmpetl.inject(model, FourierFT({'*': 9}, 5.0, transform, 'random'))
    delta = next(m for m in model.modules() if hasattr(m, 'increment'))
    with torch.no_grad():
        weight = model[0].weight + delta.increment(delta.c.double()).view(6, 2, 3, 3)
        want = nn.functional.conv2d(x, weight, model[0].bias, padding=1).flatten(1)
        torch.testing.assert_close(model(x), want)
        torch.testing.assert_close(mmpetl.fold(model)(x), want)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'num_coefficients': 0}, 'FourierFT needs num_coefficients of at least 1'),
        ({'transform': 'db2'}, "needs transform fourier or haar or none, got 'db2'"),
        ({'start': 'ones'}, "needs start zero or random, got 'ones'"),
        ({'targets': ['attn.sum']}, "FourierFT cannot act at 'attn.sum'"),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        FourierFT(**args)


def test_what_has_no_room_is_refused_or_left_out() -> None:
    said = 'at most the entries of a weight, 32 x 32 at blocks.0:attn.q, got 1025'
    with pytest.raises(PETLError, match=said):
        mmpetl.inject(tiny.timm_vit(), FourierFT(1025))
    model = nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 8), nn.Linear(8, 6))
    with pytest.warns(UserWarning, match='leaves out 2 layers'):
        mmpetl.inject(model, FourierFT(40, transform='haar'))
    with pytest.raises(PETLError, match='needs even sizes, got 7 x 8 at 0'):
        mmpetl.inject(
            nn.Sequential(nn.Linear(8, 7)), FourierFT(4, transform='haar'), layers='0'
        )
