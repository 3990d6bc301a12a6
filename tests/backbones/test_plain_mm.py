"""Plain transformers of mmseg and mmpretrain: options, tokens, tables, refusals."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import tiny
import torch
from tiny import TINY, Everything, Nothing, bare, images, loss_of, outputs, randomise_
from torch import Tensor, nn

from mmpetl.core import PETLError, delta_state, fold, inject, owners
from mmpetl.methods.lora import LoRA

F64 = torch.float64
GRID = (32, 40)


def build(trunk: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    if trunk == 'mmpretrain_vit':
        made = tiny.mmpretrain_vit(**args)
    elif trunk == 'mmseg_mae':
        made = importlib.import_module('trunks.mmseg_beit').build_mae(**args)
    else:
        made = importlib.import_module(f'trunks.{trunk}').build(**args)
    randomise_(made)
    made.eval()
    return made


NO_TABLES = {'use_rel_pos_bias': False}
SHARED = {**NO_TABLES, 'use_shared_rel_pos_bias': True}
BARE = {**NO_TABLES, 'with_cls_token': False}
RELU = {'act_cfg': {'type': 'ReLU'}}
DROP = {'drop_path_rate': 0.5}
OPTIONS: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ('mmseg_vit', DROP, GRID),
    ('mmseg_vit', {'final_norm': False, 'out_indices': -1}, (37, 50)),
    ('mmseg_vit', {'pre_norm': True, 'out_origin': True, 'out_indices': [1]}, GRID),
    ('mmseg_vit', {'qkv_bias': False, 'patch_bias': False, **RELU}, GRID),
    ('mmseg_vit', {'with_cls_token': False, 'out_origin': True}, (37, 50)),
    ('mmseg_vit', {'output_cls_token': True, 'out_origin': True}, GRID),
    ('mmseg_vit', {'patch_norm': True, 'interpolate_mode': 'bilinear'}, GRID),
    ('mmseg_vit', {'patch_pad': 'same', 'with_cp': True}, (37, 50)),
    ('mmseg_vit', {'patch_pad': 1, 'norm_eval': True}, (37, 50)),
    ('mmseg_vit', {'frozen_exclude': ['pos_embed', 'ffn']}, GRID),
    ('mmseg_beit', DROP, GRID),
    ('mmseg_beit', {'qv_bias': False, 'final_norm': False, **RELU}, GRID),
    ('mmseg_beit', {'out_indices': -1, 'patch_norm': True, 'norm_eval': True}, GRID),
    ('mmseg_mae', DROP, GRID),
    ('mmseg_mae', {'out_indices': [0], 'patch_norm': True}, GRID),
    ('mmpretrain_beit', DROP, GRID),
    ('mmpretrain_beit', {'out_type': 'raw', 'bias': True}, GRID),
    ('mmpretrain_beit', {'out_type': 'featmap', 'bias': False, **SHARED}, GRID),
    ('mmpretrain_beit', {'out_type': 'cls_token', 'final_norm': True}, GRID),
    ('mmpretrain_beit', {'out_indices': [0, 1], 'final_norm': True}, GRID),
    ('mmpretrain_beit', {'layer_scale_init_value': 0.0, **DROP}, GRID),
    ('mmpretrain_beit', {'use_abs_pos_emb': True, **SHARED}, GRID),
    ('mmpretrain_beit', {'use_abs_pos_emb': True, **NO_TABLES}, (37, 50)),
    ('mmpretrain_beit', {'out_type': 'raw', 'use_abs_pos_emb': True, **BARE}, (37, 50)),
    ('mmpretrain_beit', {**BARE, 'patch_cfg': {'norm_cfg': {'type': 'LN'}}}, (37, 50)),
    ('mmpretrain_deit', DROP, GRID),
    ('mmpretrain_deit', {'out_type': 'raw', 'pre_norm': True}, (37, 50)),
    ('mmpretrain_deit', {'out_type': 'featmap', 'final_norm': False}, GRID),
    ('mmpretrain_deit', {'out_type': 'avg_featmap', 'out_indices': [0, 1]}, GRID),
    ('mmpretrain_deit3', DROP, GRID),
    ('mmpretrain_deit3', {'out_type': 'raw', 'use_layer_scale': False}, (37, 50)),
    ('mmpretrain_deit3', {'out_type': 'featmap', 'with_cls_token': False}, (37, 50)),
    ('mmpretrain_deit3', {'out_indices': [0, 1], 'final_norm': False}, GRID),
    ('mmpretrain_deit3', {'qkv_bias': False, 'layer_cfgs': RELU}, GRID),
    ('mmpretrain_eva02', {'drop_path_rate': 0.5, 'img_size': GRID}, GRID),
    ('mmpretrain_eva02', {'sub_ln': False, 'out_type': 'cls_token'}, GRID),
    ('mmpretrain_eva02', {'out_type': 'raw', 'with_cls_token': False}, (37, 50)),
    ('mmpretrain_eva02', {'pre_norm': True, 'final_norm': True}, (37, 50)),
    ('mmpretrain_eva02', {'qkv_bias': False, 'out_type': 'featmap'}, GRID),
    ('mmpretrain_eva02', {'layer_cfgs': {'rope': None, 'qk_scale': 0.5}}, GRID),
    ('mmpretrain_sam', DROP, GRID),
    ('mmpretrain_sam', {'use_rel_pos': False, 'out_channels': 0}, (37, 50)),
    ('mmpretrain_sam', {'use_abs_pos': False, 'window_size': 14}, (37, 50)),
    ('mmpretrain_sam', {'out_type': 'avg_featmap', 'out_channels': 0}, (37, 50)),
    ('mmpretrain_sam', {'out_type': 'avg_featmap', 'qkv_bias': False}, GRID),
    ('mmpretrain_vit', {'layer_cfgs': {'ffn_type': 'swiglu_fused'}}, GRID),
    (
        'mmpretrain_vit',
        {
            'layer_cfgs': {'ffn_type': 'swiglu_fused'},
            'layer_scale_init_value': 0.1,
            'out_type': 'featmap',
            **DROP,
        },
        (37, 50),
    ),
]


def kinds(y: Any) -> Any:
    """Types and shapes of what a backbone gives."""
    if isinstance(y, Tensor):
        return tuple(y.shape), y.is_contiguous()
    return type(y), [kinds(part) for part in y]


@pytest.mark.parametrize(('trunk', 'args', 'size'), OPTIONS, ids=str)
def test_options_agree_in_outputs_and_gradients(
    trunk: str, args: dict[str, Any], size: tuple[int, int]
) -> None:
    plain = build(trunk, **args).double()
    plain.train()  # returns nothing upstream
    ours = inject(copy.deepcopy(plain), Everything())
    x = torch.randn(2, 3, *size, dtype=F64)
    results = []
    for model in (plain, ours):
        torch.manual_seed(1)  # stochastic depth draws the same
        y = model(x)
        results.append(y)
        loss_of(list(tiny.tensors(y))).backward()
    assert kinds(results[1]) == kinds(results[0])
    for a, b in zip(*map(tiny.tensors, results), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
        else:
            scale = max(1.0, p.grad.abs().max().item())
            assert (q.grad - p.grad).abs().max() <= 1e-8 * scale, name


@pytest.mark.parametrize('trunk', ['mmpretrain_beit', 'mmseg_beit', 'mmpretrain_eva02'])
def test_stochastic_depth_of_a_frozen_trunk_is_upstreams(trunk: str) -> None:
    """BEiT of mmpretrain drops its feed-forward branch twice."""
    plain = build(trunk, drop_path_rate=0.5)
    ours = inject(copy.deepcopy(plain), 'LoRA', frozen_drop_path=True)
    x = images(trunk, batch=8)
    plain.train()
    ours.train()
    results = []
    for model in (plain, ours):
        torch.manual_seed(3)
        results.append(outputs(model, x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ extra tokens


def prompted(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """With three tokens in front of the patches, and these."""
    tuned = inject(copy.deepcopy(model), {'type': 'VPTShallow', 'num_tokens': 3})
    tuned.eval()
    found = [p for n, p in tuned.named_parameters() if n.endswith('.E')]
    with torch.no_grad():
        found[0].normal_()
    return tuned, found[0].detach()


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float, heads: int
) -> Tensor:
    """The formula, (B, N, C) each."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.mT) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def spread(bias: Tensor, extra: int) -> Tensor:
    """Zeros for extra tokens between the class token and the patches."""
    n = bias.shape[-1] + extra
    old = [0, *range(1 + extra, n)]
    grown = bias.new_zeros(len(bias), n, n)
    for i, row in enumerate(old):
        grown[:, row, old] = bias[:, i]
    return grown


@pytest.mark.parametrize('shared', [False, True], ids=['own', 'shared'])
@pytest.mark.parametrize('trunk', ['mmpretrain_beit', 'mmseg_beit'])
@torch.no_grad()
def test_extra_tokens_have_no_relative_position_in_beit(
    trunk: str, shared: bool
) -> None:
    dense = trunk == 'mmseg_beit'
    if dense and shared:
        args: dict[str, Any] = {'qv_bias': False, 'out_indices': [1]}
    else:
        args = {'out_indices': [1]} if dense else {'out_type': 'raw'}
        args |= {'final_norm': False} | (SHARED if shared else {})
    model = build(trunk, **args).double()
    tuned, prompts = prompted(model)
    x = images(trunk, dtype=F64)
    patches, hw = model.patch_embed(x)
    front = torch.cat((model.cls_token, prompts.double().expand(1, -1, -1)), dim=1)
    h = torch.cat((front.expand(len(x), -1, -1), patches), dim=1)
    for block in model.layers:
        attn = block.attn
        owner = attn if attn.relative_position_bias_table is not None else None
        owner = owner or model.rel_pos_bias
        index = owner.relative_position_index
        bias = owner.relative_position_bias_table[index].permute(2, 0, 1)
        qkv = block.norm1(h) @ attn.qkv.weight.T
        if attn.bias == 'qv_bias':
            zeros = torch.zeros_like(attn.q_bias)
            qkv = qkv + torch.cat((attn.q_bias, zeros, attn.v_bias))
        o = attention(*qkv.chunk(3, -1), spread(bias, 3), attn.num_heads)
        h = h + block.gamma_1 * attn.proj(o)
        h = h + block.gamma_2 * block.ffn(block.norm2(h))
    if getattr(model, 'final_norm', False):
        h = model.norm1(h)
    y = torch.cat((h[:, :1], h[:, 4:]), dim=1)
    if dense:
        y = y[:, 1:].transpose(1, 2).unflatten(2, hw)
    torch.testing.assert_close(tuned(x)[0], y, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_extra_tokens_are_not_turned_in_eva02() -> None:
    model = build('mmpretrain_eva02', out_type='raw').double()
    tuned, prompts = prompted(model)
    x = images('mmpretrain_eva02', dtype=F64)
    patches, hw = model.patch_embed(x)
    h = torch.cat((model.cls_token.expand(len(x), -1, -1), patches), dim=1)
    h = h + model.pos_embed
    p = prompts.double().expand(len(x), -1, -1)
    h = torch.cat((h[:, :1], p, h[:, 1:]), dim=1)
    for block in model.layers:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(h)).chunk(3, -1)
        heads = [t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k)]
        turned = [
            torch.cat((t[:, :, :4], model.rope(t[:, :, 4:], hw)), dim=2) for t in heads
        ]
        q, k = (t.transpose(1, 2).flatten(2) for t in turned)
        h = h + attn.proj(attention(q, k, v, 0.0, 4))
        h = h + block.mlp(block.norm2(h))
    y = torch.cat((h[:, :1], h[:, 4:]), dim=1)
    torch.testing.assert_close(tuned(x)[0], y, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_extra_tokens_join_each_window_of_sam() -> None:
    """In a window they have no bias; the stream keeps the mean of what windows make."""
    model = build('mmpretrain_sam', out_channels=0, out_indices=[0]).double()
    tuned, prompts = prompted(model)
    x = images('mmpretrain_sam', dtype=F64)
    patches, (rows, columns) = model.patch_embed(x)
    h = patches + model.pos_embed.flatten(1, 2)
    p = prompts.double().expand(len(x), -1, -1)
    block, w = model.layers[0], model.layers[0].window_size
    attn = block.attn
    maps = block.ln1(h).unflatten(1, (rows, columns))
    extra, joined = block.ln1(p), torch.zeros_like(h).unflatten(1, (rows, columns))
    for top in range(0, rows, w):
        for left in range(0, columns, w):
            window = maps.new_zeros(len(x), w, w, maps.shape[-1])
            part = maps[:, top : top + w, left : left + w]
            high, wide = part.shape[1:3]
            window[:, :high, :wide] = part
            q, k, v = attn.qkv(torch.cat((extra, window.flatten(1, 2)), 1)).chunk(3, -1)
            bias = torch.zeros(len(x), 4, 3 + w * w, 3 + w * w, dtype=F64)
            heads = q[:, 3:].unflatten(-1, (4, -1)).transpose(1, 2)
            for i in range(w * w):
                for j in range(w * w):
                    across = attn.rel_pos_h[i // w - j // w + w - 1]
                    along = attn.rel_pos_w[i % w - j % w + w - 1]
                    bias[:, :, 3 + i, 3 + j] = heads[:, :, i] @ (across + along)
            o = attn.proj(attention(q, k, v, bias, 4))
            grid = o[:, 3:].unflatten(1, (w, w))
            joined[:, top : top + w, left : left + w] = grid[:, :high, :wide]
    h = h + joined.flatten(1, 2)
    h = h + block.ffn.layers(block.ln2(h))
    y = h.transpose(1, 2).unflatten(2, (rows, columns))
    torch.testing.assert_close(tuned(x)[0], y, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------ what is special


@torch.no_grad()
def test_other_grids_leave_the_rotations_of_eva02_as_they_are() -> None:
    """Upstream writes tables of the last grid over its buffers; outputs are equal."""
    plain = build('mmpretrain_eva02')
    ours = inject(copy.deepcopy(plain), Nothing())
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for size in ((37, 50), (32, 32), (24, 16)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)
    after = ours.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert plain.state_dict()['rope.freqs_cos'].shape == (6, 8)


def test_rotations_that_blocks_share_are_no_part_of_a_delta() -> None:
    model = inject(build('mmpretrain_eva02'), LoRA(rank=2))
    assert all('petl' in key for key in delta_state(model))


@pytest.mark.parametrize('method', ['Full', 'LNTune', 'BitFit', 'PartialK', 'DiffFit'])
def test_the_unread_norm_of_deit3_never_trains(method: str) -> None:
    model = inject(build('mmpretrain_deit3'), method)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any('.ln2.' in name for name in trains)
    assert any('.ln1.' in name for name in trains)


def test_the_unread_norm_of_a_distilled_vit_never_trains() -> None:
    model = inject(build('mmpretrain_deit', pre_norm=True), 'LNTune')
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains
    assert not any(name.startswith('pre_norm') for name in trains)


@torch.no_grad()
def test_nothing_folds_into_the_norm_that_deit3_uses_twice() -> None:
    model = inject(build('mmpretrain_deit3'), 'SSF')
    tiny.shake_(model)
    x = images('mmpretrain_deit3')
    before = model(x)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(PETLError, match='ln1 serves attention and feed-forward') as e:
        fold(model)
    assert '\n' not in str(e.value)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    torch.testing.assert_close(model(x), before)


def test_torchs_projections_in_one_weight_have_roles() -> None:
    model = inject(build('mmseg_vit'), 'BitFit')
    owner = owners(model)
    selected = {n for n, o in owner.items() if o.name == 'SELECTED'}
    assert 'layers.0.attn.attn.in_proj_bias' in selected
    site_map = tiny.record(model).site_map
    roles = {role.name: role for role in site_map.roles(model)}
    assert roles['layers.1.attn.attn.in_proj_weight'].kind == 'projection'
    assert roles['layers.1.attn.attn.in_proj_weight'].part == 'weight'


def test_methods_that_a_gate_does_not_suit_say_so_in_one_line() -> None:
    trunk = 'mmpretrain_eva02'
    refused = [c for c in tiny.method_cases() if c.id in TINY[trunk].refuses]
    assert refused
    for case in refused:
        with pytest.raises(PETLError, match=r'gate') as error:
            inject(copy.deepcopy(bare(trunk)), case.build())
        assert '\n' not in str(error.value)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize('trunk', ['mmseg_beit', 'mmseg_mae', 'mmpretrain_beit'])
def test_an_input_that_tables_do_not_cover_is_one_line(trunk: str) -> None:
    model = inject(build(trunk), Nothing())
    for size in ((64, 40), (40, 32)):  # also as many patches in another shape
        with pytest.raises(PETLError, match='are for 4 x 5 patches.*set img_size') as e:
            model(torch.randn(1, 3, *size))
        assert '\n' not in str(e.value)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ('mmseg_vit', {'num_fcs': 3}, 'ffn has 3 linear layers'),
    ('mmseg_vit', {'out_indices': (0, -1)}, 'count them from 0'),
    ('mmseg_beit', {'num_fcs': 3}, 'ffn has 3 linear layers'),
    ('mmseg_beit', {'out_indices': (0, -1)}, 'count them from 0'),
    ('mmseg_mae', {'out_indices': (0, -1)}, 'count them from 0'),
    ('mmpretrain_beit', {'layer_cfgs': {'num_fcs': 3}}, 'ffn has 3 linear layers'),
    (
        'mmpretrain_beit',
        {'layer_cfgs': {'ffn_cfg': {'add_identity': True}}},
        'add_identity=True',
    ),
    ('mmpretrain_beit', {'with_cls_token': False}, 'set use_rel_pos_bias'),
    ('mmpretrain_deit3', {'out_type': 'avg_featmap'}, "choose 'cls_token'"),
    ('mmpretrain_deit3', {'layer_cfgs': {'num_fcs': 3}}, 'ffn has 3 linear layers'),
    ('mmpretrain_sam', {'layer_cfgs': {'num_fcs': 3}}, 'ffn has 3 linear layers'),
]


@pytest.mark.parametrize(('trunk', 'args', 'said'), REFUSED, ids=str)
def test_variants_without_sites_are_one_line(
    trunk: str, args: dict[str, Any], said: str
) -> None:
    model = build(trunk, **args)
    classes = [type(part) for part in model.modules()]
    with pytest.raises(PETLError) as error:
        inject(model, LoRA(rank=2))
    assert said in str(error.value)
    assert '\n' not in str(error.value)
    assert [type(part) for part in model.modules()] == classes


def test_rotations_of_a_single_block_are_refused() -> None:
    model = build('mmpretrain_eva02')
    model.layers[1].attn.rope = copy.deepcopy(model.rope)
    with pytest.raises(PETLError, match=r'layers\.1\.attn\.rope is not the rope'):
        inject(model, LoRA(rank=2))


PRETRAINING = {
    'MAEViT': 'VisionTransformer',
    'MFFViT': 'VisionTransformer',
    'MILANViT': 'VisionTransformer',
    'MaskFeatViT': 'VisionTransformer',
    'MoCoV3ViT': 'VisionTransformer',
    'BEiTPretrainViT': 'BEiTViT',
    'CAEPretrainViT': 'BEiTViT',
    'VQKD': 'BEiTViT',
    'MAEHiViT': 'HiViT',
    'iTPNHiViT': 'HiViT',
    'SimMIMSwinTransformer': 'SwinTransformer',
    'MixMIMPretrainTransformer': 'MixMIMTransformer',
}


@pytest.mark.parametrize('method', ['LoRA', 'LinearProbe'])
@pytest.mark.parametrize('name', PRETRAINING)
def test_classes_for_pre_training_say_what_to_build(name: str, method: str) -> None:
    from mmpretrain.models import selfsup

    cls = getattr(selfsup, name)
    model = cls.__new__(cls)  # some cannot be made small
    nn.Module.__init__(model)
    model.proj = nn.Linear(4, 4)
    with pytest.raises(PETLError) as error:
        inject(model, method)
    said = f'mmpretrain.{name} pre-trains on masked images and is no backbone; build '
    assert str(error.value) == (
        f'{said}mmpretrain.{PRETRAINING[name]} and load the same file'
    )


def test_a_file_of_mae_pre_training_has_the_names_of_the_vit() -> None:
    from mmpretrain.models import MAEViT

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    mae = MAEViT(arch=arch, img_size=32, patch_size=8)
    tiny.mmpretrain_vit(out_type='raw').load_state_dict(mae.state_dict())
    inject(mae, LoRA(rank=2), layers='*.attn.qkv')  # to go on with pre-training
