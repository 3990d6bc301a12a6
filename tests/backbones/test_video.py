"""What is special about mmaction's TimeSformer and UniFormerV2."""

from __future__ import annotations

import pytest
import torch
from tiny import Nothing, bare, base, clone, images, outputs, record, shake_
from torch import nn
from trunks.mmaction_timesformer import build as timesformer
from trunks.mmaction_uniformerv2 import build as uniformerv2

from mmpetl.core import Context, Owner, PETLError, inject, owners

DIVIDED = 'mmaction_timesformer'
BLOCK = 'transformer_layers.layers.1'


def by_torch(mha: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """Torch's own attention of (B, N, C) to itself."""
    x = x.transpose(0, 1)
    return mha(x, x, x, need_weights=False)[0].transpose(0, 1)


def test_both_attentions_of_a_block_are_served() -> None:
    model = inject(base(DIVIDED), {'type': 'LoRA', 'rank': 2})
    hosts = [s.host for s in record(model).slots['0'].sites if s.kind == 'attn.q']
    assert hosts == [
        f'transformer_layers.layers.{i}.attentions.{j}' for i in (0, 1) for j in (0, 1)
    ]
    before = outputs(model, images(DIVIDED))[0]
    for host in hosts:
        other = clone(model)
        with torch.no_grad():
            for param in other.get_submodule(f'{host}.petl').parameters():
                param.add_(0.1)
        assert (outputs(other, images(DIVIDED))[0] - before).abs().max() > 1e-5


@torch.no_grad()
def test_added_tokens_in_divided_attention() -> None:
    """They join every place in time, every frame in space, and the mean leaves."""
    model = inject(base(DIVIDED, torch.float64), Nothing())
    temporal, spatial = model.get_submodule(f'{BLOCK}.attentions')
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1 + 2 + 3 * 4, 32, generator=g, dtype=torch.float64)
    ctx = Context((3, 2, 2), num_prefix=3)
    ctx.num_extra = 2
    h = temporal.norm(x)
    parts = []
    for place in range(4):
        rows = [0, 1, *(2 + 4 * frame + place for frame in range(3))]
        y = temporal.temporal_fc(by_torch(temporal.attn, h[:, 1:][:, rows]))
        parts.append(y)
    want = x.clone()
    want[:, 1:3] += sum(y[:, :2] for y in parts) / 4
    for place, y in enumerate(parts):
        want[:, 3 + place :: 4] += y[:, 2:]
    torch.testing.assert_close(temporal(x, ctx), want)
    h = spatial.norm(x)
    want = x.clone()
    for frame in range(3):
        rows = [0, 1, 2, *range(3 + 4 * frame, 7 + 4 * frame)]
        y = by_torch(spatial.attn, h[:, rows])
        want[:, :3] += y[:, :3] / 3
        want[:, 3 + 4 * frame : 7 + 4 * frame] += y[:, 3:]
    torch.testing.assert_close(spatial(x, ctx), want)


def test_layers_of_another_make_are_refused() -> None:
    model = timesformer()
    model.transformer_layers.layers[1].operation_order = ('self_attn', 'ffn')
    with pytest.raises(PETLError, match=r'layers\.1 runs self_attn, ffn; .* knows'):
        inject(model, 'LoRA')
    model = timesformer(attention_type='space_only')
    model.transformer_layers.layers[0].ffns[0].num_fcs = 3
    with pytest.raises(PETLError, match='3 linear layers'):
        inject(model, 'LoRA')


def test_side_blocks_say_what_to_choose() -> None:
    with pytest.raises(PETLError, match=r"divide it over time.*init='random'"):
        inject(base(DIVIDED), {'type': 'LST', 'reduction': 2})
    inject(base(DIVIDED), {'type': 'LST', 'reduction': 2, 'init': 'random'})


@pytest.mark.parametrize(
    'folded', ['mmaction_timesformer_space', 'mmaction_uniformerv2']
)
def test_a_feature_of_other_sequences_is_refused(folded: str) -> None:
    with pytest.raises(PETLError, match='belongs to no sequence of the blocks'):
        inject(base(folded), 'VQT')


def test_attention_of_single_frames_runs_again_along_time() -> None:
    stem = 'mmaction_timesformer_space'
    model = inject(base(stem), {'type': 'AIM', 'drop_path': 0.0})
    x = images(stem)
    with torch.no_grad():
        assert torch.allclose(model(x), bare(stem)(x), atol=1e-5)
        assert torch.allclose(model(x.flip(2)), model(x), atol=1e-5)
        shake_(model)
        assert not torch.allclose(model(x.flip(2)), model(x), atol=1e-3)


def test_norms_and_frames_have_their_roles() -> None:
    for stem in (DIVIDED, 'mmaction_timesformer_space', 'mmaction_uniformerv2'):
        record_ = record(inject(base(stem), Nothing()))
        roles = record_.site_map.roles(bare(stem))
        kinds = {role.name: role.kind for role in roles}
        assert 'inner_norm' not in kinds.values()
        assert 'other' not in {k for n, k in kinds.items() if n[-7:] != 'balance'}
        assert [n for n, k in kinds.items() if k == 'final_norm'] == [
            f'{"transformer." if "uni" in stem else ""}norm.{part}'
            for part in ('weight', 'bias')
        ]
    assert kinds['transformer.dec.0.mlp.c_fc.bias'] == 'projection'
    assert kinds['transformer.dpe.0.weight'] == 'mixer'


def test_a_decoder_trains_where_it_is_named() -> None:
    model = uniformerv2()
    names = ('transformer.dec', 'transformer.dpe', 'transformer.balance')
    inject(model, {'type': 'LoRA', 'rank': 2}, head=names)
    owner = owners(model)
    heads = {n for n, who in owner.items() if who is Owner.HEAD}
    assert heads == {n for n, _ in model.named_parameters() if n.startswith(names)}
    x = torch.randn(2, 3, 3, 16, 16)
    model.train()
    model(x).square().sum().backward()
    assert model.transformer.dec[1].attn.out_proj.weight.grad.abs().max() > 0
    assert model.transformer.resblocks[0].attn.in_proj_weight.grad is None
