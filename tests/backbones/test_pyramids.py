"""Pyramids: options against upstream, extra tokens, and life inside of a segmentor."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from tiny import loss_of, outputs, randomise_, record
from torch import nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Role,
    Site,
    base_changes,
    eject,
    inject,
    injection_of,
    load_delta,
    save_delta,
)


class Everything(Method):
    """Trains the whole base, so that gradients can be compared."""

    def selects(self, role: Role) -> bool:
        return True


SIZES = [(32, 32), (38, 53)]

# What is built, and the options that change the algebra.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    'mmseg_mit:build': [
        {},
        {'qkv_bias': False},
        {'sr_ratios': (1, 1), 'out_indices': (1,)},
        {'sr_ratios': (3, 2), 'with_cp': True},
        {
            'patch_sizes': (4, 2),
            'norm_cfg': {'type': 'LN'},
            'act_cfg': {'type': 'ReLU'},
        },
    ],
    'mmdet_pvt:build': [
        {},
        {'use_abs_pos_embed': False, 'qkv_bias': False},
        {'pretrain_img_size': 64, 'norm_after_stage': True, 'sr_ratios': (3, 1)},
        {'use_conv_ffn': True, 'patch_sizes': (5, 3), 'paddings': (2, 1)},
        {'out_indices': (0,)},
    ],
    'mmdet_pvt:build_v2': [{}],
    'timm_pvt_v2:build': [
        {},
        {'num_classes': 0, 'qkv_bias': False},
        {'linear': True},
        {'global_pool': '', 'num_classes': 0, 'sr_ratios': (1, 3)},
    ],
    'mmseg_twins:build': [
        {},
        {'norm_after_stage': False, 'qkv_bias': False, 'windiow_sizes': [2, 5]},
        {'depths': [3, 1], 'out_indices': (1, 2)},
    ],
    'mmseg_twins:build_pcpvt': [{}, {'norm_after_stage': True, 'sr_ratios': [1, 3]}],
    'mmpretrain_twins:build': [
        {},
        {'out_indices': (0, 1), 'qkv_bias': False, 'norm_after_stage': True},
    ],
    'mmpretrain_twins:build_pcpvt': [{}, {'norm_after_stage': True}],
    'mmseg_mscan:build': [
        {},
        {'act_cfg': {'type': 'ReLU'}, 'mlp_ratios': [3, 1]},
    ],
}
CASES = [
    pytest.param(name, args, id=f'{name}-{"-".join(args) or "plain"}')
    for name, options in OPTIONS.items()
    for args in options
]


def build(name: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in float64 and eval mode."""
    stem, _, maker = name.partition(':')
    model = getattr(importlib.import_module(f'trunks.{stem}'), maker)(**args)
    randomise_(model).double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def drawn(size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, *size, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(('name', 'args'), CASES)
def test_options_agree_in_outputs_and_gradients(
    name: str, args: dict[str, Any]
) -> None:
    plain = build(name, **args)
    ours = inject(copy.deepcopy(plain), Everything())
    assert isinstance(ours, type(plain))
    assert type(ours).__name__ == f'PETL{type(plain).__name__}'
    for size in [(64, 64), (70, 85)] if 'v2' in name else SIZES:
        grads = []
        results = []
        for model in (plain, ours):
            x = drawn(size).requires_grad_()
            model.zero_grad()
            results.append(model(x))
            loss_of(outputs(lambda _, y=results[-1]: y, x)).backward()
            params = dict(model.named_parameters())
            grads.append({n: p.grad for n, p in params.items()} | {'': x.grad})
        assert type(results[0]) is type(results[1])
        ys, zs = (outputs(lambda _, y=y: y, None) for y in results)
        for y, z in zip(ys, zs, strict=True):
            assert y.is_contiguous() == z.is_contiguous()
            torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-10)
        assert grads[0].keys() == grads[1].keys()
        for key, grad in grads[0].items():
            if grad is None:
                assert grads[1][key] is None, key
            else:
                torch.testing.assert_close(
                    grads[1][key], grad, rtol=1e-8, atol=1e-9, msg=key
                )


@pytest.mark.parametrize('name', OPTIONS)
def test_stochastic_depth_is_that_of_the_original(name: str) -> None:
    """Both of those that stand one inside the other in Twins; batch statistics too."""
    plain = build(name, drop_path_rate=0.5)
    ours = inject(copy.deepcopy(plain), Everything(), frozen_drop_path=True)
    results = []
    for model in (plain, ours):
        model.train()
        torch.manual_seed(5)
        results.append(outputs(model, drawn((64, 64) if 'v2' in name else (32, 32))))
    for y, z in zip(*results, strict=True):
        torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-9)
    plain.eval()
    still = outputs(plain, drawn((64, 64) if 'v2' in name else (32, 32)))
    assert not torch.allclose(still[-1], results[0][-1], atol=1e-3)


@pytest.mark.parametrize('name', OPTIONS)
def test_classes_come_back(name: str) -> None:
    model = build(name)
    before = {path: type(part) for path, part in model.named_modules()}
    inject(model, 'AdaptFormer')
    eject(model)
    assert {path: type(part) for path, part in model.named_modules()} == before


# ------------------------------------------------------------------------ extra tokens


def test_extra_tokens_cross_a_stage_as_the_middle_of_a_constant_map() -> None:
    model = inject(build('mmseg_mit:build'), 'VPTDeep')
    stages = model.pyramid()
    tokens = torch.randn(2, 3, 32, dtype=torch.float64)
    ctx = Context((5, 7), 3)
    ctx.num_extra = 3
    stream = torch.cat((tokens, torch.zeros(2, 35, 32, dtype=torch.float64)), dim=1)
    crossed = model.reduction(0, stages[1], stream, ctx)
    assert ctx.grid == (3, 4)
    assert crossed.shape == (2, 3 + 12, 64)
    for i in range(3):
        constant = tokens[:, i, :, None, None].expand(-1, -1, 5, 5)
        want = stages[1].conv(constant)[:, :, 1, 1]
        torch.testing.assert_close(crossed[:, i], want)


def test_extra_tokens_stand_in_front_of_the_reduced_keys() -> None:
    block = inject(build('mmseg_mit:build'), 'VPTDeep').layers[0][1][0]
    x = torch.randn(2, 2 + 48, 32, dtype=torch.float64)
    ctx = Context((6, 8), 2)
    keys = block.reduced(x, ctx)
    assert torch.equal(keys[:, :2], x[:, :2])
    maps = block.attn.sr(x[:, 2:].transpose(1, 2).unflatten(2, (6, 8)))
    want = block.attn.norm(maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(keys[:, 2:], want)


@pytest.mark.parametrize(
    'name', ['mmseg_mit:build', 'mmdet_pvt:build', 'timm_pvt_v2:build']
)
def test_a_prompt_that_repeats_no_key_moves_the_output(name: str) -> None:
    """Prompts reach every output, and none stands in the maps that leave."""
    plain = build(name)
    model = inject(copy.deepcopy(plain), {'type': 'VPTShallow', 'num_tokens': 3})
    model.eval()
    x = drawn((38, 53))
    for y, z in zip(outputs(model, x), outputs(plain, x), strict=True):
        assert y.shape == z.shape
        assert (y - z).abs().max() > 1e-6


def test_a_map_that_is_smaller_than_a_key_is_refused_in_one_line() -> None:
    model = inject(build('mmseg_mit:build', sr_ratios=(8, 4)), 'LoRA')
    with pytest.raises(PETLError, match='8 x 8 tokens that one key stands for'):
        model(drawn((24, 64)))


# ---------------------------------------------------------------------- sites and roles


def test_the_norm_of_a_stage_is_read_by_the_next() -> None:
    """What is done there reaches the stream, and what is done at ``out`` does not."""
    for kind, moves in (('out.norm', True), ('out', False)):
        plain = build('mmseg_mit:build')
        model = inject(copy.deepcopy(plain), Doubled(kind))
        x = drawn((32, 32))
        first, last = model(x)
        want, end = plain(x)
        torch.testing.assert_close(first, 2 * want)
        assert torch.allclose(last, end) is not moves


class DoubledDelta(Delta):
    """2 y at one stage."""

    def after(self, x: torch.Tensor, y: torch.Tensor, ctx: Context) -> torch.Tensor:
        return 2 * y


class Doubled(Method):
    """Doubles what leaves one kind of site of the first stage."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.targets = (kind,)

    def wants(self, site: Site) -> bool:
        return site.kind == self.kind and site.index == 0

    def build(self, site: Site) -> DoubledDelta:
        return DoubledDelta()


def test_roles_tell_maps_from_mixers_and_norms_in_the_stream() -> None:
    model = inject(build('mmseg_mit:build'), 'LoRA')
    site_map = injection_of(model)[1].site_map
    roles = {role.name: role for role in site_map.roles(model)}

    def facts(name: str) -> tuple:
        role = roles[name]
        return role.kind, role.part, role.place, role.stage

    block = 'layers.0.1.0'
    assert facts(f'{block}.attn.attn.in_proj_weight')[:2] == ('projection', 'weight')
    assert facts(f'{block}.attn.attn.in_proj_bias')[:2] == ('projection', 'bias')
    assert facts(f'{block}.attn.sr.weight')[:2] == ('mixer', 'weight')
    assert facts(f'{block}.attn.norm.weight')[0] == 'inner_norm'
    assert facts(f'{block}.ffn.layers.0.weight')[0] == 'projection'
    assert facts(f'{block}.ffn.layers.1.bias')[:2] == ('mixer', 'bias')
    assert facts('layers.0.2.weight') == ('norm', 'weight', 'merging', 0)
    assert facts('layers.1.0.projection.weight')[:3] == (
        'projection',
        'weight',
        'merging',
    )
    assert facts('layers.1.2.weight') == ('final_norm', 'weight', 'out', 1)


def test_partial_tuning_over_a_merging_trains_the_norm_in_front_of_it() -> None:
    model = build('mmseg_mit:build')
    inject(model, {'type': 'PartialK', 'num_blocks': 3})
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {'layers.0.2.weight', 'layers.1.0.projection.weight'} <= trains
    assert not any(n.startswith(('layers.0.0', 'layers.0.1.0')) for n in trains)
    model = inject(build('mmseg_mit:build'), {'type': 'PartialK', 'num_blocks': 2})
    assert not model.layers[0][2].weight.requires_grad


def test_masks_of_rows_leave_other_rows_alone() -> None:
    """Queries, keys and values are rows of one weight, each with its own mask."""
    model = inject(build('mmseg_mit:build'), {'type': 'GPS', 'mode': 'mask'})
    block = model.layers[0][1][0]
    with torch.no_grad():
        for place, kind in enumerate('qkv'):
            block.petl.get_submodule(f'attn_{kind}.0').index.fill_(5 * place + 1)
    model.train()
    loss_of(model(drawn((32, 32)))).backward()
    grad = block.attn.attn.in_proj_weight.grad
    for place, rows in enumerate(grad.chunk(3)):
        assert rows.abs().sum(0).nonzero().flatten().tolist() == [5 * place + 1]


@pytest.mark.parametrize(
    ('name', 'method', 'message'),
    [
        ('mmseg_mit:build', 'BAPAT', 'attn.qkv: keys and values come from a reduced'),
        ('mmseg_mit:build', 'HST', 'feature: blocks widen from stage to stage'),
        ('timm_pvt_v2:build', 'VQT', 'feature: blocks widen from stage to stage'),
        ('mmseg_mscan:build', 'Prefix', 'attn.core: its attention multiplies by'),
        ('mmseg_mscan:build', 'LST', 'attn.core: its attention multiplies by'),
        ('mmseg_mscan:build', 'VPTDeep', 'tokens: its attention is convolutions'),
    ],
)
def test_what_a_pyramid_does_not_offer_is_said_in_one_line(
    name: str, method: str, message: str
) -> None:
    with pytest.raises(PETLError, match=message) as error:
        inject(build(name), method)
    assert '\n' not in str(error.value)


def test_side_merging_of_other_steps_is_refused_at_once() -> None:
    model = build('mmdet_pvt:build', strides=(4, 1), patch_sizes=(4, 1))
    with pytest.raises(PETLError, match='stage 0 to the next in steps of 1 x 1'):
        inject(model, {'type': 'LST', 'reduction': 8})


def test_attention_on_reduced_keys_is_not_drawn_on_cells() -> None:
    from mmpetl.analysis.attention import watch_attention

    model = inject(build('mmseg_mit:build'), 'LoRA')
    model.eval()
    with pytest.raises(PETLError, match='block 0 pools its queries, or makes keys'):
        with watch_attention(model):
            model(drawn((32, 32)))
    with watch_attention(model, [2, 3]) as seen:
        model(drawn((32, 32)))
    assert [record.block for record in seen] == [2, 3]
    assert all(record.mismatch < 1e-9 for record in seen)


def test_windows_of_twins_are_seen_as_they_are() -> None:
    from mmpetl.analysis.attention import watch_attention

    model = inject(build('mmseg_twins:build'), 'LoRA')
    model.eval()
    with watch_attention(model, [0]) as seen:
        model(drawn((38, 53)))
    assert seen[0].window == (3, 3)
    assert seen[0].mismatch < 1e-9


# ----------------------------------------------------------------------- timm and mmseg


@pytest.mark.parametrize('stop', [False, True])
def test_intermediates_of_timm_are_those_of_the_original(stop: bool) -> None:
    plain = build(
        'timm_pvt_v2:build',
        depths=(1, 1, 1),
        embed_dims=(16, 16, 32),
        num_heads=2,
        sr_ratios=2,
        mlp_ratios=2.0,
    )
    model = inject(copy.deepcopy(plain), 'LoRA')
    model.eval()
    x = drawn((38, 53))
    for indices in (None, 1, [0, 1]):
        args = {'indices': indices, 'stop_early': stop}
        last, found = model.forward_intermediates(x, **args)
        want, maps = plain.forward_intermediates(x, **args)
        torch.testing.assert_close(last, want)
        torch.testing.assert_close(found, maps)
        only = model.forward_intermediates(x, intermediates_only=True, **args)
        torch.testing.assert_close(only, maps)
    torch.testing.assert_close(model.forward_features(x), plain.forward_features(x))
    with pytest.raises(PETLError, match='prune before inject'):
        model.prune_intermediate_layers(1)
    model.reset_classifier(7)
    assert model.head.weight.requires_grad
    assert record(model).head == {'head.weight', 'head.bias'}
    assert base_changes(model) == []


def test_checkpointing_of_timm_is_respected() -> None:
    grads = []
    for on in (False, True):
        model = inject(build('timm_pvt_v2:build'), Everything())
        model.set_grad_checkpointing(on)
        loss_of([model(drawn((32, 32)))]).backward()
        assert all(b.with_cp is on for stage in model.stages for b in stage.blocks)
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


SEGFORMER = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
SEGNEXT = 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'
MIT = {'embed_dims': 8, 'num_layers': [1, 1, 1, 1], 'num_heads': [1, 1, 2, 2]}
MSCAN = {'embed_dims': [8, 8, 16, 16], 'depths': [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ('config', 'small', 'channels', 'method'),
    [
        (SEGFORMER, MIT, [8, 8, 16, 16], {'type': 'LoRA', 'rank': 2}),
        (SEGFORMER, MIT, [8, 8, 16, 16], 'LNTune'),
        (SEGNEXT, MSCAN, [8, 16, 16], {'type': 'AdaptFormer', 'hidden_dims': 4}),
        # Its batch norms train, and their statistics travel too.
        (SEGNEXT, MSCAN, [8, 16, 16], 'Full'),
    ],
)
def test_a_segmentor_of_upstream_takes_a_step_and_its_delta_travels(
    config: str, small: dict, channels: list[int], method: Any, tmp_path: Any
) -> None:
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import OptimWrapper
    from mmengine.registry import DefaultScope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from mmpetl.config.load import read_config

    model_cfg = read_config(config).model
    model_cfg.backbone.update(small, init_cfg=None)
    model_cfg.decode_head.update(
        in_channels=channels, channels=16, num_classes=4, dropout_ratio=0.0
    )
    if 'ham_channels' in model_cfg.decode_head:
        model_cfg.decode_head.ham_channels = 16
        model_cfg.decode_head.norm_cfg.num_groups = 4
    model_cfg.data_preprocessor.size = (64, 64)

    def made() -> nn.Module:
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(copy.deepcopy(model_cfg))
        model = revert_sync_batchnorm(model)
        randomise_(model)
        inject(model.backbone, method)
        return model

    model = made()
    sample = SegDataSample(metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64)})
    sample.gt_sem_seg = PixelData(data=torch.arange(64 * 64).view(1, 64, 64) % 4)
    data = {'inputs': [torch.randint(0, 255, (3, 64, 64))] * 2}
    data['data_samples'] = [sample] * 2
    model.train()
    start = {n: p.clone() for n, p in model.backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    wrapper = OptimWrapper(optimizer)
    model.train_step(data, wrapper)
    moved = {n for n, p in model.backbone.named_parameters() if (p != start[n]).any()}
    trains = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert moved
    assert moved <= trains
    model.eval()
    path = save_delta(model, tmp_path / 'delta')
    twin = load_delta(made(), path)
    twin.eval()
    x = torch.randn(1, 3, 64, 64)
    for y, z in zip(model.backbone(x), twin.backbone(x), strict=True):
        assert torch.equal(y, z)
