"""timm's plain transformers agree with their originals, whatever they are built of."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.models import vision_transformer as vit
from timm.models import vitamin
from timm_builders import builders, starts_and_learns
from timm_models import EARLY, MODELS, PARALLEL, SQUARE, B, D, E, S, made, sizes, vit_of
from tiny import Everything, Nothing, loss_of, outputs, randomise_, shake_
from torch import Tensor, nn
from trunks import timm_eva

from mmpetl.core import (
    PETLError,
    base_changes,
    eject,
    find_site_map,
    fold,
    inject,
)


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
        small = dict(SMALL)
        if args.get('num_kv_heads'):
            small['num_kv_heads'] = (2, 4)
        starts_and_learns(name, **small)


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
