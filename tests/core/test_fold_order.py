from __future__ import annotations

from itertools import permutations

import pytest
import tiny
import torch

import mmpetl
from mmpetl.core import fold

F64 = torch.float64
METHODS = {
    'lora': {'type': 'LoRA', 'rank': 2},
    'ssf': {'type': 'SSF'},
    'do_ra': {'type': 'DoRA', 'rank': 3, 'targets': ['attn.qkv', 'ffn.fc1']},
    'rlrr': {'type': 'RLRR'},
    'glora': {'type': 'GLoRA', 'rank': 3},
    'rep_adapter': {'type': 'RepAdapter'},
    'wide_rep_adapter': {'type': 'RepAdapter', 'hidden_dims': 16},
    'arc': {'type': 'ARC', 'rank': 4},
    'ia3': {'type': 'IA3'},
}


@pytest.mark.parametrize('names', list(permutations(METHODS, 2)), ids='-'.join)
def test_two_methods_on_the_same_projections_fold_in_any_order(
    names: tuple[str, str],
) -> None:
    x = tiny.images('timm_vit', dtype=F64)
    model = tiny.base('timm_vit', F64)
    for name in names:
        mmpetl.inject(model, METHODS[name])
    model.eval()
    tiny.shake_(model)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(fold(model)(x), want, rtol=1e-9, atol=1e-9)


TURNING = {
    'oft': {'type': 'OFT', 'block_size': 8},
    'boft': {'type': 'BOFT'},
    'hra': {'type': 'HRA', 'rank': 4},
}
ADDING = {'lora': {'type': 'LoRA', 'rank': 2}, 'ssf': {'type': 'SSF'}}


@pytest.mark.parametrize('order', [(0, 1), (1, 0)], ids=['first', 'last'])
@pytest.mark.parametrize('place', ['attn.qkv', 'attn.q', 'ffn.fc2'])
@pytest.mark.parametrize('adding', [*ADDING, 'dora'])
@pytest.mark.parametrize('turning', TURNING)
@torch.no_grad()
def test_what_turns_the_input_folds_beside_what_adds(
    turning: str, adding: str, place: str, order: tuple[int, int]
) -> None:
    """At one projection, in any order of injection."""
    other = dict(ADDING.get(adding, {'type': 'DoRA', 'rank': 2}))
    if adding != 'ssf':
        other['targets'] = [place]
    configs = [TURNING[turning] | {'targets': [place]}, other]
    model, x = tiny.base('timm_vit', F64), tiny.images('timm_vit', dtype=F64)
    for i in order:
        mmpetl.inject(model, configs[i], slot='ab'[i])
    model.eval()
    tiny.shake_(model)
    want = model(x)
    for slot in 'ab':
        mmpetl.disable(model, slot)
        assert not torch.allclose(model(x), want)
        mmpetl.enable(model, slot)
    torch.testing.assert_close(fold(model)(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('order', [(0, 1), (1, 0)], ids=['first', 'last'])
@pytest.mark.parametrize('adding', ADDING)
@pytest.mark.parametrize('turning', ['oft', 'hra'])
@torch.no_grad()
def test_what_turns_the_input_stands_in_front_of_what_adds(
    turning: str, adding: str, order: tuple[int, int]
) -> None:
    """Another method at the same projection sees the turned input, and is so folded."""
    place = {} if adding == 'ssf' else {'targets': ['attn.qkv']}
    configs = TURNING[turning] | {'targets': ['attn.qkv']}, ADDING[adding] | place
    model = tiny.base('timm_vit', F64)
    for i in order:
        mmpetl.inject(model, configs[i], slot='ab'[i])
    model.eval()
    tiny.shake_(model)
    by_hand = mmpetl.inject(tiny.base('timm_vit', F64), configs[1], slot='b')
    by_hand.eval()
    values = model.state_dict()
    by_hand.load_state_dict({key: values[key] for key in by_hand.state_dict()})
    for block, plain in zip(model.blocks, by_hand.blocks, strict=True):
        R = block.petl.attn_qkv.a.before(torch.eye(32, dtype=F64), None)
        plain.attn.qkv.weight.copy_(plain.attn.qkv.weight @ R.T)
        if adding == 'lora':
            plain.petl.attn_qkv.b.A.copy_(plain.petl.attn_qkv.b.A @ R.T)
    x = tiny.images('timm_vit', dtype=F64)
    want = by_hand(x)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fold(model)(x), want, rtol=1e-9, atol=1e-9)
