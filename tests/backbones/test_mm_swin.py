"""SwinTransformer of mmdet and mmseg: options, and life inside of their models."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import upstream
from mmengine.dataset import pseudo_collate
from tiny import Everything, Nothing, loss_of, randomise_
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Owner, PETLError, eject, inject, owners

PACKAGES = ('mmdet', 'mmseg')
OPTIONS: list[dict[str, Any]] = [
    {'patch_norm': False},
    {'qkv_bias': False},
    {'qk_scale': 0.3},
    {'window_size': 2},
    {'window_size': 5},
    {'in_channels': 5, 'embed_dims': 8},
    {'depths': (1, 2, 1), 'num_heads': (1, 2, 4), 'strides': (4, 2, 2)},
    {'use_abs_pos_embed': True},
    {'with_cp': True},
    {'out_indices': (1,)},
    {'out_indices': (0,)},
    {'act_cfg': {'type': 'ReLU'}, 'mlp_ratio': 2},
    {'patch_size': 2, 'strides': (2, 2)},
]


def build(package: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    made = randomise_(importlib.import_module(f'trunks.{package}_swin').build(**args))
    made.eval()
    return made


@pytest.mark.parametrize('args', OPTIONS, ids=str)
@pytest.mark.parametrize('package', PACKAGES)
def test_options_agree_in_outputs_and_gradients(
    package: str, args: dict[str, Any]
) -> None:
    plain = build(package, **args).double()
    plain.train()  # returns nothing upstream
    ours = inject(copy.deepcopy(plain), 'Full')
    size = (32, 32) if 'use_abs_pos_embed' in args else (30, 45)
    channels = args.get('in_channels', 3)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    theirs, got = plain(x), ours(x)
    assert type(theirs) is type(got) is list
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-10)
    for outputs in (theirs, got):
        loss_of(outputs).backward()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
        else:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('package', PACKAGES)
@torch.no_grad()
def test_maps_and_batches_of_any_size_agree(package: str) -> None:
    """Smaller than a window in one axis and in both, odd, one window, many."""
    plain = build(package)
    ours = inject(copy.deepcopy(plain), Nothing())
    for size in ((1, 32, 32), (3, 38, 53), (2, 12, 40), (5, 9, 11), (1, 3, 2)):
        x = torch.randn(size[0], 3, *size[1:])
        for a, b in zip(ours(x), plain(x), strict=True):
            assert a.is_contiguous()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('package', PACKAGES)
@torch.no_grad()
def test_stochastic_depth_and_dropout_of_positions_are_upstreams(package: str) -> None:
    """The numbers are drawn in upstream's order; a frozen trunk draws none."""
    plain = build(package, drop_path_rate=0.5)
    x = torch.randn(4, 3, 32, 32)
    still = plain(x)
    plain.train()
    acts = inject(copy.deepcopy(plain), Nothing(), frozen_drop_path=True)
    whole = inject(copy.deepcopy(plain), Everything())
    asleep = inject(copy.deepcopy(plain), Nothing())
    found = []
    for model in (plain, acts, whole, asleep):
        model.train()
        torch.manual_seed(6)
        found.append(model(x))
    for same in found[1:3]:
        torch.testing.assert_close(same, found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], still, rtol=1e-4, atol=1e-5)
    assert (found[0][-1] - still[-1]).abs().max() > 0.01


@pytest.mark.parametrize('package', PACKAGES)
def test_dropout_stands_where_upstream_has_it(package: str) -> None:
    """Equal means and variances over many draws, which no two orders share."""
    plain = build(package, drop_rate=0.3, attn_drop_rate=0.3)
    model = inject(copy.deepcopy(plain), Everything())
    x = torch.randn(1, 3, 32, 32).expand(256, -1, -1, -1)
    with torch.no_grad():
        means = []
        for one in (plain, model):
            one.train()
            torch.manual_seed(2)
            means.append([(y.mean(0), y.var(0)) for y in one(x)])
    for (a, v), (b, w) in zip(*means, strict=True):
        # Of 256 draws each mean strays by sqrt(var / 256), their difference by more.
        assert ((a - b).square() / ((v + w) / 256)).mean() < 1.3
        assert 0.8 < (v.mean() / w.mean()) < 1.25


@pytest.mark.parametrize('stage', [0, 1, 2])
@pytest.mark.parametrize('package', PACKAGES)
def test_what_upstream_freezes_in_train_is_never_trained(
    package: str, stage: int
) -> None:
    """Its constructor leaves all flags set; the injection may come before ``train``."""
    args = {'frozen_stages': stage, 'use_abs_pos_embed': True, 'drop_rate': 0.1}
    own = build(package, **args)
    model = inject(build(package, **args), 'Full')
    tuned = inject(build(package, **args), 'LoRA')
    own.train()
    theirs = {n for n, p in own.named_parameters() if p.requires_grad}
    assert theirs < {n for n, _ in own.named_parameters()}
    for _ in range(2):
        model.train()
        tuned.train()
        ours = {n for n, p in model.named_parameters() if p.requires_grad}
        assert ours == theirs
        assert all(
            p.requires_grad is ('petl' in n.split('.'))
            for n, p in tuned.named_parameters()
        )
    for name, part in own.named_modules():
        if not part.training:
            assert not model.get_submodule(name).training, name
    model(torch.randn(1, 3, 32, 32))
    eject(tuned)
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == theirs


@pytest.mark.parametrize('package', PACKAGES)
def test_a_position_table_of_another_size_is_refused_in_one_line(package: str) -> None:
    model = inject(build(package, use_abs_pos_embed=True), Nothing())
    with pytest.raises(PETLError, match='set pretrain_img_size to the size'):
        model(torch.randn(1, 3, 48, 32))


@pytest.mark.parametrize('package', PACKAGES)
def test_strides_that_are_no_merging_by_two_are_refused(package: str) -> None:
    model = build(package, strides=(4, 1))
    with pytest.raises(PETLError, match='strides of the backbone'):
        inject(model, 'LoRA')


@pytest.mark.parametrize('package', PACKAGES)
def test_classes_keep_their_names_and_come_back(package: str) -> None:
    model = build(package)
    before = {name: type(part) for name, part in model.named_modules()}
    inject(model, 'LoRA')
    assert type(model).__name__ == 'PETLSwinTransformer'
    eject(model)
    assert {n: type(m) for n, m in model.named_modules()} == before


def losses_of(model: nn.Module, kind: str) -> Tensor:
    """The loss of two drawn samples, by way of the model's own preprocessor."""
    samples = upstream.DrawnData(kind)
    drawn = pseudo_collate([samples[0], samples[1]])
    drawn = model.data_preprocessor(drawn, training=True)
    torch.manual_seed(4)
    found = model.loss(drawn['inputs'], drawn['data_samples'])
    return model.parse_losses(found)[0]


@pytest.mark.parametrize('name', ['mask_rcnn', 'mmseg'])
def test_inside_of_a_model_of_upstream_it_trains_and_its_delta_loads(
    name: str, tmp_path
) -> None:
    """Mask R-CNN and UPerNet, from the configs that upstream ships."""
    with upstream.quick():
        plain = upstream.build(upstream.plain(name, tmp_path))
    randomise_(plain.backbone)
    model, other = copy.deepcopy(plain), copy.deepcopy(plain)
    inject(model.backbone, 'LoRA')
    plain.backbone.eval()  # without stochastic depth, as a frozen one
    for one in (plain, model):
        for part in one.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.Dropout2d):
                part.eval()
    kind = upstream.SHRUNK[name].data
    loss = losses_of(model, kind)
    torch.testing.assert_close(loss, losses_of(plain, kind), rtol=1e-4, atol=1e-5)

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # `A` of a LoRA has no gradient while its `B` is zero
        optimizer.zero_grad()
        losses_of(model, kind).backward()
        optimizer.step()
    who = owners(model)
    for key, param in model.named_parameters():
        if who[key] is Owner.BASE:
            assert torch.equal(param, before[key]), key
        elif who[key] is Owner.DELTA:
            assert not torch.equal(param, before[key]), key
    assert {Owner.BASE, Owner.DELTA, Owner.HEAD} == set(who.values())

    file = mmpetl.save_delta(model, tmp_path / 'delta')
    inject(other.backbone, 'LoRA')
    mmpetl.load_delta(other, file)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one in (plain, model, other):
            one.eval()
        for a, b in zip(other.backbone(x), model.backbone(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert (model.backbone(x)[-1] - plain.backbone(x)[-1]).abs().max() > 1e-6


@pytest.mark.parametrize('grid', [(4, 6), (5, 7)])
@pytest.mark.parametrize('package', PACKAGES)
def test_patch_merging_cuts_as_upstream_and_hands_on_tokens(package, grid):
    """Its gradient lies as tokens do, where that of ``nn.Unfold`` lies as a map."""
    model = inject(build(package), Nothing())
    merge = model.stages[0].downsample
    count = grid[0] * grid[1]
    x = torch.randn(1, count, merge.norm.normalized_shape[0] // 4, requires_grad=True)
    cut, after = model.gather(merge, x, grid)
    maps = x.transpose(1, 2).unflatten(2, grid)
    want = merge.sampler(merge.adap_padding(maps)).transpose(1, 2)
    assert torch.equal(cut, want)
    assert after == (-(-grid[0] // 2), -(-grid[1] // 2))
    (grad,) = torch.autograd.grad(cut, x, torch.randn_like(cut))
    assert grad.stride()[-2:] == (x.shape[-1], 1)
