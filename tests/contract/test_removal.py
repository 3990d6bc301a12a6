"""Methods leave as they came, held on every pair of method and backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from promises import of_method, same, trainable
from tiny import Pair, base, images, outputs, plain_outputs, shake_, trains_most

from mmpetl.core import (
    Owner,
    PETLError,
    disable,
    eject,
    enable,
    find_injected,
    inject,
    owners,
)


def test_inject_twice_is_refused(brief_pair: Pair) -> None:
    model = brief_pair.injected()  # as it is refused, it is as it was
    keys = list(model.state_dict())
    with pytest.raises(PETLError, match='already injected'):
        inject(model, brief_pair.method.build())
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_eject_restores_the_base_bit_for_bit(brief_pair: Pair) -> None:
    x, plain = images(brief_pair.stem), base(brief_pair.stem)
    frozen = next(iter(dict(plain.named_parameters())))
    plain.get_parameter(frozen).requires_grad_(False)
    model = inject(copy.deepcopy(plain), brief_pair.method.build())
    shake_(model)
    if trains_most(model):
        with pytest.raises(PETLError, match='no second copy'):
            eject(model)
        return
    head = [n for n, o in owners(model).items() if o is Owner.HEAD]
    eject(model)
    assert find_injected(model) == []
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in plain.parameters()
    ]
    state, wanted = model.state_dict(), plain.state_dict()
    assert list(state) == list(wanted)
    assert [
        k for k in state if k not in head and not torch.equal(state[k], wanted[k])
    ] == []
    assert same(outputs(model, x), outputs(plain, x))


@torch.no_grad()
def test_disable_equals_the_base_and_enable_restores(brief_pair: Pair) -> None:
    model, x = brief_pair.inject(), images(brief_pair.stem)
    shake_(model)
    if trains_most(model):
        with pytest.raises(PETLError, match='no second copy'):
            disable(model)
        return
    tuned = outputs(model, x)
    plain = plain_outputs(brief_pair.stem)
    disable(model)
    assert of_method(model).keys().isdisjoint(trainable(model))
    assert same(outputs(model, x), plain)
    enable(model)
    assert same(outputs(model, x), tuned)
    assert of_method(model).keys() <= trainable(model).keys()
