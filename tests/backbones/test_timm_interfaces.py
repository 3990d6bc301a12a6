"""timm's own interfaces after injection: intermediates, sizes, heads, pruning."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.models._features import FeatureGetterNet
from tiny import Nothing, loss_of, randomise_, shake_
from tiny_builds import TIMM
from torch import Tensor, nn

from mmpetl.core import PETLError, base_changes, eject, fold, inject

IMAGES = (2, 3, 32, 32)
EXACT_SSF = {'type': 'SSF', 'exact_identity': True}


def flat(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in their order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts for tensor in flat(part)]


def pair(method: Any, **args: Any) -> tuple[nn.Module, nn.Module]:
    """A plain ViT of three blocks and its injected copy, in eval mode."""
    plain = randomise_(tiny.timm_vit(**{'depth': 3, 'reg_tokens': 2} | args)).eval()
    return plain, inject(copy.deepcopy(plain), method)


def same(found: Any, wanted: Any) -> None:
    found_, wanted_ = flat(found), flat(wanted)
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
    assert [t.shape for t in found_] == [t.shape for t in wanted_]
    for a, b in zip(found_, wanted_, strict=True):
        assert (a - b).abs().max() < 1e-5 * (1 + b.abs().max())
        assert a.is_contiguous() == b.is_contiguous()


OPTIONS = [
    dict(zip(('norm', 'return_prefix_tokens', 'stop_early'), flags, strict=True))
    for flags in itertools.product([False, True], repeat=3)
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@torch.no_grad()
def test_intermediates_are_those_of_upstream(options: dict[str, bool]) -> None:
    x = torch.randn(*IMAGES)
    for args in ({}, {'class_token': False, 'reg_tokens': 0, 'global_pool': 'avg'}):
        plain, model = pair('LoRA', **args)
        for indices, fmt, only, as_dict in itertools.product(
            (None, 2, [0, -2]), ('NCHW', 'NLC'), (False, True), (False, True)
        ):
            more = options | {
                'indices': indices,
                'output_fmt': fmt,
                'intermediates_only': only,
                'output_dict': as_dict,
            }
            same(
                model.forward_intermediates(x, **more),
                plain.forward_intermediates(x, **more),
            )


@torch.no_grad()
def test_sizes_that_vary_and_pad() -> None:
    plain, model = pair('LoRA', dynamic_img_size=True, dynamic_img_pad=True)
    x = torch.randn(2, 3, 37, 50)
    same(model.forward_intermediates(x), plain.forward_intermediates(x))
    assert model.forward_intermediates(x, intermediates_only=True)[0].shape[2:] == (
        5,
        7,
    )


@torch.no_grad()
def test_layers_as_dino_asks_for_them() -> None:
    x = torch.randn(*IMAGES)
    plain, model = pair('LoRA')
    for n, reshape, prefix, norm in itertools.product(
        (2, [0, 2]), (False, True), (False, True), (False, True)
    ):
        args = {'reshape': reshape, 'return_prefix_tokens': prefix, 'norm': norm}
        same(
            model.get_intermediate_layers(x, n, **args),
            plain.get_intermediate_layers(x, n, **args),
        )


@pytest.mark.parametrize('stop_early', [False, True])
def test_gradients_of_intermediates_are_those_of_upstream(stop_early: bool) -> None:
    plain, model = pair('LoRA')
    grads = []
    for m in (plain.double(), model.double()):
        x = torch.ones(*IMAGES).double().requires_grad_()
        found = m.forward_intermediates(x, [0, 1], norm=True, stop_early=stop_early)
        loss_of(flat(found)).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_deltas_act_on_intermediates_and_learn(checkpointing: bool) -> None:
    x = torch.randn(*IMAGES)
    plain, model = pair('LoRA')
    model.set_grad_checkpointing(checkpointing)
    shake_(model)
    found = model.forward_intermediates(x, intermediates_only=True)
    with torch.no_grad():
        for a, b in zip(found, plain.forward_intermediates(x)[1], strict=True):
            assert (a - b).abs().max() > 1e-3
    loss_of(found).backward()
    learns = [p for p in model.parameters() if p.requires_grad]
    assert learns
    head = {id(p) for p in model.head.parameters()}
    assert all(p.grad is not None for p in learns if id(p) not in head)


@torch.no_grad()
def test_a_fold_gives_the_same_intermediates() -> None:
    x = torch.randn(*IMAGES, dtype=torch.double)
    model = inject(randomise_(tiny.timm_vit(depth=3)).double().eval(), 'SSF')
    shake_(model)
    tuned = model.forward_intermediates(x, norm=True)
    for a, b in zip(
        flat(fold(model).forward_intermediates(x, norm=True)), flat(tuned), strict=True
    ):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_extra_tokens_do_not_leave() -> None:
    x = torch.randn(*IMAGES)
    plain, model = pair('VPTDeep')
    for norm, prefix in itertools.product((False, True), repeat=2):
        args = {'norm': norm, 'return_prefix_tokens': prefix}
        found = flat(model.forward_intermediates(x, **args))
        wanted = flat(plain.forward_intermediates(x, **args))
        assert [t.shape for t in found] == [t.shape for t in wanted]
        assert all(
            (a - b).abs().max() > 1e-4 for a, b in zip(found, wanted, strict=True)
        )
    last = model.forward_intermediates(x, 1, norm=True, output_fmt='NLC')
    assert torch.equal(last[1][0], last[0][:, 3:])


@torch.no_grad()
def test_the_last_block_gives_what_a_side_network_makes() -> None:
    x = torch.randn(*IMAGES)
    plain, model = pair({'type': 'LST', 'reduction': 2})
    final, found = model.forward_intermediates(x, norm=True, output_fmt='NLC')
    same(found[:2], plain.forward_intermediates(x, norm=True, output_fmt='NLC')[1][:2])
    assert torch.equal(found[-1], final[:, 3:])
    assert torch.equal(final, model.forward_features(x))


@pytest.mark.parametrize('norm', [False, True])
def test_features_only(norm: bool) -> None:
    more = TIMM | {'features_only': True, 'out_indices': (0, 1)}
    more['feature_cls'] = partial(FeatureGetterNet, norm=norm)
    net = randomise_(timm.create_model('vit_tiny_patch16_224', **more)).eval()
    assert net.norm is norm
    wanted = copy.deepcopy(net)
    with pytest.raises(PETLError, match=r'inject into model\.model \(timm\.Vision'):
        inject(net, 'LoRA')
    inject(net.model, 'LoRA')
    x = torch.randn(*IMAGES)
    same(net(x), wanted(x))
    shake_(net)
    loss_of(net(x)).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    eject(net.model)
    same(net(x), wanted(x))


def test_features_only_inside_of_mmpretrain() -> None:
    net = tiny.mmpretrain_timm(features_only=True, out_indices=(0, 1))
    wanted = copy.deepcopy(net)
    inject(net, 'LoRA')
    assert type(net.timm_model.model).__name__ == 'PETLVisionTransformer'
    x = torch.randn(*IMAGES)
    same(net(x), wanted(x))


@pytest.mark.parametrize('args', [{'attn_mask': torch.zeros(19, 19)}, {'is_causal': 1}])
def test_masks_are_refused_everywhere(args: dict[str, Any]) -> None:
    _, model = pair('LoRA')
    x = torch.randn(*IMAGES)
    calls = [model, model.forward_features, model.forward_intermediates]
    if 'attn_mask' in args:
        calls.append(model.get_intermediate_layers)
    for call in calls:
        with pytest.raises(PETLError, match='takes no attn_mask and no is_causal'):
            call(x, **args)


@torch.no_grad()
def test_pruning_comes_before_injection() -> None:
    plain, model = pair('LoRA')
    with pytest.raises(PETLError, match='prune before inject'):
        model.prune_intermediate_layers(1)
    x = torch.randn(*IMAGES)
    same(model(x), plain(x))


@pytest.mark.parametrize('method', [EXACT_SSF, 'GPS', 'Nothing'], ids=str)
@pytest.mark.parametrize('size', [(37, 50), (32, 32), (41, 8)], ids=str)
def test_padded_images_meet_the_patch_projection(method: Any, size: Any) -> None:
    args = {'dynamic_img_size': True, 'dynamic_img_pad': True}
    plain, model = pair(Nothing() if method == 'Nothing' else method, **args)
    x = torch.randn(2, 3, *size)
    grads = []
    for m in (plain, model):
        y = m(x.requires_grad_())
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    same(model(x), plain(x))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    if method == 'GPS':
        shake_(model)
        with torch.no_grad():
            tuned = model(x)
            same(fold(model)(x), tuned)


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ({}, r'takes images of \(32, 32\), got \(40, 32\)'),
        ({'dynamic_img_size': True, 'patch_size': 16}, r'do not divide images'),
    ],
    ids=str,
)
def test_images_of_another_size_are_refused(args: dict[str, Any], said: str) -> None:
    for method in ('LoRA', 'SSF'):
        _, model = pair(method, **args)
        with pytest.raises(PETLError, match=said):
            model(torch.randn(1, 3, 40, 32))


def test_another_input_size_is_the_base_from_then_on() -> None:
    plain, model = pair('LoRA')
    x = torch.randn(2, 3, 48, 40)
    for m in (plain, model):
        m.set_input_size((48, 40))
    with torch.no_grad():
        same(model(x), plain(x))
    model.train()
    assert not model.pos_embed.requires_grad
    assert base_changes(model) == []
    model(x).sum().backward()
    assert model.pos_embed.grad is None
    with torch.no_grad():
        model.pos_embed.add_(1)
    assert base_changes(model) == ['pos_embed']
    with pytest.raises(PETLError, match='overwritten'):
        model.train()
    with torch.no_grad():
        model.pos_embed.copy_(plain.pos_embed)
    eject(model)
    assert model.pos_embed.requires_grad
    with torch.no_grad():
        same(model(x), plain(x))


def test_a_table_that_a_slot_trains_keeps_its_size() -> None:
    _, model = pair('Full')
    model.set_input_size((32, 32))
    with pytest.raises(PETLError, match="slot '0' trains pos_embed"):
        model.set_input_size((48, 48))
    assert model.pos_embed.shape[1] == 16 + 3


def test_patches_keep_their_size() -> None:
    _, model = pair('GPS')
    model.set_input_size((48, 48), patch_size=8)
    with pytest.raises(PETLError, match='patch_size before inject'):
        model.set_input_size((48, 48), patch_size=16)


def test_another_head_trains_and_the_pooling_stays() -> None:
    plain, model = pair('LoRA', num_classes=0)
    model.reset_classifier(7)
    x = torch.randn(*IMAGES)
    with torch.no_grad():
        features = plain(x)
        torch.testing.assert_close(model(x), model.head(features))
    counts = tiny.count_trainable(model)
    assert counts.head == 7 * 32 + 7
    assert base_changes(model) == []
    model.train()
    eject(model)
    assert model.head.weight.requires_grad
    _, model = pair('LoRA')
    with pytest.raises(PETLError, match='change global_pool before inject'):
        model.reset_classifier(7, 'avg')


@torch.no_grad()
def test_features_and_head_apart() -> None:
    x = torch.randn(*IMAGES)
    plain, model = pair(EXACT_SSF, global_pool='avg')
    shake_(model)
    parts = model.forward_head(model.forward_features(x))
    same(parts, model(x))
    pre = model.forward_head(model.forward_features(x), pre_logits=True)
    same(model.head(pre), model(x))
    _, model = pair('VQT', num_classes=0)
    tokens = model.forward_features(x)
    with pytest.raises(PETLError, match='call the model as a whole'):
        model.forward_head(tokens)


@pytest.mark.parametrize(
    'trunk',
    [
        'timm_beit',
        'timm_convnext',
        'timm_deit',
        'timm_eva',
        'timm_hiera',
        'timm_hieradet',
        'timm_pvt_v2',
        'timm_sam',
        'timm_swin',
        'timm_vit',
    ],
)
@torch.no_grad()
def test_dropout_in_front_of_a_head_trains_with_it(trunk: str) -> None:
    """Also where a frozen norm stands beside it; without a head it is the trunk's."""
    entry = tiny.TINY[trunk]
    x = torch.randn(8, *entry.shape, dtype=torch.float64)
    for count in (5, 0):
        plain = entry.build(drop_rate=0.5, num_classes=count)
        randomise_(plain).double().eval()
        model = inject(copy.deepcopy(plain), 'LoRA').train()
        still = plain(x)
        head = getattr(plain, 'head_drop', None) or plain.head.drop
        head.training = bool(count)
        found = []
        for m in (model, plain):
            torch.manual_seed(4)
            found.append(m(x))
        torch.testing.assert_close(*found)
        assert torch.allclose(found[0], still) is not bool(count)
        assert not any(part.training for part in model.eval().modules())
