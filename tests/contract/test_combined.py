"""Any two of ten methods as one list: train, save, load, eject, in both orders."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from stacked import params_of
from tiny import images, loss_of, outputs

import mmpetl
from mmpetl.core import count_trainable

CHOSEN: dict[str, dict[str, Any]] = {
    'lora': {'type': 'LoRA', 'rank': 2},
    'adaptformer': {'type': 'AdaptFormer', 'hidden_dims': 4},
    'vpt_deep': {'type': 'VPTDeep', 'num_tokens': 2},
    'prefix': {'type': 'Prefix', 'num_tokens': 3},
    'ssf': {'type': 'SSF'},
    'bitfit': {'type': 'BitFit'},
    'convpass': {'type': 'Convpass', 'hidden_dims': 4},
    'fact_tt': {'type': 'FacTTT', 'rank': 3},
    'gps': {'type': 'GPS'},
    'dtl': {'type': 'DTL', 'rank': 2, 'patch_mean': False},
}
"""They act at weights, streams, tokens and keys, share factors, and select."""

PAIRS = list(itertools.permutations(CHOSEN, 2))


def model_of(methods: list[dict[str, Any]]) -> torch.nn.Module:
    torch.manual_seed(3)
    return mmpetl.inject(tiny.base('timm_vit', torch.double), methods)


@cache
def added(name: str) -> int:
    """Parameters that a method adds alone."""
    return count_trainable(model_of([CHOSEN[name]])).delta


def trained(methods: list[dict[str, Any]], x: torch.Tensor) -> torch.nn.Module:
    """After two steps, of which the second moves what starts behind a zero."""
    model = model_of(methods)
    tiny.shake_(model, 0.05)
    model.train()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(outputs(model, x)).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(('first', 'second'), PAIRS, ids=map('-'.join, PAIRS))
def test_two_methods_train_save_load_and_leave(first, second, tmp_path: Path) -> None:
    methods, x = [CHOSEN[first], CHOSEN[second]], images('timm_vit', dtype=torch.double)
    plain = tiny.base('timm_vit', torch.double)
    model, before = trained(methods, x), model_of(methods)
    assert [s.method.config()['type'] for s in mmpetl.slots(model)] == [
        entry['type'] for entry in methods
    ]
    for slot in '01':
        learnt, start = params_of(model, slot), params_of(before, slot)
        assert any(not torch.equal(p, start[name]) for name, p in learnt.items())
    wanted = outputs(model, x)
    file = mmpetl.save_delta(model, tmp_path / 'delta')
    again = mmpetl.load_delta(model_of(methods), file).eval()
    assert all(map(torch.equal, outputs(again, x), wanted))
    assert count_trainable(model).delta == added(first) + added(second)
    for stacked, order in ((model, '01'), (again, '10')):
        for slot in order:
            mmpetl.eject(stacked, slot)
        assert type(stacked) is type(plain)
        state = stacked.state_dict()
        assert state.keys() == plain.state_dict().keys()
        heads = [k for k in state if k.startswith('head.')]
        assert all(
            torch.equal(v, state[k])
            for k, v in plain.state_dict().items()
            if k not in heads
        )
