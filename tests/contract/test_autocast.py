"""Mixed precision, held on every pair of method and backbone."""

from __future__ import annotations

import torch
from promises import gap, trainable
from tiny import Pair, Tuned, images, loss_of, shake_


def test_works_under_autocast(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    shake_(model)
    full = [y.detach() for y in model(x)]
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        ys = model(x)
    loss_of([y.float() for y in ys]).backward()
    for name, param in trainable(model).items():
        assert param.grad is not None, name
        assert torch.isfinite(param.grad).all(), name
        assert param.grad.dtype == torch.float32, name
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        ys = [y.float() for y in model(x)]
    assert gap(ys, full) < 0.15
