"""SNF: normalizing flows on the two shortcuts of every block."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, Delta, PETLError, Site
from mmpetl.core.inject import injection_of
from mmpetl.methods.snf import SNF


def deltas(model: nn.Module) -> list[Delta]:
    core, state = injection_of(model)
    return [core.get_submodule(site.path)['0'] for site in state.slots['0'].sites]


def in_turn(delta: Delta, x: Tensor) -> Tensor:
    """The flows as they are written: one after the other."""
    z = delta.mu + torch.exp(delta.lam) * x
    for u, w, b in zip(delta.u, delta.w, delta.b, strict=True):
        z = z + u * torch.tanh((z * w).sum(-1, keepdim=True) + b)
    return z


@pytest.mark.parametrize(
    ('host', 'length', 'count'),
    [
        ('vit_b', 6, 258_192),
        ('vit_b', 16, 627_072),
        ('vit_b', 5, 221_304),
        ('vit_b', 7, 295_080),
        ('timm_vit_b', 6, 258_192),
        ('videomae_b', 6, 258_192),
        ('swin_b', 6, 337_184),
        ('swin_l', 6, 505_632),
        ('video_swin_b', 6, 337_184),
    ],
)
def test_specified_counts(host, length, count):
    assert counts(host, SNF(length)).delta == count


@pytest.mark.parametrize('length', [1, 2, 7])
def test_equals_planar_flows_one_after_the_other(length):
    delta = SNF(length).build(Site('attn.skip', 'b', 32, 32)).double()
    with torch.no_grad():
        for param in delta.parameters():
            param.normal_(std=0.5)
    x = torch.randn(2, 5, 32).double()
    got = delta.after(x, x, Context((5,)))
    torch.testing.assert_close(got, in_turn(delta, x), rtol=1e-11, atol=1e-11)
    assert (got - x).abs().max() > 0.1


def test_replaces_the_shortcut_and_no_norm_reads_it():
    model = plain_vit.tuned(SNF(3))
    entry = {'x1': ('x0', 'm', 'attn_skip'), 'x2': ('x1', 'f', 'ffn_skip')}

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if place not in entry:
            return value
        stream, branch, key = entry[place]
        return in_turn(plain_vit.delta(model, block, key), seen[stream]) + seen[branch]

    plain_vit.check(model, edit)


@torch.no_grad()
def test_without_u_the_frozen_model_is_left_bit_for_bit(stem):
    x = tiny.images(stem, odd=True)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    model = mmpetl.inject(tiny.base(stem), SNF())
    model.eval()
    assert not torch.equal(tiny.outputs(model, x)[0], plain[0])
    for delta in deltas(model):
        delta.u.zero_()
    assert all(map(torch.equal, tiny.outputs(model, x), plain))


@torch.no_grad()
def test_starts_near_the_frozen_model(stem):
    x = tiny.images(stem)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    tuned = tiny.outputs(mmpetl.inject(tiny.base(stem), SNF(16)), x)
    for y, z in zip(tuned, plain, strict=True):
        assert 0 < (y - z).norm() / z.norm() < 0.1


def test_is_a_map_of_each_token_by_itself():
    delta = SNF(4).build(Site('attn.skip', 'b', 16, 16)).double()
    x, order = torch.randn(2, 9, 16).double(), torch.randperm(9)
    ctx = Context((3, 3))
    torch.testing.assert_close(
        delta.after(x[:, order], x[:, order], ctx), delta.after(x, x, ctx)[:, order]
    )


def test_gradients_reach_every_part_of_every_block(stem):
    model = mmpetl.inject(tiny.base(stem), SNF())
    model.train()
    tiny.loss_of(tiny.outputs(model, tiny.images(stem))).backward()
    assert len(deltas(model)) == 2 * injection_of(model)[1].sites[0].num_blocks
    for delta in deltas(model):
        assert {n for n, _ in delta.named_parameters()} == {'mu', 'lam', 'w', 'u', 'b'}
        for name, param in delta.named_parameters():
            assert param.grad is not None, name
            assert param.grad.any(), name


def test_a_deep_plain_transformer_gets_flows_in_twelve_blocks():
    arch = {
        'embed_dims': 32,
        'num_layers': 14,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    model = mmpetl.inject(tiny.mmpretrain_vit(arch=arch), SNF())
    sites = injection_of(model)[1].slots['0'].sites
    assert sorted({site.block for site in sites}) == list(range(12))
    model = mmpetl.inject(tiny.mmpretrain_vit(arch=arch), SNF(blocks=14))
    assert len(injection_of(model)[1].slots['0'].sites) == 28


@pytest.mark.parametrize(
    ('window', 'stages', 'last'),
    [
        ((14, 14), [0] * 24, 24),  # SAM's: each sixth block attends to all
        (None, [0] * 24, 12),
        (None, [0] * 3 + [1] * 4 + [2] * 14 + [3] * 3, 24),  # a pyramid
    ],
)
def test_the_trunk_decides_how_many_blocks_have_flows(window, stages, last):
    sites = [
        mmpetl.core.Site(
            kind, '', 8, 8, i, stage, 24, window=None if i % 6 == 5 else window
        )
        for i, stage in enumerate(stages)
        for kind in SNF.targets
    ]
    chosen = SNF().choose(sites)
    assert [s.block for s in chosen[::2]] == list(range(last))


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match='SNF needs length of at least 1, got 0'):
        SNF(0)
    with pytest.raises(PETLError, match='in 3 blocks; this backbone has 2'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), SNF(blocks=3))
