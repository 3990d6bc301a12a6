"""Attention weights are the block's own, and maps read them right."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import mmpetl
from mmpetl.analysis.attention import (
    BlockAttention,
    class_map,
    entropy,
    mean_map,
    own_share,
    query_map,
    rollout,
    watch_attention,
)
from mmpetl.core import PETLError, injection_of, watching

METHODS = {
    'base': 'LinearProbe',
    'prompts': {'type': 'VPTDeep', 'num_tokens': 3},
    'prefixes': {'type': 'Prefix', 'num_tokens': 3},
}


def tuned(stem: str, method) -> torch.nn.Module:
    model = mmpetl.inject(tiny.base(stem), method)
    tiny.randomise_(model)
    model.eval()
    return model


def watch(model, x, blocks=None) -> list[BlockAttention]:
    with watch_attention(model, blocks) as found:
        tiny.call(model, x)
    return found


class Spy:
    def __call__(self, x, y, ctx):
        self.values, self.output = x[2], y


@pytest.mark.parametrize('name', METHODS)
def test_weights_times_values_give_what_the_block_computes(attended_stem, name):
    stem = attended_stem
    model = tuned(stem, METHODS[name])
    module, state = injection_of(model)
    last = {site.block: site for site in state.sites if site.kind == 'attn.core'}
    cores = list(last.values())  # in space where a block divides its attention
    spies = [Spy() for _ in cores]
    for shape in (tiny.TINY[stem].shape, tiny.TINY[stem].odd):
        with watching(module, dict(zip(cores, spies, strict=True)), first=True):
            found = watch(model, torch.randn(2, *shape))
        assert [a.block for a in found] == list(range(len(cores)))
        for attention, spy in ((found[0], spies[0]), (found[-1], spies[-1])):
            weights = torch.from_numpy(attention.weights).flatten(0, 1)
            assert (weights @ spy.values - spy.output).abs().max() < 1e-5
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert max(a.mismatch for a in found) < 1e-5
        for a in found:
            added = {'base': (0, 0), 'prompts': (3, 0), 'prefixes': (0, 3)}[name]
            assert (a.num_extra, a.num_added) == added
            shares = own_share(a)
            images = len(a.weights)  # frames where a trunk takes them for images
            assert images in (2, 2 * shape[1])
            assert shares.shape == (images, a.num_heads)
            inside = (shares > 0) & (shares < 1)
            assert (inside if name != 'base' else shares == 0).all()


def test_a_watched_model_is_the_same_during_and_after(attended_stem):
    stem = attended_stem
    model = tuned(stem, METHODS['prefixes'])
    x = torch.randn(1, *tiny.TINY[stem].shape)
    names = [n for n, _ in model.named_modules()]
    keys = list(model.state_dict())
    with torch.no_grad():  # as while it is watched: a bias with a gradient sums apart
        plain = tiny.outputs(model, x)
    with watch_attention(model):
        watched = tiny.outputs(model, x)
        assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_modules()] == names
    assert not any(m._forward_hooks for m in model.modules())
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b)


def test_a_site_without_a_delta_keeps_no_trace():
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), 'LinearProbe')
    model.eval()
    with pytest.raises(RuntimeError, match='stop'), watch_attention(model):
        raise RuntimeError('stop')
    assert not any('petl' in name for name, _ in model.named_modules())


@pytest.mark.parametrize('method', ['E3VA', 'VQT', 'HST', 'LST'])
def test_what_a_side_network_runs_is_not_recorded(method):
    args = tiny.SETTINGS.get(method, {'': {}})['']
    model = tuned('mmpretrain_vit', {'type': method, **args})
    found = watch(model, torch.randn(1, 3, 32, 32))
    assert [a.block for a in found] == [0, 1]
    tokens = 17 + found[0].num_extra
    assert found[0].weights.shape == (1, 1, 4, tokens, tokens)


def test_class_map_equals_a_hand_computed_one():
    original = tiny.base('mmpretrain_vit')
    seen = []
    hook = original.layers[1].attn.qkv.register_forward_hook(
        lambda module, args, y: seen.append(y)
    )
    x = torch.randn(2, 3, 32, 32)
    original(x)
    hook.remove()
    q, k, _ = seen[0].reshape(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4).double()
    scores = torch.einsum('bhqd,bhkd->bhqk', q, k) / 8**0.5
    hand = (scores.exp() / scores.exp().sum(-1, keepdim=True))[:, :, 0, 1:]
    model = mmpetl.inject(original, 'LinearProbe')
    found = watch(model, x, [-1])
    assert [a.block for a in found] == [1]
    got = class_map(found[0])
    np.testing.assert_allclose(got, hand.view(2, 4, 4, 4).detach(), atol=1e-6)


def test_a_query_sees_its_window_where_it_lies_on_the_map():
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), 'LinearProbe')
    model.eval()
    plain, shifted = watch(model, torch.randn(1, 3, 32, 32))[:2]
    assert (plain.grid, plain.window, shifted.shift) == ((8, 8), (4, 4), (2, 2))
    first = query_map(plain, (0, 5))[0, 0]
    assert np.isfinite(first[:4, 4:]).all()
    assert np.isnan(first).sum() == 48
    # Rolled by 2, the corner's window holds rows and columns 6, 7, 0, 1; the mask keeps
    # apart what only the roll brought together.
    corner = query_map(shifted, (0, 1))[0]
    there = np.isfinite(corner[0])
    rows = np.isin(np.arange(8), (6, 7, 0, 1))
    assert (there == np.outer(rows, rows)).all()
    assert corner[:, :2, :2].sum((1, 2)) == pytest.approx(1, abs=1e-5)
    assert corner[:, 6:, 6:].max() < 1e-20
    middle = query_map(shifted, (3, 4))[0]
    assert np.isfinite(middle[:, 2:6, 2:6]).all()
    assert np.nansum(middle, axis=(1, 2)) == pytest.approx(1, abs=1e-5)


def test_a_map_that_is_shifted_in_front_of_its_padding_is_read_so():
    """timm's Swin; the window of a cell and the padding are counted by hand."""
    model = mmpetl.inject(tiny.base('timm_swin'), 'LinearProbe')
    model.eval()
    shifted = watch(model, torch.randn(1, 3, 44, 60))[1]
    facts = shifted.grid, shifted.window, shifted.shift
    assert facts == ((11, 15), (4, 4), (2, 2))
    rows = np.pad(np.roll(np.arange(11), -2), (0, 1), constant_values=-1)
    columns = np.pad(np.roll(np.arange(15), -2), (0, 1), constant_values=-1)
    cells = np.where(
        (rows[:, None] < 0) | (columns < 0), -1, rows[:, None] * 15 + columns
    )
    hand = cells.reshape(3, 4, 4, 4).transpose(0, 2, 1, 3).reshape(12, 16)
    assert (shifted.places() == hand).all()
    # The last window holds rows 10, 0, 1 and columns 14, 0, 1, and padding.
    seen = np.isfinite(query_map(shifted, (10, 14))[0, 0])
    rows, columns = (np.isin(np.arange(n), (n - 1, 0, 1)) for n in (11, 15))
    assert (seen == np.outer(rows, columns)).all()


def test_tokens_on_no_grid_have_no_maps():
    model = mmpetl.inject(tiny.base('timm_hiera'), 'LinearProbe').eval()
    with (
        pytest.raises(PETLError, match='Hiera has no attention maps: its tokens lie'),
        watch_attention(model),
    ):
        pass


def test_a_mean_map_is_the_mean_of_the_maps_of_its_cells():
    model = mmpetl.inject(tiny.base('mmaction_swin3d'), 'LinearProbe')
    model.eval()
    attention = watch(model, torch.randn(1, 3, 5, 38, 53))[1]
    assert any(attention.shift)
    cells = [tuple(map(int, c)) for c in np.argwhere(np.ones(attention.grid))]
    maps = np.stack([query_map(attention, c)[0] for c in cells])
    got = mean_map(attention)[0]
    np.testing.assert_allclose(got, np.nanmean(maps, axis=0), atol=1e-6)


def made(weights: np.ndarray, grid, block=0, **tokens) -> BlockAttention:
    counts = {'num_class': 0, 'num_extra': 0, 'num_added': 0, **tokens}
    weights = weights[None, None].astype(np.float32)
    return BlockAttention(
        block, grid, None, None, weights=weights, mismatch=0, **counts
    )


def stochastic(rng, *shape) -> np.ndarray:
    w = rng.random(shape)
    return w / w.sum(-1, keepdims=True)


def test_rollout_is_the_product_of_half_attention_half_identity():
    rng = np.random.default_rng(0)
    heads = [stochastic(rng, 3, 7, 7) for _ in range(3)]
    blocks = [made(w, (2, 3), i, num_class=1) for i, w in enumerate(heads)]
    got = rollout(blocks)
    hand = np.eye(7)
    for w in heads:
        hand = (0.5 * w.mean(0) + 0.5 * np.eye(7)) @ hand
    np.testing.assert_allclose(got.matrix[0, :, :7], hand, atol=1e-6)
    np.testing.assert_allclose(got.map()[0], hand[0, 1:].reshape(2, 3), atol=1e-6)
    assert abs(got.own()).max() == 0


def test_what_passes_through_own_tokens_counts_as_theirs():
    # One added key, one class token, one prompt, two cells: all look at the prompt.
    weights = np.zeros((2, 4, 5))
    weights[:, :, 2] = 1
    tokens = {'num_class': 1, 'num_extra': 1, 'num_added': 1}
    got = rollout([made(weights, (1, 2), i, **tokens) for i in range(3)])
    assert got.own() == pytest.approx(1 - 0.5**3)
    np.testing.assert_allclose(got.matrix[0, 1], [0, 0.125, 0, 0.875])


def test_rollout_through_windows_and_merging_is_a_distribution():
    model = tuned('mmpretrain_swin', METHODS['prompts'])
    got = rollout(watch(model, torch.randn(2, 3, 38, 53)))
    assert got.matrix.shape == (2, 5 * 7, 10 * 14 + 1)
    assert (got.matrix >= 0).all()
    np.testing.assert_allclose(got.matrix.sum(-1), 1, atol=1e-12)
    assert got.map().shape == (2, 10, 14)
    assert ((got.own() > 0) & (got.own() < 1)).all()


def test_share_of_own_tokens_counts_own_queries_only():
    weights = np.zeros((1, 4, 5))
    weights[0, 0] = [0.1, 0.2, 0.3, 0.2, 0.2]  # class
    weights[0, 1] = [0.0, 0.0, 1.0, 0.0, 0.0]  # the prompt itself does not count
    weights[0, 2] = [0.5, 0.1, 0.1, 0.2, 0.1]  # cells
    weights[0, 3] = [0.0, 0.5, 0.0, 0.5, 0.0]
    a = made(weights, (1, 2), num_class=1, num_extra=1, num_added=1)
    assert own_share(a)[0, 0] == pytest.approx((0.4 + 0.6 + 0.0) / 3)


def test_entropy_is_zero_of_one_key_and_one_of_all():
    weights = np.stack((np.eye(4), np.full((4, 4), 0.25)))
    np.testing.assert_allclose(entropy(made(weights, (2, 2)))[0], [0, 1], atol=1e-6)


def test_entropy_leaves_the_padding_of_windows_out():
    """A map of 1 x 3 in windows of 1 x 2: the last place of the second is padding."""
    weights = np.zeros((1, 2, 1, 2, 2), np.float32)
    weights[0, :, 0] = [1, 0]  # cells look at one key
    weights[0, 1, 0, 1] = [0.5, 0.5]  # what stands on padding at both
    a = BlockAttention(0, (1, 3), (1, 2), (0, 0), 0, 0, 0, weights, 0.0)
    assert a.places().tolist() == [[0, 1], [2, -1]]
    np.testing.assert_allclose(entropy(a), [[0]], atol=1e-6)
    weights[0, 1, 0, 0] = [0.5, 0.5]
    np.testing.assert_allclose(entropy(a), [[1 / 3]], atol=1e-6)


def test_pictures_have_a_place_for_every_map():
    from mmpetl.analysis.pictures import Column, draw_attention, draw_filmstrip

    rng = np.random.default_rng(0)
    window = np.full((2, 4, 4), np.nan)
    window[:, 2:, 2:] = rng.random((2, 2, 2))
    names = ('base', 'LoRA')
    columns = [
        Column('block 0', dict.fromkeys(names, window), (1, 2, 3)),
        Column('rollout', {n: rng.random((2, 4, 4)) for n in names}),
    ]
    shares = {'LoRA': rng.random((3, 2))}
    strip = draw_filmstrip(rng.random((4, 8, 8, 3)), columns, shares, 'title')
    *grid, bars = strip.axes
    # Each column has a bar that tells its scale, in percent of the attention.
    scales = [child for axes in grid for child in axes.child_axes]
    high = [100 * np.nanmax(column.maps['base']) for column in columns]
    ends = [axes.get_xticklabels()[-1].get_text() for axes in scales]
    assert ends == [f'{value:.2g} %' for value in high]
    assert len(grid) == 2 * (1 + 2 * 2)
    assert len(bars.patches) == 3 * 2
    # The frame stands in the row of its step alone; the window is outlined in each.
    assert [len(axes.patches) for axes in grid] == [0] * 6 + [1, 1, 0, 0]
    lines = [len(c.get_segments()) for axes in grid for c in axes.collections]
    assert lines == [8] * 4
    flat = [
        Column(c.title, {n: m[0] for n, m in c.maps.items()}, c.cell and c.cell[1:])
        for c in columns
    ]
    figure = draw_attention(rng.random((8, 6, 3)), flat, flat[:1], {}, 't', 'heads')
    assert sum(len(axes.child_axes) for axes in figure.axes) == 2 + 1
    assert len(figure.axes) == 2 * 2 * (1 + 2)
    assert sum(len(axes.patches) for axes in figure.axes) == 4


def test_bad_questions_get_one_line():
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), 'LinearProbe')
    model.eval()
    x = torch.randn(1, 3, 32, 32)
    with (
        pytest.raises(PETLError, match='no block 4; the backbone has blocks 0 to 3'),
        watch_attention(model, [4]),
    ):
        pass
    found = watch(model, x)
    with pytest.raises(PETLError, match='block 0 has no class token'):
        class_map(found[0])
    with pytest.raises(PETLError, match=r'no cell \(8, 0\) on the grid \(8, 8\)'):
        query_map(found[0], (8, 0))
    with pytest.raises(PETLError, match=r'no cell \(1,\) on the grid'):
        query_map(found[0], (1,))
    with pytest.raises(PETLError, match=r'every block from 0 on, got \[1, 2, 3\]'):
        rollout(found[1:])
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), METHODS['prompts'])
    model.train()
    with pytest.raises(PETLError, match='eval mode'), watch_attention(model):
        pass
    with (
        pytest.raises(PETLError, match='holds 0 injected'),
        watch_attention(tiny.base('mmpretrain_vit')),
    ):
        pass
