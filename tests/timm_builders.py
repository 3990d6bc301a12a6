"""timm's own builders, of which tests make small models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from tiny import loss_of, outputs, randomise_, shake_

from mmpetl.core import inject


def builders(
    monkeypatch: pytest.MonkeyPatch, module: str, maker: str
) -> dict[str, dict[str, Any]]:
    """The options of every builder of a timm module."""
    found = {}
    with monkeypatch.context() as patch:
        source = getattr(timm.models, module)
        patch.setattr(source, maker, lambda variant, pretrained=False, **args: args)
        for name in timm.list_models(module=module):
            found[name] = timm.models.model_entrypoint(name)()
    return found


def starts_and_learns(name: str, size: int = 32, layers: Any = None, **args: Any):
    """LoRA at zero leaves the outputs of a shrunk model, and then learns.

    Args:
        name: A builder of timm.
        size: Of the images.
        layers: Where LoRA acts, None for everywhere that it can.
        **args: What shrinks the model.
    """
    plain = randomise_(timm.create_model(name, **args, num_classes=3)).double().eval()
    model = inject(copy.deepcopy(plain), 'LoRA', layers=layers)
    x = torch.randn(2, 3, size, size, dtype=torch.double)
    wanted = outputs(plain, x)
    for a, b in zip(outputs(model, x), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=name)
    shake_(model)
    ys = outputs(model, x)
    loss_of(ys).backward()
    assert (ys[0] - wanted[0]).abs().max() > 0, name
    own = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert own, name
    assert all(p.grad is not None for p in own), name
