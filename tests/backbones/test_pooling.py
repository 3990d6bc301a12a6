"""Trunks that pool inside of blocks: options against upstream, tokens, interfaces."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm_builders import starts_and_learns
from tiny import Everything, Nothing, loss_of, outputs, randomise_, shake_
from torch import Tensor, nn
from trunks import mmaction_mvit, mmpretrain_mvit, timm_hiera, timm_hieradet

from mmpetl.core import PETLError, eject, find_site_map, fold, inject

MVIT, CLIPS = mmpretrain_mvit.build, mmaction_mvit.build
HIERA, DET = timm_hiera.build, timm_hieradet.build
IMAGE, CLIP = (3, 32, 32), (3, 4, 32, 32)

OPTIONS: dict[str, tuple[Any, dict[str, Any], list[tuple[int, ...]]]] = {
    'mvit': (MVIT, {}, [IMAGE, (3, 38, 53)]),
    'mvit, widening behind': (
        MVIT,
        {'dim_mul_in_attention': False, 'use_abs_pos_embed': False},
        [IMAGE, (3, 45, 30)],
    ),
    'mvit, bare': (
        MVIT,
        {
            'rel_pos_spatial': False,
            'residual_pooling': False,
            'qkv_bias': False,
            'out_scales': [1],
            'pool_kernel': (5, 5),
            'patch_cfg': {'kernel_size': 4, 'stride': 4, 'padding': 'corner'},
        },
        [IMAGE, (3, 38, 53)],
    ),
    'mvit on clips': (CLIPS, {'out_scales': [0, 1]}, [CLIP, (3, 6, 38, 53)]),
    'mvit on clips, without a class token': (
        CLIPS,
        {
            'with_cls_token': False,
            'output_cls_token': False,
            'use_abs_pos_embed': True,
            'dim_mul_in_attention': False,
        },
        [CLIP],
    ),
    'mvit on clips, maps alone': (
        CLIPS,
        {
            'output_cls_token': False,
            'use_abs_pos_embed': True,
            'arch': mmaction_mvit.ARCH
            | {'downscale_indices': [1], 'dim_mul_indices': [2], 'num_layers': 4},
        },
        [CLIP, (3, 6, 38, 53)],
    ),
    'hieradet': (DET, {}, [IMAGE, (3, 48, 32)]),
    'hieradet, patches': (
        DET,
        {
            'patch_size': (4, 4),
            'num_classes': 0,
            'init_values': None,
            'global_att_blocks': (0,),
            'window_spec': (2, 4),
        },
        [IMAGE, (3, 38, 54)],
    ),
    'hieradet, no pooling of maps': (
        DET,
        {'global_pool': '', 'num_classes': 0, 'q_pool': 0},
        [IMAGE],
    ),
    'hiera': (HIERA, {}, [(3, 32, 48)]),
    'hiera, shortcuts without weights': (
        HIERA,
        {
            'use_expand_proj': False,
            'abs_win_pos_embed': True,
            'global_pos_size': (3, 3),
            'init_values': None,
            'global_pool': 'avgmax',
        },
        [(3, 32, 48)],
    ),
    'hiera, one pooling': (
        HIERA,
        {'q_pool': 1, 'num_classes': 0, 'global_pool': ''},
        [(3, 32, 48)],
    ),
    'hiera on clips': (
        HIERA,
        {
            'img_size': (4, 32, 32),
            'q_stride': (1, 2, 2),
            'mask_unit_size': (1, 4, 4),
            'patch_kernel': (3, 7, 7),
            'patch_stride': (2, 4, 4),
            'patch_padding': (1, 3, 3),
            'sep_pos_embed': True,
        },
        [CLIP],
    ),
}


def made(name: str, **more: Any) -> nn.Module:
    """A small one with drawn weights, in float64 and eval mode."""
    build, args, _ = OPTIONS[name]
    model = randomise_(build(**args | more)).double()
    model.eval()  # gives nothing back in OpenMMLab
    return model


def drawn(size: tuple[int, ...], batch: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, *size, generator=g, dtype=torch.float64)


@pytest.mark.parametrize('name', OPTIONS)
def test_options_agree_in_outputs_and_gradients(name: str) -> None:
    plain = made(name)
    ours = inject(copy.deepcopy(plain), Everything())
    for size in OPTIONS[name][2]:
        results, grads = [], []
        for model in (plain, ours):
            x = drawn(size).requires_grad_()
            model.zero_grad()
            ys = outputs(model, x)
            loss_of(ys).backward()
            results.append(ys)
            found = {n: p.grad for n, p in model.named_parameters()}
            grads.append(found | {'': x.grad})
        for y, z in zip(*results, strict=True):
            assert y.is_contiguous() == z.is_contiguous()
            torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-9)
        scale = max(g.abs().max() for g in grads[0].values() if g is not None)
        for key, grad in grads[0].items():
            assert (grad is None) == (grads[1][key] is None), key
            if grad is not None:
                assert (grads[1][key] - grad).abs().max() < 1e-9 * scale, key


@pytest.mark.parametrize('name', ['mvit', 'mvit on clips', 'hieradet', 'hiera'])
@torch.no_grad()
def test_stochastic_depth_is_that_of_upstream(name: str) -> None:
    plain = made(name, drop_path_rate=0.5)
    ours = inject(copy.deepcopy(plain), Everything())
    found = []
    for model in (plain, ours):
        model.train()
        torch.manual_seed(7)
        found.append(outputs(model, drawn(OPTIONS[name][2][0], 4)))
    for y, z in zip(*found, strict=True):
        torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-9)
    plain.eval()
    still = outputs(plain, drawn(OPTIONS[name][2][0], 4))
    assert (still[-1] - found[0][-1]).abs().max() > 1e-3


@pytest.mark.parametrize('name', OPTIONS)
@torch.no_grad()
def test_deltas_act_fold_and_go(name: str) -> None:
    plain, x = made(name), drawn(OPTIONS[name][2][0])
    targets = ['attn.qkv', 'attn.k', 'attn.proj', 'ffn.fc1', 'ffn.fc2']
    method = {'type': 'LoRA', 'rank': 2, 'targets': targets}
    model = inject(copy.deepcopy(plain), method)
    shake_(model)
    tuned = outputs(model, x)
    assert (tuned[0] - outputs(plain, x)[0]).abs().max() > 1e-4
    for a, b in zip(outputs(fold(copy.deepcopy(model)), x), tuned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    eject(model)
    for a, b in zip(outputs(model, x), outputs(plain, x), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_an_extra_token_passes_as_the_class_token_does() -> None:
    """One with the values of the class token stays its twin through every stage."""
    model = inject(made('mvit on clips'), {'type': 'VPTShallow', 'num_tokens': 1})
    model.eval()
    (prompt,) = (p for n, p in model.named_parameters() if 'petl' in n.split('.'))
    prompt.copy_(model.cls_token.view_as(prompt))
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, y: seen.append(y))
    model(drawn(CLIP))
    assert [y.shape[-1] for y in seen] == [32, 64, 64]
    for y in seen:
        torch.testing.assert_close(y[:, 0], y[:, 1], rtol=1e-9, atol=1e-9)
        assert (y[:, 0] - y[:, 2]).abs().max() > 1e-3


def same_intermediates(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    for args in (
        {},
        {'indices': [0]},
        {'indices': 1, 'stop_early': False, 'output_fmt': 'NHWC'},
        {'coarse': False, 'intermediates_only': True},
    ):
        found = model.forward_intermediates(x, **args)
        wanted = plain.forward_intermediates(x, **args)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    'name', ['hieradet', 'hieradet, patches', 'hiera', 'hiera, one pooling']
)
@torch.no_grad()
def test_interfaces_of_timm_are_those_of_upstream(name: str) -> None:
    plain = made(name)
    model = inject(copy.deepcopy(plain), 'VPTDeep')
    eject(model)
    inject(model, 'LoRA')
    x = drawn(OPTIONS[name][2][0])
    same_intermediates(model, plain, x)
    y = model.forward_features(x)
    torch.testing.assert_close(y, plain.forward_features(x), rtol=1e-9, atol=1e-9)
    for pre_logits in (False, True):
        torch.testing.assert_close(
            model.forward_head(y, pre_logits), plain.forward_head(y, pre_logits)
        )
    for args, said in (
        ({'norm': True}, 'leave norm=True out'),
        ({'output_fmt': 'NLC'}, 'NCHW or NHWC'),
    ):
        with pytest.raises(PETLError, match=said):
            model.forward_intermediates(x, **args)
    with pytest.raises(PETLError, match='prune before inject'):
        model.prune_intermediate_layers(1)


@torch.no_grad()
def test_masked_units_leave_as_in_upstream() -> None:
    plain = made('hiera')
    model = inject(copy.deepcopy(plain), 'LoRA')
    x, units = drawn((3, 32, 48)), 6
    mask = torch.zeros(2, units, dtype=torch.bool)
    mask[0, [0, 3, 4]] = mask[1, [1, 2, 5]] = True
    torch.testing.assert_close(model(x, mask), plain(x, mask), rtol=1e-9, atol=1e-9)
    found, wanted = (m.forward_features(x, mask, True) for m in (model, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['hieradet', 'hiera'])
def test_memory_is_saved_with_the_same_gradients(name: str) -> None:
    """Also with prompts, and where a block moves the grid."""
    grads, x = [], drawn(OPTIONS[name][2][0])
    for switch in (False, True):
        torch.manual_seed(3)
        model = inject(made(name), 'VPTDeep')
        shake_(model)
        model.set_grad_checkpointing(switch)
        loss_of(outputs(model, x)).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert grads[0]
    torch.testing.assert_close(grads[1], grads[0])


def test_another_head_trains() -> None:
    model = inject(made('hieradet'), 'LoRA')
    model.reset_classifier(7)
    assert model.head.fc.weight.requires_grad
    assert model(drawn(IMAGE).float().to(model.head.fc.weight.dtype)).shape == (2, 7)
    with pytest.raises(PETLError, match='change global_pool'):
        model.reset_classifier(7, 'max')


def test_features_only() -> None:
    net = timm.create_model(
        'sam2_hiera_tiny',
        features_only=True,
        embed_dim=32,
        stages=(1, 1, 1, 1),
        global_att_blocks=(0,),
    )
    net.eval()
    wanted = copy.deepcopy(net)
    inject(net.model, 'LoRA')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted(x))


@pytest.mark.parametrize(
    ('name', 'method', 'said'),
    [
        ('mvit', 'Convpass', r'blocks\.1:attn .*pools or widens .*blocks='),
        ('mvit', 'LST', r'blocks\.1:block .*32 to 64'),
        ('mvit', 'FacTTT', 'shares factors of one width within a stage'),
        ('mvit', 'BAPAT', 'blocks.1:attn.qkv maps 32 channels to 192'),
        ('mvit', 'VQT', 'maps leave, and a head outside'),
        (
            'mvit, widening behind',
            {'type': 'AdaptFormer', 'input': 'post_norm'},
            r'blocks\.0:ffn .*32 to 64',
        ),
        ('hieradet', 'HST', 'blocks widen from stage to stage'),
        ('hiera', 'Mona', 'unit by unit'),
        ('hiera', 'Convpass', 'unit by unit'),
    ],
    ids=str,
)
def test_what_a_trunk_cannot_serve_is_said(name: str, method: Any, said: str) -> None:
    plain = made(name)
    with pytest.raises(PETLError, match=said) as error:
        inject(plain, method)
    assert '\n' not in str(error.value)
    assert not any('petl' in n for n, _ in plain.named_parameters())


def test_blocks_that_do_not_pool_take_what_needs_one_shape() -> None:
    model = inject(made('mvit'), 'Convpass', blocks=[0, 2])
    shake_(model)
    with torch.no_grad():
        assert outputs(model, drawn(IMAGE))[0].isfinite().all()


@pytest.mark.parametrize(
    ('size', 'said'),
    [((3, 40, 32), 'positions repeat in windows'), ((3, 32, 56), 'positions repeat')],
    ids=str,
)
def test_maps_of_part_windows_are_refused(size: tuple[int, ...], said: str) -> None:
    model = inject(made('hieradet'), Nothing())
    with pytest.raises(PETLError, match=said):
        model(drawn(size))


def test_a_pooled_map_of_part_windows_is_refused() -> None:
    """Upstream puts such windows together to another number of images."""
    args = {'window_spec': (4, 3), 'stages': (1, 1, 1), 'q_pool': 2}
    args |= {'window_spec': (2, 4, 4), 'global_att_blocks': None}
    model = inject(randomise_(DET(**args)).double(), Nothing())
    with pytest.raises(PETLError, match='is pooled inside of them'):
        model(drawn((3, 40, 40)))


def test_roles() -> None:
    wanted = {
        'mvit': {
            'blocks.0.attn.pool_k.weight': ('mixer', 'weight', 'block'),
            'blocks.0.attn.norm_k.bias': ('inner_norm', 'bias', 'block'),
            'blocks.1.attn.rel_pos_h': ('position_bias', '', 'block'),
            'blocks.1.proj.weight': ('projection', 'weight', 'block'),
            'pos_embed': ('position', '', ''),
        },
        'mvit on clips': {'cls_token': ('token', '', '')},
        'hieradet': {
            'pos_embed_window': ('position', '', ''),
            'blocks.1.proj.bias': ('projection', 'bias', 'block'),
            'blocks.0.ls1.gamma': ('scale', '', 'block'),
            'head.fc.weight': ('head', 'weight', 'head'),
            'head.norm.weight': ('final_norm', 'weight', 'out'),
        },
    }
    for name, kinds in wanted.items():
        model = made(name)
        roles = {role.name: role for role in find_site_map(model).roles(model)}
        assert roles.keys() == dict(model.named_parameters()).keys()
        for key, kind in kinds.items():
            role = roles[key]
            assert (role.kind, role.part, role.place) == kind, key


SMALL = {'embed_dim': 32, 'num_heads': 2}
SHRUNK = {
    'hiera': SMALL | {'img_size': 64, 'stages': (1, 1, 1, 1)},
    'hieradet_sam2': SMALL | {'stages': (1, 1, 1, 1), 'global_att_blocks': (0,)},
}


ONE_EACH = {'hiera': 'hiera_small_abswin_256', 'hieradet_sam2': 'sam2_hiera_large'}


@pytest.mark.parametrize('module', ONE_EACH)
def test_a_builder_of_each_family_works(module: str) -> None:
    starts_and_learns(ONE_EACH[module], 64, **SHRUNK[module])


@pytest.mark.slow
@pytest.mark.parametrize(('module', 'count'), [('hiera', 8), ('hieradet_sam2', 5)])
def test_every_builder_works(module: str, count: int) -> None:
    names = timm.list_models(module=module)
    assert len(names) >= count  # timm 1.0.31 has as many
    for name in names:
        starts_and_learns(name, 64, **SHRUNK[module])
