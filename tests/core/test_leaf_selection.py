"""Methods that only select, on models that no file describes; statistics and modes."""

from __future__ import annotations

import copy

import pytest
import torch
from leafy import Plain, make, vit
from tiny import Nothing, base, images, outputs, shake_
from torch import nn

from mmpetl.core import (
    Counts,
    LeafMap,
    PETLError,
    base_changes,
    build_method,
    count_trainable,
    delta_state,
    disable,
    eject,
    enable,
    frozen_keys,
    inject,
    injection_of,
    load_base,
    load_delta,
    load_delta_state,
    save_delta,
)
from mmpetl.methods.lora import LoRA

SELECTING = ('BitFit', 'Full', 'LNTune', 'LinearProbe', 'PartialK')


def roles(model: nn.Module) -> dict:
    return {role.name: role for role in LeafMap(model).roles(model)}


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def upstream_resnet(**args) -> nn.Module:
    from mmdet.models.backbones import ResNet

    return ResNet(depth=18, base_channels=4, stem_channels=4, **args)


@pytest.mark.parametrize('method', SELECTING)
def test_detectors_resnet_takes_what_only_selects(method) -> None:
    """mmdet's own backbone, which no file describes, as it comes."""
    model = upstream_resnet(frozen_stages=-1, norm_eval=False)
    model.eval()
    x = torch.randn(1, 3, 32, 32)
    before = [y.clone() for y in model(x)]
    inject(model, method)
    total = sum(p.numel() for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    scales = sum(norm.num_features for norm in norms)
    expected = {
        'BitFit': scales,  # its convolutions have no bias
        'Full': total,
        'LNTune': 2 * scales,
        'LinearProbe': 0,
        'PartialK': sum(p.numel() for p in model.layer4[1].parameters()),
    }[method]
    assert count_trainable(model) == Counts(selected=expected, base=total - expected)
    for y, z in zip(model(x), before, strict=True):
        torch.testing.assert_close(y, z)


def test_what_a_resnets_parameters_are() -> None:
    model, _ = make('resnet')
    found = roles(model)
    assert found['conv1.0.weight'].kind == 'projection'
    assert (found['bn1.weight'].kind, found['bn1.weight'].norm) == ('norm', 'batch')
    assert found['bn1.bias'].part == 'bias'
    assert found['fc.weight'].kind == 'head'
    blocks = {r.block: r.stage for r in roles(upstream_resnet()).values()}
    assert blocks == {None: None, **{i: i // 2 for i in range(8)}}


def test_what_a_transformers_parameters_are() -> None:
    """The guesses agree with the description of the same class."""
    from mmpetl.core import find_site_map

    model = vit(reg_tokens=1, init_values=0.1, qk_norm=True)
    told = {role.name: role for role in find_site_map(model).roles(model)}
    guessed = roles(model)
    assert guessed.keys() == told.keys()
    for name, role in told.items():
        ours = guessed[name]
        assert (ours.part, ours.block, ours.is_norm) == (
            role.part,
            role.block,
            role.is_norm,
        ), name
        if not role.is_norm:
            assert ours.kind == role.kind, name
    assert guessed['norm.weight'].kind == 'final_norm'


def test_what_an_encoders_parameters_are() -> None:
    model, _ = make('encoder')
    found = roles(model)
    prefix = 'encoder.layers.1.self_attn'
    assert found[f'{prefix}.in_proj_bias'].part == 'bias'
    assert found[f'{prefix}.in_proj_weight'].part == 'weight'
    assert {r.kind for r in found.values()} == {'projection', 'norm'}


def test_partial_k_counts_blocks_of_equal_modules() -> None:
    model, _ = make('convnext')
    inject(model, 'PartialK', layers='*')
    names = trained(model) - {'inner.head.fc.weight', 'inner.head.fc.bias'}
    assert {n.rpartition('.blocks.')[0] or n.rpartition('.')[0] for n in names} == {
        'inner.stages.3',
        'inner.head.norm',
    }
    plain = Plain()
    with pytest.raises(PETLError, match='PartialK counts blocks, and this model'):
        inject(plain, 'PartialK')


def test_layers_and_blocks_narrow_what_is_selected() -> None:
    model, _ = make('convnext')
    inject(model, 'BitFit', layers='*.mlp.fc1', blocks=[0, -1])
    names = trained(model) - {'inner.head.fc.weight', 'inner.head.fc.bias'}
    blocks = ('stages.0.blocks.0', 'stages.3.blocks.1')
    assert names == {f'inner.{block}.mlp.fc1.bias' for block in blocks}
    eject(model)
    with pytest.raises(PETLError, match=r"no layer of leafy.Wrapped matches '\*.fc3'"):
        inject(model, 'BitFit', layers='*.fc3')


def test_a_method_that_finds_nothing_says_so() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4, bias=False)))
    for method in ('BitFit', 'LNTune'):
        with pytest.raises(PETLError, match=f'{method} finds nothing to train in'):
            inject(model, method)


def test_norms_are_chosen_by_their_family() -> None:
    model, _ = make('plain')
    inject(model, {'type': 'LNTune', 'norms': ['layer', 'group']})
    names = {n.rpartition('.')[0] for n in trained(model)}
    assert names == {'gn', 'ln', 'head'}
    eject(model)
    with pytest.raises(PETLError, match="knows no norm 'bath'. Did you mean 'batch'"):
        build_method({'type': 'LNTune', 'norms': ['bath']})
    described = inject(base('timm_vit'), {'type': 'LNTune', 'norms': 'batch'})
    assert count_trainable(described).selected == 0


def test_diff_fit_says_that_it_adds_no_scales() -> None:
    model, _ = make('plain')
    with pytest.warns(UserWarning, match='adds no scales'):
        inject(model, 'DiffFit')
    assert count_trainable(model).delta == 0
    with pytest.raises(PETLError, match='first_blocks of DiffFit counts blocks'):
        inject(model, {'type': 'DiffFit', 'first_blocks': 1}, slot='again')


def test_heads_are_found_and_may_be_named() -> None:
    model, _ = make('plain')
    assert LeafMap(model).head == ('head',)
    inject(model, LoRA(rank=2), head=['linear'])
    assert count_trainable(model).head == 16 * 16 + 16 + 16 * 5 + 5
    hosts = {s.host for s in injection_of(model)[1].slots['0'].sites}
    assert 'linear' not in hosts
    assert LeafMap(make('resnet')[0]).head == ('fc',)


# -------------------------------------------------------------------- statistics


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {
        k: v.clone() for k, v in state.items() if 'running' in k and 'petl' not in k
    }


def test_running_statistics_belong_to_the_delta_of_trained_norms(tmp_path) -> None:
    model, x = make('resnet')
    twin, original = copy.deepcopy(model), copy.deepcopy(model)
    was = statistics(model)
    inject(model, 'LNTune').train()
    model(x)
    shake_(model)
    model.eval()
    moved = statistics(model)
    assert all(not torch.equal(moved[k], was[k]) for k in was)
    assert {k for k in delta_state(model) if 'running' in k} == set(was)
    tuned = model(x)
    file = save_delta(model, tmp_path / 'norms')
    load_delta(inject(twin, 'LNTune'), file)
    torch.testing.assert_close(twin.eval()(x), tuned, rtol=0, atol=0)
    norms = [m for m in original.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count_trainable(model).selected == sum(2 * m.num_features for m in norms)

    disable(model)
    assert all(torch.equal(v, was[k]) for k, v in statistics(model).items())
    torch.testing.assert_close(model(x), original(x))
    enable(model)
    torch.testing.assert_close(model(x), tuned, rtol=0, atol=0)
    eject(model)
    assert all(torch.equal(v, was[k]) for k, v in statistics(model).items())
    assert list(model.state_dict()) == list(original.state_dict())


def test_two_slots_have_statistics_of_their_own() -> None:
    model, x = make('resnet')
    inject(model, 'LNTune', slot='a').train()
    model(x)
    a = statistics(model)
    disable(model, 'a')
    inject(model, {'type': 'LNTune', 'norms': ['batch']}, slot='b').train()
    model(2 * x)
    b = statistics(model)
    disable(model, 'b')
    enable(model, 'a')
    assert all(torch.equal(v, a[k]) for k, v in statistics(model).items())
    disable(model, 'a')
    enable(model, 'b')
    assert all(torch.equal(v, b[k]) for k, v in statistics(model).items())


def test_statistics_of_frozen_norms_stay() -> None:
    model, x = make('resnet')
    was = statistics(model)
    for method in ('BitFit', LoRA(rank=2)):
        inject(model, method).train()
        model(x).sum().backward()
        assert all(torch.equal(v, was[k]) for k, v in statistics(model).items())
        assert not any('running' in k for k in delta_state(model))
        model.zero_grad()
        eject(model)


def test_statistics_of_a_head_are_saved_with_it() -> None:
    model = Plain()
    model.head = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(16, 5))
    x = torch.randn(2, 3, 16, 16)
    model(x)
    inject(model, LoRA(rank=2)).train()
    model(x)
    assert {k for k in delta_state(model) if 'running' in k} == {
        'head.0.running_mean',
        'head.0.running_var',
    }


def test_what_is_kept_without_restoring_is_the_base_from_then_on() -> None:
    model, x = make('resnet')
    inject(model, LoRA(rank=2))
    inject(model, 'LNTune').train()
    model(x)
    moved = statistics(model)
    eject(model, '1', restore=False)
    assert all(torch.equal(v, moved[k]) for k, v in statistics(model).items())
    assert base_changes(model) == []


def test_another_base_brings_its_statistics() -> None:
    model, x = make('resnet')
    inject(model, 'LNTune')
    torch.manual_seed(9)
    other, _ = make('resnet')
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.25)
    assert load_base(model, other.state_dict())
    torch.testing.assert_close(model.eval()(x), other(x))
    disable(model)
    torch.testing.assert_close(model(x), other(x))


# ------------------------------------------------------------------------- modes


@pytest.mark.parametrize('method', ['Full', 'LNTune'])
def test_norm_eval_and_frozen_stages_of_upstream_are_respected(method) -> None:
    model = upstream_resnet(frozen_stages=1, norm_eval=True)
    plain = copy.deepcopy(model)
    plain.train()
    inject(model, method).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    was = statistics(model)
    model(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(v, was[k]) for k, v in statistics(model).items())
    frozen = {n for n, p in plain.named_parameters() if not p.requires_grad}
    assert not frozen & trained(model)


def test_deltas_train_where_upstream_puts_stages_in_eval_mode() -> None:
    model = upstream_resnet(frozen_stages=1, norm_eval=True)
    inject(model, {'type': 'LoRA', 'rank': 2, 'drop_rate': 0.5}).train()
    delta = model.layer1[0].conv1.petl.layer_conv['0']
    assert delta.training
    assert delta.drop.training
    assert not model.layer1.training


def test_frozen_parts_do_what_their_class_does_when_it_leaves_training() -> None:
    """EfficientFormer gathers the bias of its attention there, and reads it then."""
    from mmpretrain.models.backbones.efficientformer import AttentionWithBias

    model = nn.Sequential(
        AttentionWithBias(16, num_heads=2, key_dim=4, resolution=3),
        AttentionWithBias(16, num_heads=2, key_dim=4, resolution=3),
    )
    x = torch.randn(2, 9, 16)
    model.eval()
    expected = model(x).detach()
    inject(model, {'type': 'LoRA', 'rank': 2})
    for _ in range(2):
        y = model.train()(x)
        y.sum().backward()
        assert torch.equal(y, expected)
        assert torch.equal(model.eval()(x), expected)


def test_branches_of_training_run_in_a_frozen_trunk() -> None:
    """As what follows TridentResNet counts on them."""
    from mmdet.models.backbones import TridentResNet

    model = TridentResNet(
        50,
        num_branch=3,
        test_branch_idx=1,
        trident_dilations=(1, 2, 3),
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        base_channels=4,
        stem_channels=4,
    )
    inject(model, {'type': 'LoRA', 'rank': 2})
    x = torch.randn(2, 3, 32, 32)
    assert len(model.train()(x)[0]) == 6
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert len(model.eval()(x)[0]) == 2


def test_deltas_in_frozen_stages_of_a_part_train() -> None:
    """Its own ``train`` clears the flags of all that lies in them."""
    model = nn.Sequential(upstream_resnet(frozen_stages=1, norm_eval=True))
    inject(model, {'type': 'LoRA', 'rank': 2})
    want = trained(model)
    assert any(name.startswith('0.layer1') for name in want)
    assert trained(model.train()) == want
    assert trained(model.eval()) == want


@pytest.mark.parametrize('method', ['LinearProbe', {'type': 'LoRA', 'rank': 2}])
def test_a_model_gives_the_outputs_of_its_mode(method) -> None:
    """As mmseg's DDRNet and PIDNet, which give more of them in training."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout())

        def forward(self, x):
            y = self.body(x)
            return (y, x) if self.training else y

    model = inject(Auxiliary(), method).train()
    assert isinstance(model(torch.randn(3, 4)), tuple)
    assert not any(part.training for part in (model.body, model.body[1], model.body[2]))
    assert isinstance(model.eval()(torch.randn(3, 4)), torch.Tensor)


@pytest.mark.parametrize('name', ['test_convnext', 'resnet10t'])
def test_a_head_that_is_made_later_is_a_head(name) -> None:
    """As timm's reset_classifier makes it, on a described model and on another."""
    import timm

    model = timm.create_model(name, num_classes=0)
    inject(model, {'type': 'LoRA', 'rank': 2})
    tuned = count_trainable(model).delta
    model.reset_classifier(3)
    counts = count_trainable(model)
    assert counts.head == 3 * model.num_features + 3
    assert counts.delta == tuned


def test_a_described_backbones_frozen_stages_stay_in_eval_mode() -> None:
    from mmengine.model import BaseModule
    from tiny import mmpretrain_swin

    model = mmpretrain_swin(frozen_stages=0, drop_path_rate=0.5)
    inject(model, LoRA(rank=2, drop_rate=0.1), frozen_drop_path=True).train()
    drops = {
        name: module.training
        for name, module in model.named_modules()
        if type(module).__name__ == 'DropPath'
    }
    assert any(drops.values())
    assert {n for n, on in drops.items() if on} == {
        n for n in drops if not n.startswith('stages.0.')
    }
    delta = model.stages[0].blocks[0].petl.attn_v['0']
    assert delta.training
    assert isinstance(model, BaseModule)


@torch.no_grad()
def test_stochastic_depth_of_torchvision_acts_where_it_is_asked_for() -> None:
    from torchvision.models.convnext import CNBlock

    plain = nn.Sequential(CNBlock(8, 1.0, 0.5), nn.Dropout(0.5)).double()
    x = torch.randn(64, 8, 4, 4, dtype=torch.float64)
    want, moved = plain.eval()(x), [False, False]
    for asked in (False, True):
        model = inject(
            copy.deepcopy(plain), LoRA(rank=2), layers='*', frozen_drop_path=asked
        )
        y = model.train()(x)
        skipped = (y == x).all(dim=(1, 2, 3))
        moved[asked] = bool(skipped.any()) and not bool(skipped.all())
        # What is kept of the branch is divided by the rate.
        wider = x + (want - x) / 0.5
        torch.testing.assert_close(y[~skipped], (wider if asked else want)[~skipped])
    assert moved == [False, True]


class Shares(nn.Module):
    """One table of a buffer for all layers, as ViTEVA02's rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.rope = nn.Module()
        self.rope.register_buffer('freqs', torch.ones(4))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layers[0].weight
        for layer in self.layers:
            layer.rope = self.rope

    def forward(self, x):
        for layer in self.layers:
            x = layer(x * self.rope.freqs)
        return x


def test_shared_tensors_belong_to_the_base_under_every_name() -> None:
    model = Shares()
    keys = set(model.state_dict())
    assert len([k for k in keys if 'freqs' in k]) == 3
    inject(model, LoRA(rank=2), layers='layers.*')
    assert frozen_keys(model) == keys
    assert all('petl' in key for key in delta_state(model))


def test_a_state_without_statistics_does_not_fit() -> None:
    model, _ = make('resnet')
    inject(model, 'LNTune')
    state = {k: v for k, v in delta_state(model).items() if 'running' not in k}
    with pytest.raises(PETLError, match='missing'):
        load_delta_state(model, state)


# ---------------------------------------------------- variants and described trunks


def test_a_variant_that_is_not_described_still_takes_what_only_selects() -> None:
    model = vit(block_fn=_parallel())
    with pytest.raises(PETLError, match='timm.ParallelThingsBlock, whose algebra has'):
        inject(model, LoRA(rank=2))
    inject(model, 'LinearProbe')
    assert count_trainable(model) == Counts(
        base=sum(p.numel() for p in model.parameters())
    )
    eject(model)
    inject(model, LoRA(rank=2), layers='blocks.*')
    assert {s.kind for s in injection_of(model)[1].slots['0'].sites} == {'layer.linear'}


def _parallel() -> type[nn.Module]:
    from timm.models.vision_transformer import ParallelThingsBlock

    return ParallelThingsBlock


def test_a_subclass_of_a_described_class_takes_what_only_selects() -> None:
    model = base('timm_vit')
    model.__class__ = type('Other', (type(model),), {'__module__': 'somewhere'})
    x = images('timm_vit')
    before = outputs(model, x)
    inject(model, Nothing())
    assert type(model).__name__ == 'PETLOther'
    torch.testing.assert_close(outputs(model, x), before)
