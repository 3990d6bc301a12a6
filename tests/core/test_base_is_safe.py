"""Nothing but a method that says so moves the base, and what moves it is noticed."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import initialize
from tiny import base, core, images, outputs, shake_
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    PETLError,
    base_changes,
    fingerprint,
    fold,
    inject,
    tensor_digests,
)
from mmpetl.methods.lora import LoRA

VIT = 'timm_vit'

INIT = [
    {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02, 'bias': 0.0},
    {'type': 'Constant', 'layer': 'LayerNorm', 'val': 1.0, 'bias': 0.0},
    {'type': 'Kaiming', 'layer': 'Conv2d'},
    {'type': 'Xavier', 'layer': 'Linear', 'distribution': 'uniform'},
]


@pytest.mark.parametrize('stem_', ['timm_vit', 'mmpretrain_swin', 'mmaction_swin3d'])
@pytest.mark.parametrize('init', INIT, ids=lambda c: c['type'])
def test_initialisers_of_a_model_around_it_pass_it_by(stem_, init) -> None:
    backbone = inject(base(stem_), LoRA(rank=2))
    shake_(backbone)
    model = nn.Sequential(backbone, nn.Linear(3, 3), nn.Conv2d(3, 3, 1))
    kept = {k: v.clone() for k, v in backbone.state_dict().items()}
    outside = {k: v.clone() for k, v in model[1:].state_dict().items()}
    initialize(model, init)
    moved = [k for k, v in backbone.state_dict().items() if not torch.equal(v, kept[k])]
    assert moved == []
    if init['layer'] != 'LayerNorm':
        now = model[1:].state_dict()
        assert any(not torch.equal(v, outside[k]) for k, v in now.items())


def test_apply_is_otherwise_that_of_any_module() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    seen = []
    assert model.apply(seen.append) is model
    assert set(seen) == set(model.modules())


@pytest.mark.parametrize('mode', [True, False])
def test_what_overwrites_the_base_stops_before_the_next_training(mode) -> None:
    model = inject(base(VIT).train(mode), LoRA(rank=2))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    with pytest.raises(PETLError, match='5 of 30 frozen .* were overwritten') as error:
        model.train()
    assert '\n' not in str(error.value)


def test_writing_the_same_values_is_no_change() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    model.train()
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    model.train()
    with torch.no_grad():
        model.norm.weight += 1
    with pytest.raises(PETLError, match='1 of 30 frozen'):
        inject(model, 'BitFit', slot='more')


# Conversions that a user asks for


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_no_change_of_the_base(dtype) -> None:
    model = inject(base(VIT), LoRA(rank=2))
    mark = fingerprint(model)
    model.to(dtype)
    assert base_changes(model) == []
    model.train()
    assert fingerprint(model) == mark
    with torch.no_grad():
        model.norm.weight += 1
    assert base_changes(model) == ['norm.weight']


def test_a_conversion_does_not_hide_an_earlier_change() -> None:
    model = nn.Sequential(inject(base(VIT), LoRA(rank=2)))
    with torch.no_grad():
        model[0].norm.weight += 1
    model.bfloat16()
    assert base_changes(model) == ['0.norm.weight']


# Digests


class Packed(Tensor):
    """A weight in two plain tensors, as quantised ones are."""

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor):
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        self.data_, self.scale_ = data, scale

    def __tensor_flatten__(self):
        return ['data_', 'scale_'], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f'{func} is not for a packed tensor')


class Closed(Packed):
    """One that does not say what it holds."""

    __tensor_flatten__ = None


def packed(kind: type, value: int = 3, scale: float = 1.0) -> Tensor:
    data = torch.full((2, 2), value, dtype=torch.int8)
    return kind(data, torch.tensor(scale))


def test_a_digest_is_of_what_a_quantised_tensor_holds() -> None:
    one, same = (tensor_digests({'w': packed(Packed)})['w'] for _ in range(2))
    assert one == same
    assert tensor_digests({'w': packed(Packed, value=4)})['w'] != one
    assert tensor_digests({'w': packed(Packed, scale=2.0)})['w'] != one


def test_a_tensor_that_hides_what_it_holds_is_refused() -> None:
    with pytest.raises(
        PETLError, match='w is a Closed, whose contents cannot'
    ) as error:
        tensor_digests({'w': packed(Closed)})
    assert '\n' not in str(error.value)


# Folding


def test_nothing_is_folded_into_a_quantised_weight() -> None:
    model = inject(base(VIT), LoRA(rank=2, targets=['attn.qkv', 'attn.proj']))
    shake_(model)
    proj = model.blocks[1].attn.proj
    with torch.no_grad():
        quantised = (proj.weight * 10).round().to(torch.int8)
    proj.weight = nn.Parameter(quantised, requires_grad=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError, match='blocks.1:attn.proj holds .* of int8') as error:
        fold(model)
    assert '\n' not in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    with pytest.raises(PETLError, match='Packed'):
        Affine.of('w', packed(Packed), None).check_writable()


# Deltas and half precision


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('stem_', ['timm_vit', 'mmpretrain_swin'])
def test_deltas_over_a_half_base_are_float32(stem_, half) -> None:
    model = inject(base(stem_).to(half), LoRA(rank=2))
    shake_(model)
    added = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert {p.dtype for p in added} == {torch.float32}
    ys = outputs(model, images(stem_).to(half))
    assert {y.dtype for y in ys} == {half}
    sum(y.float().sum() for y in ys).backward()
    assert {p.grad.dtype for p in added} == {torch.float32}


def test_the_dtype_of_deltas_can_be_chosen() -> None:
    model = inject(base(VIT), LoRA(rank=2), delta_dtype=torch.bfloat16)
    added = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert {p.dtype for p in added} == {torch.bfloat16}
    assert outputs(model, images(VIT))[0].dtype == torch.float32
    inject(model, LoRA(rank=3), slot='wide')
    model.double()
    assert {d.dtype for d in core(model).blocks[0].petl.attn_v.active()} == {
        torch.float64
    }
