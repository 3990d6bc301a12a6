"""timm's plain transformers agree with their originals, whatever they are built of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.layers import GluMlp, HybridEmbed, SwiGLU, SwiGLUPacked
from timm.models import vision_transformer as vit
from timm.models import vitamin
from timm.models.vision_transformer_hybrid import ConvStem
from tiny import Everything, Nothing, loss_of, outputs, randomise_, shake_
from tiny_builds import TIMM
from torch import Tensor, nn
from trunks import timm_beit, timm_deit, timm_eva, timm_sam

from mmpetl.core import (
    PETLError,
    base_changes,
    eject,
    find_site_map,
    fold,
    inject,
)

SQUARE = (3, 32, 32)


def gates(model: nn.Module) -> nn.Module:
    """Gates in front of the output projections, which Eva itself does not ask for."""
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
    return model


def biases_apart(model: nn.Module) -> nn.Module:
    """Biases that are added behind the projection."""
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
    return model


def stem(**args: Any) -> dict[str, Any]:
    """Options of a ViT whose patches leave three convolutions."""
    made = ConvStem(3, 3, (8, 16, 24), stride=(2, 2, 2))
    return {'embed_layer': partial(HybridEmbed, backbone=made), 'patch_size': 1} | args


def vit_of(**args: Any) -> nn.Module:
    return vit.VisionTransformer(**TIMM | {'num_classes': 5} | args)


E, EARLY, B, D = timm_eva.build, timm_eva.old, timm_beit.build, timm_deit.build
ROPE = {'attn_type': 'rope'}
EVA: dict[str, Callable[[], nn.Module]] = {
    'dinov3': E,
    'dinov3, gated': partial(E, swiglu_mlp=True, qkv_bias=False, global_pool='token'),
    'dinov3 of any grid': partial(E, dynamic_img_pad=True),
    'dinov3 of one size': partial(E, dynamic_img_size=False),
    'eva': EARLY,
    'eva without biases': partial(EARLY, qkv_bias=False, global_pool='max'),
    'biases apart': lambda: biases_apart(EARLY(global_pool='avgmax')),
    'eva02': partial(
        EARLY,
        use_rot_pos_emb=True,
        rope_type='cat',
        rope_rotate_half=False,
        ref_feat_shape=(2, 2),
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
    ),
    'eva02 clip': partial(
        E, rope_type='cat', rope_rotate_half=False, scale_attn_inner=True, qkv_fused=0
    ),
    'behind the sub-layers': partial(EARLY, use_post_norm=True, global_pool='token'),
    'behind the sub-layers, rotary': partial(E, use_post_norm=True, scale_mlp=True),
    'rope': partial(E, **ROPE, rope_type='cat', rope_grid_indexing='xy'),
    'rope, norms per head': partial(E, **ROPE, qk_norm=True, scale_attn_inner=True),
    'a rotation per block': partial(
        E, **ROPE, rope_type='mixed', rope_rotate_half=False, no_embed_class=True
    ),
    'a rotation per block, one size': partial(
        E,
        rope_type='mixed',
        rope_rotate_half=False,
        dynamic_img_size=False,
        use_abs_pos_emb=True,
    ),
    'mrope': partial(E, rope_type='mrope', rope_mrope_section=(0, 2, 2)),
    'narrow keys': partial(E, **timm_eva.NARROW),
    'scale of attention': partial(E, attn_only_layer_scale=True),
    'gates': lambda: gates(E()),
    'gates, narrow keys': lambda: gates(E(**timm_eva.NARROW)),
    'aligned': partial(E, swiglu_align_to=24),
    'perception encoder': partial(
        EARLY,
        **ROPE,
        use_rot_pos_emb=True,
        rope_type='cat',
        use_pre_transformer_norm=True,
        global_pool='map',
        attn_pool_num_heads=2,
    ),
    'no class token': partial(E, class_token=False, global_pool='avg'),
    'neither': partial(E, class_token=False, num_reg_tokens=0, global_pool='avg'),
    'no pooling': partial(E, global_pool='', num_classes=5),
    'no norms behind': partial(
        E, use_fc_norm=False, use_post_transformer_norm=False, num_classes=5
    ),
}
BEIT: dict[str, Callable[[], nn.Module]] = {
    'beit': B,
    'beit, one table': partial(B, use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    'beit, tables of both kinds': partial(B, use_shared_rel_pos_bias=True),
    'beit, no table': partial(B, use_rel_pos_bias=False, use_abs_pos_emb=True),
    'beit, one size': partial(B, use_abs_pos_emb=True, init_values=None),
    'beit, gated': partial(B, swiglu_mlp=True, scale_mlp=True, qkv_bias=False),
    'beit, token': partial(B, global_pool='token', num_classes=0),
    'beit, no pooling': partial(B, global_pool=''),
    'beit, norm behind the pooling': partial(B, use_fc_norm=True, global_pool='token'),
    'beit, biases apart': lambda: biases_apart(B()),
}
PARALLEL = {'block_fn': vit.ParallelScalingBlock}
CORNERS: dict[str, Callable[[], nn.Module]] = {
    'packed': partial(vit_of, mlp_layer=SwiGLUPacked),
    'gate last': partial(vit_of, mlp_layer=GluMlp, scale_mlp_norm=True),
    'split': partial(vit_of, mlp_layer=SwiGLU, scale_mlp_norm=True),
    'normed once more': partial(vit_of, mlp_layer=vitamin.GeGluMlp, act_layer='gelu'),
    'norm of attention': partial(vit_of, scale_attn_norm=True, scale_mlp_norm=True),
    'post norm': partial(vit_of, block_fn=vit.ResPostBlock, init_values=0.1),
    'side by side': partial(vit_of, **PARALLEL, init_values=0.1),
    'side by side, bare': partial(vit_of, **PARALLEL, qkv_bias=False, qk_norm=True),
    'side by side, one projection': partial(
        vit_of, block_fn=partial(vit.ParallelScalingBlock, fuse_out_proj=True)
    ),
    'stem': lambda: vit_of(**stem()),
    'stem of any grid': lambda: vit_of(**stem(dynamic_img_size=True)),
    'stem and patches, padded': lambda: vit_of(
        **stem(dynamic_img_size=True, dynamic_img_pad=True, patch_size=3)
    ),
    'stem without a projection': lambda: vit_of(
        **stem(
            embed_layer=partial(
                HybridEmbed, backbone=ConvStem(3, 3, (8, 16, 32)), proj=False
            ),
            class_token=False,
            global_pool='avg',
        )
    ),
    'distilled': D,
    'distilled, bare': partial(D, num_classes=0),
    'distilled, any grid': partial(D, dynamic_img_size=True),
}
S = timm_sam.build
ROTARY = {'use_rel_pos': False, 'use_rope': True, 'ref_feat_shape': (4, 3)}
SAM: dict[str, Callable[[], nn.Module]] = {
    'sam': S,
    'sam, no windows': partial(S, window_size=0, pre_norm=True, init_values=0.1),
    'sam, all windows': partial(S, global_attn_indexes=(), num_classes=0),
    'sam, no neck': partial(S, neck_chans=0, use_abs_pos=False, head_hidden_size=16),
    'sam, rotary': partial(S, **ROTARY, qk_norm=True),
    'sam, no positions': partial(S, use_rel_pos=False, qkv_bias=False, neck_chans=0),
}
MODELS = EVA | BEIT | CORNERS | SAM


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_(MODELS[name]()).double().eval()


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """Inputs that a model takes."""
    embed = model.patch_embed
    if getattr(model, 'rope_global', None) is not None:
        return [SQUARE]
    if not embed.flatten:
        odd = (3, 37, 50) if embed.dynamic_img_pad else (3, 40, 24)
        return [SQUARE, odd]
    return [SQUARE]


@pytest.mark.parametrize('name', MODELS)
def test_outputs_and_gradients_are_those_of_upstream(name: str) -> None:
    plain = made(name)
    model = inject(copy.deepcopy(plain), Everything())
    assert type(model).__name__ == f'PETL{type(plain).__name__}'
    for size in sizes(plain):
        found = []
        for m in (plain, model):
            x = torch.linspace(-2, 2, 2 * 3 * size[1] * size[2]).sin().double()
            x = x.reshape(2, *size).requires_grad_()
            m.zero_grad()
            ys = outputs(m, x)
            loss_of(ys).backward()
            grads = {n: p.grad for n, p in m.named_parameters()} | {'': x.grad}
            found.append((ys, grads))
        for y, wanted in zip(found[1][0], found[0][0], strict=True):
            torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
        grads, wanted = found[1][1], found[0][1]
        assert grads.keys() == wanted.keys()
        scale = max(g.abs().max() for g in wanted.values() if g is not None)
        for n, grad in wanted.items():
            assert (grad is None) == (grads[n] is None), n
            if grad is not None:
                assert (grads[n] - grad).abs().max() < 1e-9 * scale, n


DROPS = {
    'drop_rate': 0.1,
    'pos_drop_rate': 0.1,
    'proj_drop_rate': 0.2,
    'attn_drop_rate': 0.1,
    'drop_path_rate': 0.4,
}
DROPPING = {
    'eva': partial(E, **DROPS),
    'eva, gated': partial(E, **DROPS, **timm_eva.NARROW | {'scale_mlp': True}),
    'eva, behind': partial(EARLY, **DROPS, use_post_norm=True, swiglu_mlp=True),
    'beit': partial(B, **DROPS, swiglu_mlp=True),
    'post norm': partial(vit_of, **DROPS, block_fn=vit.ResPostBlock),
    'side by side': partial(vit_of, **DROPS, **PARALLEL),
    'normed once more': partial(
        vit_of, **DROPS, mlp_layer=vitamin.GeGluMlp, act_layer='gelu'
    ),
    'distilled': partial(D, **DROPS),
    'sam': partial(S, **DROPS, init_values=0.1),
}


@pytest.mark.parametrize('name', DROPPING)
@torch.no_grad()
def test_dropout_and_stochastic_depth_are_those_of_upstream(name: str) -> None:
    plain = randomise_(DROPPING[name]()).double().train()
    model = inject(copy.deepcopy(plain), Everything()).train()
    x = torch.randn(4, *SQUARE, dtype=torch.double)
    found = []
    for m in (plain, model):
        torch.manual_seed(7)
        found.append(m(x))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert (plain.eval()(x) - found[0]).abs().max() > 1e-3


ROLES = {
    'eva02': {
        'patch_embed.proj.weight': ('projection', 'weight', 'embed'),
        'pos_embed': ('position', '', ''),
        'cls_token': ('token', '', ''),
        'blocks.0.norm1.weight': ('norm', 'weight', 'block'),
        'blocks.1.attn.q_proj.bias': ('projection', 'bias', 'block'),
        'blocks.1.mlp.fc1_g.weight': ('projection', 'weight', 'block'),
        'blocks.1.mlp.norm.bias': ('inner_norm', 'bias', 'block'),
        'fc_norm.weight': ('final_norm', 'weight', 'out'),
    },
    'dinov3': {
        'reg_token': ('token', '', ''),
        'blocks.0.gamma_1': ('scale', '', 'block'),
        'blocks.0.attn.q_bias': ('projection', 'bias', 'block'),
        'norm.bias': ('final_norm', 'bias', 'out'),
    },
    'beit': {
        'blocks.0.attn.relative_position_bias_table': ('position_bias', '', 'block'),
        'blocks.0.attn.v_bias': ('projection', 'bias', 'block'),
        'head.weight': ('head', 'weight', 'head'),
    },
    'side by side, bare': {
        'blocks.0.mlp_bias': ('projection', 'bias', 'block'),
        'blocks.0.in_norm.weight': ('norm', 'weight', 'block'),
        'blocks.0.q_norm.weight': ('inner_norm', 'weight', 'block'),
    },
    'sam': {
        'blocks.0.attn.rel_pos_h': ('position_bias', '', 'block'),
        'head.fc.bias': ('head', 'bias', 'head'),
    },
    'distilled': {
        'dist_token': ('token', '', ''),
        'head_dist.bias': ('head', 'bias', 'head'),
    },
}


@pytest.mark.parametrize('name', ROLES)
def test_roles(name: str) -> None:
    model = made(name)
    roles = {role.name: role for role in find_site_map(model).roles(model)}
    assert roles.keys() == dict(model.named_parameters()).keys()
    found = {n: (roles[n].kind, roles[n].part, roles[n].place) for n in ROLES[name]}
    assert found == ROLES[name]


def test_features_only_and_inside_of_mmpretrain() -> None:
    from mmpretrain.models import TIMMBackbone

    small = {'img_size': 32, 'embed_dim': 32, 'depth': 2, 'num_heads': 4}
    net = TIMMBackbone(
        'vit_base_patch16_dinov3', features_only=True, out_indices=(0, 1), **small
    )
    wanted = copy.deepcopy(net)
    inject(net, 'LoRA')
    assert type(net.timm_model.model).__name__ == 'PETLEva'
    x = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted(x))


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_deltas_act_fold_and_go(name: str) -> None:
    plain = made(name)
    (x,) = (torch.randn(2, *SQUARE, dtype=torch.double),)
    method = {
        'type': 'LoRA',
        'rank': 2,
        'targets': ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2'],
    }
    model = inject(copy.deepcopy(plain), method)
    shake_(model)
    tuned = outputs(model, x)
    assert (tuned[0] - outputs(plain, x)[0]).abs().max() > 1e-4
    folded = fold(copy.deepcopy(model))
    for a, b in zip(outputs(folded, x), tuned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    eject(model)
    assert type(model) is type(plain)
    for a, b in zip(outputs(model, x), outputs(plain, x), strict=True):
        assert torch.equal(a, b)


def same_intermediates(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    own = getattr(plain, 'num_prefix_tokens', None)
    kept = {} if own is None else {'return_prefix_tokens': own > 0}
    for args in ({}, {'indices': [0], 'stop_early': True}, {'norm': True}):
        for fmt in ('NCHW',) if own is None else ('NCHW', 'NLC'):
            more = args | {'output_fmt': fmt} | kept
            found = model.forward_intermediates(x, **more)
            wanted = plain.forward_intermediates(x, **more)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    'name',
    [
        'dinov3',
        'neither',
        'a rotation per block',
        'beit',
        'side by side',
        'stem',
        'sam',
    ],
)
@torch.no_grad()
def test_intermediates_are_those_of_upstream(name: str) -> None:
    plain = made(name)
    model = inject(copy.deepcopy(plain), 'LoRA')
    for size in sizes(plain):
        x = torch.randn(2, *size, dtype=torch.double)
        same_intermediates(model, plain, x)


@pytest.mark.parametrize(
    'name', ['dinov3 of one size', 'eva', 'a rotation per block, one size', 'beit']
)
def test_another_input_size_is_the_base_from_then_on(name: str) -> None:
    plain = made(name)
    model = inject(copy.deepcopy(plain), 'LoRA')
    x = torch.randn(2, 3, 48, 40, dtype=torch.double)
    for m in (plain, model):
        m.set_input_size((48, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)
    model.train()
    assert base_changes(model) == []
    eject(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


def test_tables_that_a_slot_trains_keep_their_size() -> None:
    model = inject(made('beit'), 'Full')
    with pytest.raises(PETLError, match=r'trains blocks\.0\.attn\.relative_position'):
        model.set_input_size((48, 48))


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('name', ['a rotation per block', 'beit, one table'])
def test_memory_is_saved_with_the_same_gradients(
    name: str, checkpointing: bool
) -> None:
    grads = []
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    for switch in (False, checkpointing):
        model = inject(made(name), 'VPTDeep')
        shake_(model)
        model.set_grad_checkpointing(switch)
        loss_of(outputs(model, x)).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert grads[0]
    torch.testing.assert_close(grads[1], grads[0])


def prompts(model: nn.Module, block: int) -> Tensor:
    """Prompts of deep prompt tuning in front of a block, (T, C)."""
    (delta,) = model.blocks[block].petl.tokens.values()
    (table,) = delta.parameters()
    return table.reshape(-1, table.shape[-1])


PROMPTED = ['dinov3', 'eva', 'eva02', 'a rotation per block', 'narrow keys', 'mrope']


@pytest.mark.parametrize('name', PROMPTED)
@torch.no_grad()
def test_prompts_are_not_turned_and_patches_are(name: str) -> None:
    """Upstream's own blocks, told that prompts are tokens in front of the grid."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    own = plain.num_prefix_tokens
    for size in sizes(plain):
        images = torch.randn(2, *size, dtype=torch.double)
        bare = plain(images)
        x, rope = plain._pos_embed(plain.patch_embed(images))
        x = plain.norm_pre(x)
        for i, block in enumerate(plain.blocks):
            extra = prompts(model, i).expand(2, -1, -1)
            assert extra.shape[1] == 3
            block.attn.num_prefix_tokens = own + 3
            x = torch.cat((x[:, :own], extra, x[:, own:]), dim=1)
            mine = rope[i] if plain.rope_mixed and rope is not None else rope
            x = block(x, rope=mine)
            x = torch.cat((x[:, :own], x[:, own + 3 :]), dim=1)
        wanted = plain.forward_head(plain.norm(x))
        for block in plain.blocks:
            block.attn.num_prefix_tokens = own
        assert (wanted - bare).abs().max() > 1e-3
        torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['beit', 'beit, one table', 'beit, no table'])
@torch.no_grad()
def test_prompts_have_no_place_in_tables(name: str) -> None:
    """Upstream's own blocks, with biases that are spread entry by entry."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    images = torch.randn(2, *SQUARE, dtype=torch.double)
    x = torch.cat((plain.cls_token.expand(2, -1, -1), plain.patch_embed(images)), 1)
    x = x if plain.pos_embed is None else x + plain.pos_embed
    total = x.shape[1] + 3
    for i, block in enumerate(plain.blocks):
        bias = torch.zeros(4, total, total, dtype=torch.double)
        owner = block.attn if plain.rel_pos_bias is None else plain.rel_pos_bias
        if owner.relative_position_bias_table is not None:
            index = owner.relative_position_index
            places = [0, *range(4, total)]
            for a, row in enumerate(places):
                for b, column in enumerate(places):
                    entry = owner.relative_position_bias_table[index[a, b]]
                    bias[:, row, column] = entry
        block.attn.relative_position_bias_table = None
        x = torch.cat((x[:, :1], prompts(model, i).expand(2, -1, -1), x[:, 1:]), 1)
        x = block(x, shared_rel_pos_bias=bias[None])
        x = torch.cat((x[:, :1], x[:, 4:]), dim=1)
    wanted = plain.forward_head(plain.norm(x))
    torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['dinov3', 'beit, token'])
@torch.no_grad()
def test_queries_apart_from_the_grid_have_no_positions(name: str) -> None:
    """Query tuning: keys of the stream, queries without rotation or bias."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VQT', 'num_tokens': 2})
    shake_(model, 1.0)
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    found = model(x)
    wanted = [torch.nn.functional.normalize(plain(x), dim=-1)]
    h = plain.patch_embed(x)
    if name == 'dinov3':
        h, rope = plain._pos_embed(h)
        inside = {'rope': rope}
    else:
        h, inside = torch.cat((plain.cls_token.expand(2, -1, -1), h), 1), {}
    for i, block in enumerate(plain.blocks):
        (delta,) = model.blocks[i].petl.block.values()
        seen = []
        keep = torch.nn.functional.scaled_dot_product_attention

        def watch(q, k, v, seen=seen, keep=keep, **more):
            seen.append((k, v))
            return keep(q, k, v, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
            behind = block(h, **inside)
        ((k, v),) = seen
        e = delta.E.expand(2, -1, -1)
        n, attn = block.norm1(e), block.attn
        q = n @ attn.qkv.weight[:32].T + attn.q_bias
        q = q.reshape(2, 2, 4, 8).transpose(1, 2)
        o = (q @ k.mT / 8**0.5).softmax(-1) @ v
        e = e + block.gamma_1 * attn.proj(o.transpose(1, 2).flatten(2))
        e = e + block.gamma_2 * block.mlp(block.norm2(e))
        wanted.append(torch.nn.functional.normalize(e.flatten(1), dim=-1))
        h = behind
    torch.testing.assert_close(found, torch.cat(wanted, -1), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_a_shift_of_keys_folds_where_softmax_drops_it_and_nowhere_else() -> None:
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    model = inject(made('beit'), 'SSF')
    shake_(model)
    tuned = model(x)
    torch.testing.assert_close(fold(model)(x), tuned, rtol=1e-8, atol=1e-8)
    for name in ('dinov3', 'narrow keys'):
        model = inject(made(name), 'SSF')
        shake_(model)
        tuned = model(x)
        if name == 'dinov3':
            with pytest.raises(PETLError, match=r'qkv has no bias to fold a shift'):
                fold(model)
            torch.testing.assert_close(model(x), tuned)
        else:
            torch.testing.assert_close(fold(model)(x), tuned, rtol=1e-8, atol=1e-8)


def test_coordinates_stay_while_the_trunk_is_frozen() -> None:
    plain = made('dinov3')
    plain.rope.shift_coords, plain.rope.aug_active = 0.5, True
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    model = inject(copy.deepcopy(plain), Nothing()).train()
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
        assert (plain.train()(x) - plain.eval()(x)).abs().max() > 1e-6


@torch.no_grad()
def test_prompts_join_every_window_and_have_no_position() -> None:
    """The blocks of upstream on windows, prompts in front, one at a time."""
    plain = made('sam')
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    images = torch.randn(2, *SQUARE, dtype=torch.double)
    x = plain.patch_embed(images) + plain.pos_embed
    for i, block in enumerate(plain.blocks):
        size = block.window_size or 4
        wide = -(-4 // size) * size
        h = nn.functional.pad(block.norm1(x), (0, 0, 0, wide - 4, 0, wide - 4))
        table_h, table_w = block.attn.rel_pos_h, block.attn.rel_pos_w
        extra = block.norm1(prompts(model, i)).expand(2, -1, -1)
        behind = torch.zeros_like(h)
        for top in range(0, wide, size):
            for left in range(0, wide, size):
                window = h[:, top : top + size, left : left + size].flatten(1, 2)
                tokens = torch.cat((extra, window), dim=1)
                q, k, v = (
                    t.unflatten(2, (4, 8)).transpose(1, 2)
                    for t in block.attn.qkv(tokens).chunk(3, dim=-1)
                )
                scores = q @ k.mT / 8**0.5
                for a in range(size * size):
                    for b in range(size * size):
                        down = a // size - b // size + size - 1
                        right = a % size - b % size + size - 1
                        place = table_h[down] + table_w[right]
                        scores[:, :, 3 + a, 3 + b] += q[:, :, 3 + a] @ place
                o = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
                y = block.attn.proj(o)[:, 3:].unflatten(1, (size, size))
                behind[:, top : top + size, left : left + size] = y
        x = x + behind[:, :4, :4]
        x = x + block.mlp(block.norm2(x))
    wanted = plain.head(plain.neck(x.permute(0, 3, 1, 2)))
    torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_both_heads_of_a_distilled_model() -> None:
    plain = made('distilled')
    model = inject(copy.deepcopy(plain), 'Full')
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    for m in (plain, model):
        m.set_distilled_training()
        m.train()
    found, wanted = model(x), plain(x)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found, wanted)
    model = inject(copy.deepcopy(plain), 'LoRA')
    model.reset_classifier(7)
    assert tiny.record(model).head == {
        f'{head}.{part}'
        for head in ('head', 'head_dist')
        for part in ('weight', 'bias')
    }
    assert tiny.count_trainable(model).head == 2 * (7 * 32 + 7)
    with pytest.raises(PETLError, match='two vectors leave'):
        inject(made('distilled, bare'), 'VQT')


REFUSED = [
    ({'block_fn': vit.ParallelThingsBlock}, r"layers='blocks\.\*\.attns\.\*"),
    ({'block_fn': vit.DiffParallelScalingBlock}, r"layers='blocks\.\*\.in_proj'"),
    ({'attn_layer': 'diff'}, r"layers='blocks\.\*\.attn\.qkv'"),
]


@pytest.mark.parametrize(('args', 'said'), REFUSED, ids=str)
def test_other_algebra_is_refused_with_layers_to_name(
    args: dict[str, Any], said: str
) -> None:
    with pytest.raises(PETLError, match=said) as error:
        inject(vit_of(**args), 'LoRA')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'method', 'said'),
    [
        ('stem', 'GPS', None),
        ('stem', {'type': 'SSF'}, None),
        ('side by side', 'Mona', 'share one norm and one shortcut'),
        ('distilled', 'VQT', 'build it with num_classes=0|two vectors leave'),
        ('beit', 'VQT', 'build it with num_classes=0'),
        ('beit, no pooling', 'HST', 'build it with'),
        ('sam, all windows', 'VQT', 'a neck of convolutions stands in front'),
    ],
    ids=str,
)
def test_what_a_trunk_lacks_is_said(name: str, method: Any, said: str | None) -> None:
    if said is None:
        model = inject(made(name), method)
        x = torch.randn(2, *SQUARE, dtype=torch.double)
        loss_of(outputs(model, x)).backward()
    else:
        with pytest.raises(PETLError, match=said):
            inject(made(name), method)


def test_a_stem_takes_images_of_its_size() -> None:
    model = inject(made('stem'), 'LoRA')
    with pytest.raises(PETLError, match=r'takes images of \(32, 32\), got \(48, 32\)'):
        model(torch.randn(1, 3, 48, 32, dtype=torch.double))


ODD = [
    'dinov3, gated',
    'eva02',
    'behind the sub-layers',
    'narrow keys',
    'beit, one table',
    'beit, token',
    'normed once more',
    'post norm',
    'side by side, bare',
    'side by side, one projection',
    'stem',
    'distilled, bare',
    'sam',
]


@pytest.mark.slow
@pytest.mark.parametrize('name', ODD)
def test_every_method_works_or_is_refused_in_one_line(name: str) -> None:
    plain = made(name)
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    with torch.no_grad():
        wanted = outputs(plain, x)
    served, said = 0, {}
    for case in tiny.method_cases():
        method = case.build()
        try:
            model = inject(copy.deepcopy(plain), method)
        except PETLError as error:
            said[case.id] = str(error)
            continue
        ys = outputs(model, x)
        if method.starts_as_identity and ys[0].shape == wanted[0].shape:
            for a, b in zip(ys, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=case.id)
        shake_(model)
        own = [p for p in model.parameters() if p.requires_grad]
        if own:
            loss_of(outputs(model, x)).backward()
            assert any(p.grad is not None for p in own), case.id
        served += 1
    assert served > 15
    assert not any('\n' in text for text in said.values())


SMALL = {'img_size': 32, 'patch_size': 8, 'embed_dim': 64, 'depth': 2, 'num_heads': 4}


def builders(
    monkeypatch: pytest.MonkeyPatch, module: str, maker: str
) -> dict[str, dict[str, Any]]:
    """The options of every builder of a timm module."""
    found = {}
    with monkeypatch.context() as patch:
        source = getattr(timm.models, module)
        patch.setattr(source, maker, lambda variant, pretrained=False, **args: args)
        for name in timm.list_models(module=module):
            found[name] = timm.models.model_entrypoint(name)()
    return found


def walked(name: str, options: dict[str, Any], **more: Any) -> None:
    """LoRA at zero leaves the outputs of a shrunk model, and then learns."""
    small = SMALL | more
    if options.get('num_kv_heads'):
        small['num_kv_heads'] = (2, 4)
    plain = randomise_(timm.create_model(name, **small, num_classes=3)).double().eval()
    model = inject(copy.deepcopy(plain), 'LoRA')
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    wanted = outputs(plain, x)
    for a, b in zip(outputs(model, x), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=name)
    shake_(model)
    ys = outputs(model, x)
    loss_of(ys).backward()
    assert (ys[0] - wanted[0]).abs().max() > 0, name
    own = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert own, name
    assert all(p.grad is not None for p in own), name


@pytest.mark.parametrize(
    ('module', 'maker', 'count'),
    [
        ('eva', '_create_eva', 65),
        ('beit', '_create_beit', 7),
        ('deit', '_create_deit', 16),
    ],
)
def test_every_builder_works(
    monkeypatch: pytest.MonkeyPatch, module: str, maker: str, count: int
) -> None:
    options = builders(monkeypatch, module, maker)
    assert len(options) >= count  # timm 1.0.31 has as many
    for name, args in options.items():
        walked(name, args)


STEMS = {
    'vit_tiny_r_s16_p8_224': {'img_size': 64},
    'vit_base_mci_224': {'img_size': 64, 'embed_dim': 768},
    'vitamin_small_224': {'embed_dim': 384, 'num_heads': 4},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', STEMS)
def test_convolutional_stems_of_timm(name: str) -> None:
    args = {k: v for k, v in (SMALL | STEMS[name]).items() if k != 'patch_size'}
    plain = timm.create_model(name, **args, num_classes=3).eval()
    model = inject(copy.deepcopy(plain), 'LoRA')
    size = args['img_size']
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    assert not any(site.kind == 'embed.proj' for site in tiny.record(model).sites)
