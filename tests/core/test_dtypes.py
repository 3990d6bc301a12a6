"""Deltas of float32 over a base of half precision."""

from __future__ import annotations

import pytest
import torch
from tiny import Pair, base, images, loss_of, outputs, pairs, shake_

from mmpetl.core import Owner, collect_losses, inject, owners

STEMS = ('mmpretrain_vit', 'mmpretrain_swin')
PAIRS = [pair for pair in pairs() if pair.stem in STEMS and ':' not in pair.method.id]
BARE = ('linear_probe',)
"""Nothing of these trains without a head."""


def over(pair: Pair, dtype: torch.dtype) -> torch.nn.Module:
    """The pair's method over its base in another dtype, training."""
    torch.manual_seed(4)
    model = inject(base(pair.stem, dtype), pair.method.build())
    shake_(model, std=0.02)
    return model.train()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['half', 'bf16'])
@pytest.mark.parametrize('case', PAIRS, ids=lambda pair: pair.id)
def test_over_a_half_base_deltas_learn_in_float32(
    case: Pair, dtype: torch.dtype
) -> None:
    model, x = over(case, dtype), images(case.stem, dtype=dtype)
    ys = outputs(model, x)
    assert {y.dtype for y in ys} == {dtype}
    assert all(torch.isfinite(y).all() for y in ys)
    if case.method.id in BARE:
        return
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    loss = loss_of(ys) + sum(collect_losses(model).values())
    scaler.scale(loss).backward()
    owner, params = owners(model), dict(model.named_parameters())
    for name, param in params.items():
        if param.requires_grad:
            assert param.grad is not None, name
            # What is selected of the base keeps the dtype of the base.
            wanted = torch.float32 if owner[name] is Owner.DELTA else dtype
            assert param.grad.dtype == param.dtype == wanted, name
    added = [params[n] for n, o in owner.items() if o is Owner.DELTA]
    if not added:
        return
    before = [param.detach().clone() for param in added]
    optimizer = torch.optim.SGD(added, lr=1.0)
    scaler.step(optimizer)  # refuses gradients of float16
    assert any(not torch.equal(a, b) for a, b in zip(before, added, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(
    'case', [p for p in PAIRS if p.method.id in ('vqt', 'e3va')], ids=lambda p: p.id
)
def test_a_block_that_runs_once_more_meets_its_own_dtype(case: Pair) -> None:
    """In float32 and in bfloat16 the same comes out, but for the rounding."""
    x = images(case.stem)
    half = over(case, torch.bfloat16).eval()
    whole = over(case, torch.float32).eval()
    for a, b in zip(outputs(half, x.bfloat16()), outputs(whole, x), strict=True):
        assert ((a.float() - b).norm() / b.norm()).item() < 0.05
