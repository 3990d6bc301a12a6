"""Dropout that draws its own mask drops as often as asked, and learns as it drops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmpetl.core.dropout import LEVELS, Dropout, dropout, dropped, only_those

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9, 1 / LEVELS])
def test_elements_are_zero_as_often_as_asked(rate: float) -> None:
    torch.manual_seed(0)
    count = 1 << 20
    y = dropout(torch.ones(count), rate)
    away = (y == 0).sum().item()
    deviation = (count * rate * (1 - rate)) ** 0.5
    assert abs(away - count * rate) < 4 * deviation
    # What stays makes up for it: exactly, for the rate as it is drawn.
    drawn = round(rate * LEVELS) / LEVELS
    assert y.max().item() == pytest.approx(1 / (1 - drawn), rel=1e-6)
    assert set(y.unique().tolist()) == {0.0, y.max().item()}


def test_neighbours_are_dropped_apart() -> None:
    """Four of them come from one number of the generator."""
    torch.manual_seed(0)
    away = (dropout(torch.ones(1 << 20), 0.25) == 0).double().view(-1, 4)
    together = torch.corrcoef(away.T)
    torch.testing.assert_close(
        together, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.01
    )


@pytest.mark.parametrize('dtype', FLOATS, ids=str)
@pytest.mark.parametrize('shape', [(3, 5, 7), (1,), (0, 4), ()])
def test_the_gradient_is_dropped_as_the_input_is(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape).add(1).to(dtype).requires_grad_()
    y = dropout(x, 0.5)
    y.backward(torch.full_like(y, 3))
    factor = (y != 0).to(dtype) * 2
    assert (y.dtype, y.shape) == (dtype, x.shape)
    torch.testing.assert_close(y, x * factor, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, 3 * factor, rtol=0, atol=0)


def test_second_derivatives_and_steps_apart() -> None:
    x = torch.linspace(1, 2, 30, dtype=torch.float64).view(5, 6).T.requires_grad_()

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return dropout(x, 0.3)

    assert not x.is_contiguous()
    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_a_byte_of_each_element_is_kept() -> None:
    x = torch.randn(1000, requires_grad=True)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        dropout(x, 0.1)
    assert sum(t.untyped_storage().nbytes() for t in kept) == 1000


def test_the_mask_is_the_generators() -> None:
    x = torch.ones(50)
    torch.manual_seed(3)
    first, state = dropout(x, 0.5), torch.get_rng_state()
    second = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5), second)
    assert not torch.equal(first, second)


def test_what_is_dropped_and_what_stays_agree() -> None:
    x = torch.randn(40, 3)
    torch.manual_seed(1)
    y, stays = dropped(x, 0.4)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.4), y)
    assert torch.equal(only_those(x, stays, 0.4), y)
    assert torch.equal(stays, y != 0)


@pytest.mark.parametrize('rate', [0.0, 1.0, 1e-9, 1 - 1e-9])
def test_rates_that_are_no_levels_are_pytorchs(rate: float) -> None:
    x = torch.ones(100, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, rate)
    torch.manual_seed(0)
    assert torch.equal(y, nn.functional.dropout(x, rate))


def test_a_module_rests_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match='between 0 and 1'):
        Dropout(1.5)


def test_it_compiles_and_traces() -> None:
    drop = nn.Sequential(nn.Linear(64, 64), Dropout(0.5))
    compiled = torch.compile(drop, fullgraph=True, backend='aot_eager')
    x = torch.randn(32, 64)
    share = (compiled(x) == 0).double().mean().item()
    assert 0.4 < share < 0.6
    traced = torch.jit.trace(drop, x, check_trace=False)
    share = (traced(x) == 0).double().mean().item()
    assert 0.4 < share < 0.6


def test_maps_of_no_memory_pass() -> None:
    x = torch.ones(3, 4, device='meta')
    assert dropout(x, 0.5).shape == x.shape


def test_transforms_of_functions_and_tangents() -> None:
    x = torch.randn(6, 50)

    def loss(row: Tensor) -> Tensor:
        return (dropout(row, 0.5) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), randomness='different')(x)
    factor = each / (2 * x)  # 0 where dropped, else 4
    torch.testing.assert_close(factor.unique(), torch.tensor([0.0, 4.0]))
    assert not torch.equal(factor[0], factor[1])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(
            x.clone().requires_grad_(), torch.ones_like(x)
        )
        y, tangent = torch.autograd.forward_ad.unpack_dual(dropout(dual, 0.5))
    torch.testing.assert_close(tangent, (y != 0).float() * 2)


def test_a_default_device_is_not_that_of_a_mask() -> None:
    x = torch.ones(100)
    with torch.device('meta'):
        y = dropout(x, 0.5)
    assert y.is_cpu
    assert 0 < y.count_nonzero() < 100
