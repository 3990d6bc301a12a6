"""Writing exact equivalents into base weights."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    BiasPart,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    fold,
    inject,
)


def _linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(4, 6, bias=bias).double()


def _x() -> torch.Tensor:
    return torch.randn(5, 4, dtype=torch.float64)


@torch.no_grad()
def test_add_scale_and_shift_compose_as_maps() -> None:
    linear, x = _linear(), _x()
    affine = Affine.of('here', linear.weight, linear.bias)
    y = linear(x)
    update, scale, shift = (
        torch.randn(6, 4).double(),
        torch.randn(6).double(),
        torch.randn(6).double(),
    )
    affine.add_(update)
    affine.scale_(scale)
    affine.shift_(shift)
    expected = (y + x @ update.T) * scale + shift
    torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_rows_write_to_their_part_only() -> None:
    linear, x = _linear(), _x()
    y = linear(x)
    rows = Affine.of('qkv', linear.weight, linear.bias).rows('k', 2, 4)
    rows.add_(torch.ones(2, 4))
    rows.shift_(torch.full((2,), 3.0))
    moved = linear(x) - y
    assert torch.equal(moved[:, :2], torch.zeros(5, 2).double())
    assert torch.equal(moved[:, 4:], torch.zeros(5, 2).double())
    expected = x.sum(1, keepdim=True) + 3
    torch.testing.assert_close(moved[:, 2:4], expected.expand(-1, 2))


@torch.no_grad()
def test_a_convolution_is_its_matrix() -> None:
    conv = nn.Conv2d(3, 6, 2, 2).double()
    x = torch.randn(2, 3, 4, 4).double()
    y = conv(x)
    Affine.of('patches', conv.weight, conv.bias).scale_(torch.arange(6.0))
    torch.testing.assert_close(conv(x), y * torch.arange(6.0)[:, None, None])


@torch.no_grad()
def test_a_norm_scales_by_channel() -> None:
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 6).double()
    y = norm(x)
    affine = Affine.of('norm', norm.weight, norm.bias)
    affine.scale_(torch.full((6,), 2.0))
    affine.shift_(torch.ones(6))
    torch.testing.assert_close(norm(x), 2 * y + 1)


def test_a_shift_without_a_bias_is_refused() -> None:
    linear = _linear(bias=False)
    affine = Affine.of('layers.0:attn.proj', linear.weight, None)
    affine.scale_(torch.ones(6))
    with pytest.raises(PETLError, match='layers.0:attn.proj has no bias'):
        affine.shift_(torch.ones(6))


def test_a_shift_of_keys_without_a_bias_is_dropped() -> None:
    q, v = torch.zeros(2), torch.zeros(2)
    parts = (BiasPart(0, 2, q), BiasPart(2, 4, None, free=True), BiasPart(4, 6, v))
    affine = Affine('qkv', torch.zeros(6, 4), parts)
    affine.shift_(torch.arange(6.0))
    assert q.tolist() == [0, 1]
    assert v.tolist() == [4, 5]
    affine.rows('v', 4, 6).shift_(torch.ones(2))
    assert v.tolist() == [5, 6]
    affine.rows('k', 2, 4).shift_(torch.ones(2))


@torch.no_grad()
def test_sums_round_once() -> None:
    # 1 + 2^-24 + 2^-24 is 1 in steps of float32 and above 1 in one.
    weight = torch.ones(1, 1)
    Affine.of('w', weight, None).add_(torch.full((1, 1), 2.0**-23, dtype=torch.float64))
    assert weight.item() == 1 + 2.0**-23


class Doubles(Delta):
    """``y + scale * (W x + b)``: reads the base in each pass."""

    reads_base = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.tensor(0.5))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        affine = ctx.affine(self.kind)
        weight, bias = self.own(affine.weight), self.own(affine.full_bias())
        return y + self.scale * nn.functional.linear(x, weight, bias)


class Double(Method):
    """Such a delta at projections, or at every Linear of any model."""

    family = 'reparameterisation'
    leaf_kinds = ('layer.linear',)

    def __init__(self, targets: tuple[str, ...] = ('attn.v', 'ffn.fc1')) -> None:
        self.targets = targets

    def build(self, site: Site) -> Doubles:
        return Doubles(site.kind)

    def fold(self, site: Site, delta: Doubles, affine: Affine) -> None:
        base = affine.base
        weight, bias = base.weight.double(), base.full_bias().double()
        affine.add_(delta.scale * weight)
        affine.shift_(delta.scale * bias)


@torch.no_grad()
@pytest.mark.parametrize('targets', [('attn.v', 'ffn.fc1'), ('attn.qkv',)])
@pytest.mark.parametrize('first', ['double', 'ssf'])
def test_what_reads_the_base_folds_beside_what_was_folded_there(targets, first) -> None:
    """The fold counts from the base weights, as the delta does, in either order."""
    x = tiny.images('timm_vit', dtype=torch.float64)
    model = tiny.base('timm_vit', torch.float64)
    methods = [Double(targets), {'type': 'SSF'}, {'type': 'LoRA', 'rank': 2}]
    for method in methods if first == 'double' else methods[::-1]:
        inject(model, method)
    tiny.shake_(model.eval())
    want = model(x)
    torch.testing.assert_close(fold(model)(x), want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_layer_of_any_model_reads_its_base_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3, bias=False))
    x, want = torch.randn(2, 4), []
    for linear in (model[0], model[2]):
        linear.register_forward_hook(lambda m, i, y: want.append((m, i[0], y)))
    plain = model(x)
    inject(model, Double())
    assert model(x).shape == plain.shape
    want.clear()
    tuned = model(x)
    for linear, inside, y in want:
        again = nn.functional.linear(inside, linear.weight, linear.bias)
        torch.testing.assert_close(y, 1.5 * again)
    torch.testing.assert_close(tuned, want[-1][2])


def test_weights_that_cannot_be_read_are_refused_when_the_delta_comes() -> None:
    from mmcv.cnn.bricks.conv_ws import ConvWS2d

    class Packed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight / 2)

    for layer, message in (
        (ConvWS2d(4, 6, 1), '^0 is a ConvWS2d with a forward pass of its own'),
        (Packed(4, 6), '^0 is a Packed with a forward pass of its own'),
    ):
        model = nn.Sequential(layer)
        with pytest.raises(PETLError, match=message):
            inject(model, Double())
        assert not any('petl' in name for name, _ in model.named_modules())
    whole = torch.ones(6, 4, dtype=torch.int8)
    with pytest.raises(PETLError, match='w holds a Tensor of int8, whose numbers are'):
        Affine.of('w', whole, None).check_readable()


def test_what_is_no_projection_has_no_base_weights() -> None:
    model = inject(tiny.base('timm_vit'), Double())
    for kind in ('attn.core', 'ffn.sum'):
        with pytest.raises(PETLError, match=rf'{kind} is no affine map of PETLBlock'):
            model.blocks[0].base_of(kind)
