"""Trunks in 8 and 4 bits beside the values that their integers stand for."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import base, images, outputs, shake_
from torch import Tensor, nn

from mmpetl.apis import save_peft
from mmpetl.core import (
    Method,
    PETLError,
    Role,
    base_changes,
    delta_facts,
    delta_state,
    disable,
    eject,
    enable,
    fingerprint,
    fold,
    inject,
    injections,
    load_base,
    quantise,
)
from mmpetl.core.packed import PackedWeight
from mmpetl.core.quantise import base_bytes

NF4 = (
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
)  # fmt: skip
"""The levels of QLoRA, appendix E, to four digits."""


@pytest.fixture(autouse=True)
def _with_torchao() -> None:
    pytest.importorskip('torchao')


def by_rows(weight: Tensor) -> Tensor:
    """8 bits: each row divided by its largest magnitude over 127.5, and rounded."""
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale


def by_blocks(weight: Tensor) -> Tensor:
    """4 bits: the nearest level times the largest magnitude among 64 entries."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = (blocks / scale)[..., None].sub(levels).abs().argmin(-1)
    return (levels[nearest] * scale).view_as(weight)


class OneWeight(Method):
    """Trains one weight of the base."""

    family = 'baseline'
    name = 'blocks.0.attn.proj.weight'

    def selects(self, role: Role) -> bool:
        return role.name == self.name


def packed_of(model: nn.Module) -> dict[str, PackedWeight]:
    return {n: p for n, p in model.named_parameters() if isinstance(p, PackedWeight)}


def unpacked(model: nn.Module) -> nn.Module:
    """A copy whose packed weights are floating tensors of the same values."""
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if isinstance(weight := part._parameters.get('weight'), PackedWeight):
            part.weight = nn.Parameter(weight.plain(), requires_grad=False)
    return twin


def lora(bits: int | None, **given) -> nn.Module:
    torch.manual_seed(0)
    model = inject(base('timm_vit'), {'type': 'LoRA', 'rank': 2, **given}).train()
    shake_(model)
    return model if bits is None else quantise(model, bits)


@pytest.mark.parametrize(
    ('bits', 'values', 'near'),
    # Scales of blocks are in 8 bits themselves: within 1 / 127 of the largest.
    [(8, by_rows, 1e-6), (4, by_blocks, 1 / 127)],
)
def test_weights_are_rounded_as_the_formula_says(bits, values, near) -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    got = PackedWeight.of(weight, bits).plain()
    # The largest of a row lies in the middle of two steps, and may go to either.
    inner = weight.abs() < weight.abs().amax(1, keepdim=True)
    wrong = (got - values(weight)).abs()
    assert wrong[inner].max() <= near * weight.abs().max()
    assert wrong.max() <= weight.abs().max() / 127
    assert (got - weight).abs().mean() < {8: 0.01, 4: 0.1}[bits]


@pytest.mark.parametrize(('bits', 'most'), [(8, 0.02), (4, 0.35)])
def test_outputs_are_near_those_of_the_floating_trunk(bits: int, most: float) -> None:
    x = images('timm_vit')
    whole, packed = lora(None).eval(), lora(bits).eval()
    assert len(packed_of(packed)) == 8
    for a, b in zip(outputs(packed, x), outputs(whole, x), strict=True):
        assert (a - b).norm() < most * b.norm()
        assert not torch.equal(a, b)


@pytest.mark.parametrize('bits', [8, 4])
def test_gradients_are_those_over_the_unpacked_values(bits: int) -> None:
    x, model = images('timm_vit'), lora(bits)
    twin = unpacked(model)
    for part in (model, twin):
        torch.manual_seed(0)
        sum((y**2).mean() for y in outputs(part, x)).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    learn = [n for n, p in model.named_parameters() if p.grad is not None]
    assert learn
    assert all('petl' in name or 'head' in name for name in learn)


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize(
    'method', ['DoRA', 'BOFT', 'GLoRA', 'RLRR', 'BitFit', 'SSF', 'VPTDeep', 'LST']
)
def test_methods_that_read_the_base_read_what_the_packed_one_is(
    method: str, bits: int
) -> None:
    x = images('timm_vit')
    model = quantise(inject(base('timm_vit'), method), bits).train()
    shake_(model, 0.05)
    twin = unpacked(model)
    found = []
    for part in (model, twin):
        torch.manual_seed(0)
        ys = outputs(part, x)
        sum((y**2).mean() for y in ys).backward()
        found.append((ys, [p.grad for p in part.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('place', ['mmseg_beit', 'mmaction_vit'])
def test_trunks_that_read_a_weight_themselves_get_its_values(place: str) -> None:
    x, model = images(place), quantise(inject(base(place), 'Prefix'), 4).eval()
    torch.testing.assert_close(outputs(model, x), outputs(unpacked(model), x))


@pytest.mark.parametrize('bits', [8, 4])
def test_no_unpacked_copy_is_kept_for_the_backward_pass(bits: int) -> None:
    layer, x = nn.Linear(64, 512).requires_grad_(False), torch.ones(1, 64)
    layer.weight = nn.Parameter(PackedWeight.of(layer.weight, bits), False)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = layer(x.requires_grad_())
    assert sum(kept) < 64 * 512
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad[0], layer.weight.plain().sum(0))


def test_bytes_are_counted_as_they_are_stored() -> None:
    before, after = lora(None), {bits: lora(bits) for bits in (8, 4)}
    sizes = [(p.shape[0], p.numel()) for p in packed_of(after[8]).values()]
    saved = base_bytes(before) - base_bytes(after[8])
    # A float32 scale and an int8 zero for each row.
    assert saved == sum(4 * n - n - 5 * rows for rows, n in sizes)
    saved = base_bytes(before) - base_bytes(after[4])
    # Half a byte, a scale of a byte per 64; per weight the 16 levels, a mean, and a
    # factor per 256 scales at the most.
    most = sum(4 * n - n / 2 - n / 64 - 17 * 4 for _, n in sizes)
    least = most - sum(4 * math.ceil(n / 64) for _, n in sizes)
    assert least <= saved < most
    # Of a layer of ViT-B: 1/4 and 1/8, and the scales.
    weight = torch.randn(768, 768)
    for bits, share in ((8, 0.2516), (4, 0.1294)):
        layer = nn.Module()
        layer.w = nn.Parameter(PackedWeight.of(weight, bits), requires_grad=False)
        assert base_bytes(layer) / (4 * weight.numel()) == pytest.approx(
            share, abs=1e-3
        )


def test_the_base_stays_the_one_that_it_was_made_of() -> None:
    whole, packed = lora(None), lora(8)
    assert fingerprint(packed) == fingerprint(whole)
    assert base_changes(packed) == []
    assert delta_state(packed).keys() == delta_state(whole).keys()
    facts = delta_facts(packed)
    assert facts.pop('base_bits') == 8
    assert facts == delta_facts(whole)
    assert base_changes(packed.to(torch.bfloat16)) == []
    assert packed_of(packed)


def test_what_trains_stays_floating() -> None:
    partial = quantise(inject(base('timm_vit'), {'type': 'PartialK', 'num_blocks': 1}))
    assert {name.split('.')[1] for name in packed_of(partial)} == {'0'}
    # Also what a slot trains that is switched off.
    model = inject(base('timm_vit'), OneWeight())
    disable(model, '0')
    quantise(model)
    assert len(packed_of(model)) == 7
    enable(model, '0')
    assert type(model.get_parameter(OneWeight.name)) is nn.Parameter
    assert base_changes(model) == []


def test_slots_come_and_go_over_a_packed_base() -> None:
    x, model = images('timm_vit'), lora(8)
    inject(model, 'DoRA', slot='more')
    eject(model, 'more')
    eject(model)
    twin = unpacked(model)
    assert torch.equal(outputs(model, x)[0], outputs(twin, x)[0])


def test_layers_are_named_over_a_packed_base(tmp_path: Path) -> None:
    model = lora(8)
    inject(model, {'type': 'LoRA', 'rank': 2}, slot='more', layers=['*.attn.qkv'])
    own = {n for n, _ in model.named_parameters() if '.more.' in n}
    assert own
    assert all('attn_' in n for n in own)
    assert len(packed_of(model)) == 8
    eject(model, 'more')
    folder = save_peft(model, tmp_path / 'lora')
    tensors = load_file(folder / 'adapter_model.safetensors')
    assert any(key.endswith('blocks.0.attn.qkv.lora_A.weight') for key in tensors)


def test_what_cannot_be_is_said_in_a_line() -> None:
    model = lora(8)
    with pytest.raises(PETLError, match='8 bits, into which nothing can be folded'):
        fold(model)
    assert len(packed_of(model)) == 8
    with pytest.raises(PETLError, match='is in 8 bits already'):
        quantise(model, 4)
    with pytest.raises(PETLError, match='8 or 4 bits, got 3'):
        quantise(model, 3)
    with pytest.raises(PETLError, match='holds no method'):
        quantise(base('timm_vit'))
    x = images('timm_vit', batch=4)
    data = [(x, torch.tensor([0, 1, 0, 1]))]
    for method in ('GPS', 'SPT', {'type': 'LST', 'init': 'fisher', 'reduction': 2}):
        packed = inject(base('timm_vit'), method)
        quantise(packed, 8)
        chooser = injections(packed)[0][2].slots['0'].method
        look = {'SPT': 'sensitivities'}.get(str(method), 'calibrate')
        with pytest.raises(PETLError, match='in few bits and have none; calibrate'):
            getattr(chooser, look)(packed, data)
    with pytest.raises(PETLError, match='no frozen Linear layer'):
        quantise(inject(base('timm_vit'), 'Full'))
    weight = model.blocks[0].attn.qkv.weight
    with pytest.raises(PETLError, match='would write to a frozen weight of 8 bits'):
        nn.init.zeros_(weight)
    other = {n: torch.zeros_like(p) for n, p in base('timm_vit').named_parameters()}
    with pytest.raises(PETLError, match='is in 8 bits, and'):
        load_base(model, other)


def test_initialisers_of_a_model_leave_it_alone() -> None:
    x, model = images('timm_vit'), lora(4).eval()
    before = outputs(model, x)[0]

    def draw(part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight)

    model.apply(draw)
    assert torch.equal(outputs(model, x)[0], before)


def test_autocast_computes_in_its_own_dtype() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    layer.weight = nn.Parameter(PackedWeight.of(layer.weight, 8), False)
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
        want = F.linear(x, layer.weight.plain(), layer.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_without_torchao_the_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(PETLError, match='not installed: pip install "torchao>=0.18"'):
        PackedWeight.of(torch.ones(2, 2), 8)


def test_an_initialisation_that_fails_drops_writes_to_no_other_model() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = lora(8)

    model = Fails()
    model.backbone._params_init_info = {}  # as MMEngine begins, and never ends
    nn.init.zeros_(model.backbone.blocks[0].attn.qkv.weight)
    with pytest.raises(PETLError, match='would write to a frozen weight'):
        nn.init.zeros_(lora(8).blocks[0].attn.qkv.weight)
