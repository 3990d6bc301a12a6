"""What trains and what stays, held on every pair of method and backbone."""

from __future__ import annotations

import re

import torch
from promises import F64, is_delta, of_method, trainable
from tiny import (
    STILL,
    TINY,
    Pair,
    Tuned,
    core,
    images,
    loss_of,
    record,
    shake_,
    train,
    trains_most,
)
from tiny_methods import moves_seldom

from mmpetl.core import (
    Owner,
    base_changes,
    collect_losses,
    frozen_keys,
    inject,
    owners,
)


def test_every_trainable_tensor_gets_a_gradient_and_moves(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    assert of_method(model).keys() <= before.keys()
    train(model, x)
    without = [n for n, p in trainable(model).items() if p.grad is None]
    still = [n for n, p in trainable(model).items() if torch.equal(p, before[n])]
    assert not without, f'no gradient: {without}'
    still = [n for n in still if not moves_seldom(pair.method.name, n)]
    # Nothing stands still but what is known to, and that does.
    known = STILL.get(pair.method.name, {}).get(pair.stem)
    expected = [n for n in before if known and re.search(known, n)]
    assert still == expected, (
        f'did not move: {still} (if it cannot on this backbone, STILL in '
        'tests/tiny_methods.py says why)'
    )


def test_nothing_frozen_changes(brief_pair: Pair) -> None:
    x = images(brief_pair.stem)
    model = Tuned(brief_pair.inject(), x)
    keys = frozen_keys(model)
    assert keys or trains_most(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if k in keys}
    buffers = {n: b.clone() for n, b in model.named_buffers() if not is_delta(n)}
    train(model, x)
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    # The running statistics of a norm that trains are the method's.
    now, selected = dict(model.named_buffers()), after.keys() - keys
    moved = [n for n in buffers if not torch.equal(buffers[n], now[n])]
    assert set(moved) <= selected
    assert base_changes(model) == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_activation_checkpointing_gives_the_same_gradients(brief_pair: Pair) -> None:
    x = images(brief_pair.stem, odd=True, dtype=F64)
    model = Tuned(brief_pair.inject(F64), x)
    shake_(model)
    model.train()
    inner, grads = core(model), []
    for checkpointing in (False, True):
        if hasattr(inner, 'set_grad_checkpointing'):
            inner.set_grad_checkpointing(checkpointing)
        for _, block in record(model).site_map.blocks(inner):
            block.with_cp = checkpointing
        torch.manual_seed(5)
        model.zero_grad()
        loss = loss_of(model(x)) + sum(collect_losses(model).values())
        loss.backward()
        grads.append({n: p.grad for n, p in trainable(model).items()})
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    scale = max(g.abs().max() for g in plain.values() if g is not None)
    for name, grad in plain.items():
        assert grad is not None, f'no gradient: {name}'
        assert checkpointed[name] is not None, name
        assert (grad - checkpointed[name]).abs().max() <= 1e-9 * scale, name


def test_frozen_modules_evaluate_and_deltas_train(brief_pair: Pair) -> None:
    model = brief_pair.inject()
    model.train()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if is_delta(name):
            assert module.training, name
        elif own and not any(p.requires_grad for p in own):
            assert not module.training, name
    model.eval()
    assert not any(m.training for m in model.modules())


def test_a_host_with_frozen_stages_keeps_the_deltas_trainable(
    staged_pair: Pair,
) -> None:
    build = TINY[staged_pair.stem].frozen_stages
    model = inject(build(), staged_pair.method.build())
    for _ in range(2):
        model.train()
        params = dict(model.named_parameters())
        deltas = [n for n, o in owners(model).items() if o is Owner.DELTA]
        assert [n for n in deltas if not params[n].requires_grad] == []
    x = images(staged_pair.stem)
    tuned = Tuned(model, x)
    train(tuned, x, steps=1)
    assert [n for n, p in trainable(tuned).items() if p.grad is None] == []
