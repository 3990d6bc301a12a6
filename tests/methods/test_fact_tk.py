from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.fact_tk import FacTTK

OFFICIAL_RANKS = (32, 32, 16, 32, 16, 32, 16, 32, 32, 32, 16, 32, 16, 32, 32, 32, 32)
OFFICIAL_RANKS += (32, 16)
"""Of the authors' 19 VTAB-1k settings, from CIFAR-100 to sNORB/elevation."""


@pytest.mark.parametrize('layout', ['tucker', 'official'])
@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [
        ('vit_b', 8, 13_952),
        ('vit_b', 16, 30_976),
        ('vit_b', 32, 86_528),
        ('vit_b', 64, 369_664),
        ('timm_vit_b', 32, 86_528),
        ('videomae_b', 32, 86_528),
        ('swin_b', 32, 263_168),
    ],
)
def test_count_holds_shared_factors_once(
    size: str, rank: int, number: int, layout: str
) -> None:
    got = counts(size, FacTTK(rank=rank, layout=layout)).delta
    d = widths(size)
    stages = set(d)
    assert got == number
    shared = sum(2 * w * rank + rank**3 for w in stages)
    assert got == shared + 12 * len(d) * rank


def test_mean_count_over_the_official_ranks_is_the_published_one() -> None:
    each = {r: counts('vit_b', FacTTK(rank=r)).delta for r in (16, 32)}
    mean = sum(each[r] for r in OFFICIAL_RANKS) / len(OFFICIAL_RANKS)
    assert round(mean) == 68_985  # published 0.07M


# Columns of one tiny block (hidden width twice the width): q, k, v, proj, fc1, fc2.
FIRST = {
    'attn_q': 0,
    'attn_k': 1,
    'attn_v': 2,
    'attn_proj': 3,
    'ffn_fc1': 4,
    'ffn_fc2': 6,
}
COUNT = {'ffn_fc1': 2, 'ffn_fc2': 2}


def tucker(shared: torch.nn.Module, column: int) -> torch.Tensor:
    """``sum_k C[:, :, k] p_k`` one slice at a time."""
    rank = len(shared.core)
    return sum(shared.core[:, :, k] * shared.weights[k, column] for k in range(rank))


def increment(model: torch.nn.Module, i: int, key: str) -> torch.Tensor:
    """What the paper's form adds to a projection."""
    shared = model.petl.get_submodule('shared.0.stage0')
    first, count = 8 * i + FIRST[key], COUNT.get(key, 1)
    squares = [
        0.5 * shared.v @ tucker(shared, first + j) @ shared.u for j in range(count)
    ]
    return torch.cat(squares, dim=1 if key == 'ffn_fc2' else 0)


def official(model: torch.nn.Module, i: int, key: str, x: torch.Tensor):
    """What the authors' code computes, by their order of operations."""
    shared = model.petl.get_submodule('shared.0.stage0')
    first, count = 8 * i + FIRST[key], COUNT.get(key, 1)
    rank = len(shared.core)
    cores = torch.einsum(
        'abk,kj->abj', shared.core, shared.weights[:, first : first + count]
    )
    batch, tokens = x.shape[:2]
    if key == 'ffn_fc2':
        h = x.reshape(batch, tokens, count, -1) @ shared.u.T
        h = h.reshape(batch, tokens, -1) @ cores.reshape(rank, -1).T
        return 0.5 * h @ shared.v.T
    h = (x @ shared.u.T) @ cores.reshape(rank, -1)
    h = h.reshape(batch, tokens, count, rank) @ shared.v.T
    return 0.5 * h.reshape(batch, tokens, -1)


def edits(add):
    """Edits of a forward pass from ``add(block, key, input of the projection)``."""

    def edit(place, i, z, seen):
        if place == 'qkv':
            keys = ('attn_q', 'attn_k', 'attn_v')
            return z + torch.cat([add(i, k, seen['qkv_in']) for k in keys], dim=-1)
        at = {'m': 'proj', 'u': 'fc1', 'f': 'fc2'}.get(place)
        if at is None:
            return z
        key = 'attn_proj' if at == 'proj' else f'ffn_{at}'
        return z + add(i, key, seen[f'{at}_in'])

    return edit


def test_tucker_layout_equals_the_formula() -> None:
    model = plain_vit.tuned(FacTTK(rank=3, scale=0.5))
    plain_vit.check(model, edits(lambda i, k, x: x @ increment(model, i, k).T))


def test_official_layout_equals_the_order_of_the_authors_code() -> None:
    model = plain_vit.tuned(FacTTK(rank=3, scale=0.5, layout='official'))
    plain_vit.check(model, edits(lambda i, k, x: official(model, i, k, x)))


def test_layouts_differ() -> None:
    x = tiny.images('timm_vit', dtype=torch.float64)
    made = []
    for layout in ('tucker', 'official'):
        torch.manual_seed(0)
        made.append(plain_vit.tuned(FacTTK(rank=3, layout=layout), std=0.3))
    with torch.no_grad():
        assert (made[0](x) - made[1](x)).abs().max() > 1e-2


@pytest.mark.parametrize('layout', ['tucker', 'official'])
@pytest.mark.parametrize('name', ['mmpretrain_swin', 'mmaction_vit', 'mmaction_swin3d'])
def test_both_layouts_fold(name: str, layout: str) -> None:
    x = tiny.images(name, odd=True, dtype=torch.float64)
    model = mmpetl.inject(tiny.base(name, torch.float64), FacTTK(rank=4, layout=layout))
    model.eval()
    tiny.shake_(model)
    with torch.no_grad():
        want = tiny.outputs(model, x)
        got = tiny.outputs(mmpetl.core.fold(model), x)
        for a, b, c in zip(
            want, got, tiny.outputs(tiny.base(name, torch.float64), x), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert (a - c).abs().max() > 1e-3


def test_cores_are_combinations_of_the_slices_of_the_core_tensor() -> None:
    model = plain_vit.tuned(FacTTK(rank=3))
    shared = model.petl.get_submodule('shared.0.stage0')
    own = plain_vit.delta(model, 1, 'ffn_fc1')
    flat = shared.core.flatten(0, 1)  # (rank * rank, slices)
    for j, core in enumerate(own.cores().split(3)):
        weights = torch.linalg.lstsq(flat, core.reshape(-1, 1)).solution[:, 0]
        torch.testing.assert_close(weights, shared.weights[:, 8 + 4 + j])


@pytest.mark.parametrize('layout', ['tucker', 'official'])
def test_every_increment_has_at_most_the_rank(layout: str) -> None:
    model = plain_vit.tuned(FacTTK(rank=3, layout=layout))
    plain = tiny.base('timm_vit', torch.float64)
    mmpetl.core.fold(model)
    for name in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
        after = model.blocks[1].get_submodule(name).weight
        added = (after - plain.blocks[1].get_submodule(name).weight).detach()
        for square in added.split(32, dim=1 if name == 'mlp.fc2' else 0):
            assert torch.linalg.matrix_rank(square, rtol=1e-8) == 3


def test_bad_layout_is_named() -> None:
    with pytest.raises(PETLError, match="layout tucker or official, got 'cp'"):
        FacTTK(layout='cp')


@pytest.mark.parametrize('layout', ['tucker', 'official'])
@pytest.mark.parametrize('name', ['mmpretrain_vit', 'mmpretrain_swin'])
def test_starts_as_the_frozen_model_bit_for_bit(name: str, layout: str) -> None:
    x = tiny.images(name)
    plain = mmpetl.inject(tiny.base(name), tiny.Nothing())
    model = mmpetl.inject(tiny.base(name), FacTTK(rank=4, layout=layout))
    model.eval()
    for a, b in zip(tiny.outputs(plain, x), tiny.outputs(model, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('layout', ['tucker', 'official'])
@pytest.mark.parametrize('key', FIRST)
def test_the_weights_of_a_core_change_only_its_own_linear(
    key: str, layout: str
) -> None:
    def folded(moved: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = plain_vit.tuned(FacTTK(rank=3, layout=layout))
        shared = model.petl.get_submodule('shared.0.stage0')
        if moved:
            with torch.no_grad():
                shared.weights[:, 8 + FIRST[key]].add_(1.0)
        return dict(mmpetl.core.fold(model).named_parameters())

    a, b = folded(False), folded(True)
    layer = {'attn_proj': 'attn.proj', 'ffn_fc1': 'mlp.fc1', 'ffn_fc2': 'mlp.fc2'}
    name = f'blocks.1.{layer.get(key, "attn.qkv")}.weight'
    assert [n for n in a if not torch.equal(a[n], b[n])] == [name]
    squares = [
        w.split(32, dim=1 if key == 'ffn_fc2' else 0) for w in (a[name], b[name])
    ]
    changed = [not torch.equal(x, y) for x, y in zip(*squares, strict=True)]
    assert any(changed)
    if layout == 'tucker' or key not in COUNT:
        # One square alone; the official layout mixes those of fc1, and those of fc2.
        own = FIRST[key] if name.endswith('qkv.weight') else 0
        assert [i for i, moved in enumerate(changed) if moved] == [own]
