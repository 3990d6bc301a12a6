"""The norm behind the pooling of a ViT is a final norm, and has a site."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from tiny import count_trainable, outputs, randomise_, record, shake_
from torch import nn

from mmpetl.core import base_changes, eject, fold, inject

EXACT_SSF = {'type': 'SSF', 'exact_identity': True}

# build, its arguments, norms behind the last block, of those behind the pooling.
CASES: list[tuple[str, dict[str, Any], list[str], str | None]] = [
    ('mmpretrain_vit', {}, ['ln1'], None),
    (
        'mmpretrain_vit',
        {'out_type': 'avg_featmap', 'final_norm': False},
        ['ln2'],
        'ln2',
    ),
    ('mmpretrain_vit', {'out_type': 'avg_featmap'}, ['ln1', 'ln2'], 'ln2'),
    (
        'mmpretrain_vit',
        {'out_type': 'avg_featmap', 'out_indices': [0, 1]},
        ['ln1', 'ln2'],
        'ln2',
    ),
    ('timm_vit', {}, ['norm'], None),
    ('timm_vit', {'global_pool': 'avg'}, ['fc_norm'], 'fc_norm'),
    ('timm_vit', {'global_pool': 'max', 'num_classes': 0}, ['fc_norm'], 'fc_norm'),
    ('timm_vit', {'fc_norm': True}, ['fc_norm'], 'fc_norm'),
    ('timm_vit', {'fc_norm': True, 'global_pool': ''}, ['fc_norm'], None),
    ('timm_vit', {'final_norm': False}, [], None),
    ('mmpretrain_timm', {'fc_norm': True}, ['fc_norm'], None),
    ('mmaction_vit', {}, ['fc_norm'], 'fc_norm'),
    ('mmaction_vit', {'use_mean_pooling': False}, ['norm'], None),
]


@pytest.fixture(params=CASES, ids=lambda c: f'{c[0]}-{c[1]}')
def case(request) -> tuple[nn.Module, torch.Tensor, list[str], str | None]:
    build, args, norms, pooled = request.param
    plain = randomise_(getattr(tiny, build)(**args)).double()
    plain.eval()  # gives nothing back in OpenMMLab
    return plain, tiny.images(build, dtype=torch.double), norms, pooled


def selected(model: nn.Module) -> set[str]:
    (slot,) = record(model).slots.values()
    return set(slot.selected)


def block(model: nn.Module) -> str:
    names = [name for name, _ in tiny.core(model).named_modules()]
    return 'layers.1.' if 'layers.1' in names else 'blocks.1.'


def test_each_final_norm_has_a_site_with_the_features_it_sees(case) -> None:
    plain, _, norms, pooled = case
    model = inject(plain, tiny.Nothing())
    state = record(model)
    modules = state.site_map.outer_modules(tiny.core(model))
    sites = [s for s in state.sites if s.kind == 'out.norm']
    found = {id(modules[s.key]): s for s in sites}
    own = {name: tiny.core(model).get_submodule(name) for name in norms}
    assert {id(m) for m in own.values()} == set(found)
    for name, module in own.items():
        assert found[id(module)].has_grid == (name != pooled), name


def test_partial_k_trains_the_last_block_and_all_final_norms(case) -> None:
    plain, x, norms, _ = case
    model = inject(plain, 'PartialK')
    starts = (block(model), *(f'{name}.' for name in norms))
    inner = tiny.core(model)
    wanted = {n for n, _ in inner.named_parameters() if n.startswith(starts)}
    assert selected(model) == wanted
    # Attention and two linears of 32 channels, 64 hidden ones; norms of 2 x 32.
    attn = sum(p.numel() for n, p in inner.named_parameters() if '.1.attn.' in n)
    rest = (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64 + 64 * len(norms)
    assert count_trainable(model).selected == attn + rest
    tiny.loss_of(outputs(model, x)).backward()
    assert all(inner.get_parameter(n).grad is not None for n in wanted)


def test_scales_and_shifts_stand_behind_every_final_norm(case) -> None:
    plain, x, norms, _ = case
    model = inject(copy.deepcopy(plain), EXACT_SSF)
    with torch.no_grad():
        for a, b in zip(outputs(model, x), outputs(plain, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    # embed.proj, then per block norm1, qkv, proj, norm2, fc1, fc2, each a pair.
    d, m, depth = 32, 64, 2
    want = 2 * (d + depth * (d + 3 * d + d + d + m + d) + d * len(norms))
    assert count_trainable(model).delta == want
    tiny.loss_of(outputs(model, x)).backward()
    own = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert all(p.grad is not None for p in own)
    shake_(model)
    with torch.no_grad():
        tuned = outputs(model, x)
        for a, b in zip(outputs(fold(model), x), tuned, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_layer_norms_and_biases_count_all_final_norms(case) -> None:
    plain, x, norms, _ = case
    biases = sum(
        p.numel()
        for n, p in plain.named_parameters()
        if n.endswith('bias') and not n.startswith('head.')
    )
    for method, want in (('LNTune', 64 * (4 + len(norms))), ('BitFit', biases)):
        model = inject(copy.deepcopy(plain), method)
        assert count_trainable(model).selected == want
        shake_(model)
        with torch.no_grad():
            changed = outputs(model, x)[-1] - outputs(plain, x)[-1]
            assert changed.abs().max() > 1e-3
        eject(model)
        assert base_changes(model) == []
        with torch.no_grad():
            assert torch.equal(outputs(model, x)[-1], outputs(plain, x)[-1])


def test_a_highway_passes_the_norm_behind_the_pooling_by(case) -> None:
    plain, x, norms, pooled = case
    model = inject(plain, {'type': 'E3VA', 'rank': 4})
    (slot,) = record(model).slots.values()
    own = [s for s in slot.sites if s.kind == 'out.norm']
    behind_tokens = [n for n in norms if n != pooled]
    assert len(own) == (len(behind_tokens) if pooled or 'fc_norm' not in norms else 0)
    outputs(model, x)
