from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.adapter_plus import AdapterPlus

HIDDEN = (1, 4, 2, 1, 8, 16, 1, 16, 2, 32, 32, 4, 8, 8, 8, 32, 4, 32, 8)
"""Of the authors' 19 settings on VTAB-1k, from CIFAR-100 to sNORB/elevation."""
VTAB_HEAD = 38_045


@pytest.mark.parametrize(
    ('size', 'hidden', 'number'),
    [
        ('vit_b', 1, 36_876),
        ('vit_b', 4, 92_208),
        ('vit_b', 8, 165_984),
        ('vit_b', 16, 313_536),
        ('vit_b', 32, 608_640),
        ('timm_vit_b', 8, 165_984),
        ('swin_b', 8, 216_768),
    ],
)
def test_count(size: str, hidden: int, number: int) -> None:
    got = counts(size, AdapterPlus(hidden_dims=hidden)).delta
    assert got == number
    assert got == sum(2 * d * hidden + hidden + 2 * d for d in widths(size))


def test_published_counts_hold_the_head() -> None:
    each = {h: counts('vit_b', AdapterPlus(hidden_dims=h)).delta for h in set(HIDDEN)}
    mean = sum(each[h] for h in HIDDEN) / len(HIDDEN)
    assert each[8] + VTAB_HEAD == 204_029  # published 0.20M
    assert each[16] + VTAB_HEAD == 351_581  # published 0.35M
    assert round(mean) + VTAB_HEAD == 269_068  # published 0.27M
    assert each[1] + FGVC_HEAD == 217_283


SITES = {
    'post': {'x2': 'block'},
    'pre': {'x1': 'attn_sum'},
    'parallel': {'x2': 'ffn_sum'},
    'intermediate': {'f': 'ffn_branch'},
    'houlsby': {'m': 'attn_branch', 'f': 'ffn_branch'},
}


@pytest.mark.parametrize('position', SITES)
@pytest.mark.parametrize(('scale', 'norm'), [('channel', False), (0.5, True)])
def test_equals_the_formula(position: str, scale: str | float, norm: bool) -> None:
    method = AdapterPlus(position, hidden_dims=4, scale=scale, norm=norm)
    model = plain_vit.tuned(method, std=0.3)

    def edit(place, i, z, seen):
        if place not in SITES[position]:
            return z
        own = plain_vit.delta(model, i, SITES[position][place])
        read = seen['x1'] if position == 'parallel' else z
        if norm:
            read = F.layer_norm(read, (32,), own.norm.weight, own.norm.bias)
        gamma = own.gamma if scale == 'channel' else 0.5
        return z + gamma * plain_vit.bottleneck(own, read, F.gelu)

    plain_vit.check(model, edit)


def test_adapters_are_dropped_by_image_and_in_training_only() -> None:
    method = AdapterPlus(hidden_dims=4, drop_path_rate=0.75)
    model = mmpetl.inject(tiny.base('timm_vit'), method)
    tiny.shake_(model)
    torch.manual_seed(0)
    own, z = plain_vit.delta(model, 1, 'block'), torch.randn(4000, 2, 32)
    kept = own.eval().adapter(z)
    ratio = own.train().adapter(z) / kept
    assert torch.equal(ratio.amax((1, 2)).round(), ratio.amin((1, 2)).round())
    assert set(ratio[:, 0, 0].round().tolist()) == {0.0, 4.0}
    assert (ratio[:, 0, 0] > 2).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_both_starts_are_those_of_the_source() -> None:
    def start(init: str) -> torch.nn.Module:
        model = mmpetl.inject(tiny.base('timm_vit'), AdapterPlus(init=init))
        return plain_vit.delta(model, 0, 'block')

    near, zero = start('houlsby'), start('lora')
    for linear in (near.down, near.up):
        assert 0.005 < linear.weight.std() < 0.01
        assert linear.weight.abs().max() <= 0.02
        assert not linear.bias.any()
    assert not zero.up.weight.any()
    assert 0.9 * 32**-0.5 < zero.down.weight.abs().max() <= 32**-0.5
    assert zero.down.bias.any()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'position': 'pfeiffer'}, "position post, pre, .*, got 'pfeiffer'"),
        ({'scale': 'token'}, "scale channel or learned or a number, got 'token'"),
        ({'init': 'bert'}, "init houlsby or lora, got 'bert'"),
        ({'hidden_dims': 0}, 'hidden_dims of at least 1, got 0'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        AdapterPlus(**args)
