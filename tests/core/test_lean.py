"""Sums with a backward pass of their own give what their formulas give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, ScaleShift, host, lean
from mmpetl.core.dropout import Dropout
from mmpetl.core.host import BlockHost
from mmpetl.core.lean import (
    add_product,
    add_scaled_product,
    merged,
    product,
    scale_shift,
    scaled,
    scaled_norm,
)
from mmpetl.core.stack import Rows

DOUBLE = torch.float64


def random(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def gradients(y: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return list(torch.autograd.grad((y * weights).sum(), inputs))


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for got, want in zip(a, b, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@contextmanager
def kept_by(tensors: list[Tensor]) -> Iterator[set[int]]:
    """Storages that autograd keeps meanwhile, of these left out."""
    own = {t.untyped_storage().data_ptr() for t in tensors}
    found: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        found.add(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield found
    found -= own | {0}  # of tensors without elements


@pytest.mark.parametrize(
    ('parts', 'first', 'biased'),
    [(1, None, False), (1, None, True), (3, None, True), (1, 2, True)],
)
def test_a_product_that_is_added(
    monkeypatch: pytest.MonkeyPatch, parts: int, first: int | None, biased: bool
) -> None:
    torch.manual_seed(0)
    wide = 9 if first is not None else 5 * parts
    y, h, w = random(2, 4, wide), random(2, 4, 3 * parts), random(5, 3)
    bias = random(5) if biased else None
    inputs = [t for t in (y, h, w, bias) if t is not None]

    def run(*_: Tensor) -> Tensor:
        return add_product(y, h, w, 0.7, bias, first)

    out = run()
    got = [out, *gradients(out, *inputs)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    monkeypatch.setattr(lean, 'lean', lambda *_: False)
    want = run()
    close(got, [want, *gradients(want, *inputs)])


@pytest.mark.parametrize('both', [True, False])
def test_a_product_of_a_scaled_weight_keeps_its_vectors(both: bool) -> None:
    torch.manual_seed(0)
    y, h, w, rows = random(2, 4, 5), random(2, 4, 3), random(5, 3), random(5)
    columns = random(3) if both else None
    inputs = [t for t in (y, h, w, columns, rows) if t is not None]

    def run(*_: Tensor) -> Tensor:
        return add_scaled_product(y, h, w, columns, rows)

    with kept_by(inputs) as kept:
        out = run()
    assert not kept
    scaled_by = torch.diag(columns) if both else torch.eye(3, dtype=DOUBLE)
    want = y + h @ (torch.diag(rows) @ w @ scaled_by).t()
    close([out, *gradients(out, *inputs)], [want, *gradients(want, *inputs)])
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_product_of_what_can_be_made_again_keeps_its_source() -> None:
    torch.manual_seed(0)
    u, w, act = random(2, 4, 6), random(3, 2), nn.GELU()
    x, ctx = act(u), Context(())
    want = gradients(F.linear(x.unflatten(-1, (3, 2)), w).flatten(-2), u, w)
    with kept_by([u, w]) as kept:
        x = act(u)
        ctx.tell(x, (u,), act)
        y = product(x, w, ctx)
    assert not kept
    close(gradients(y, u, w), want)
    again = product(x * 1, w, ctx)  # of another tensor nothing is known
    close([again], [y])


def test_deltas_of_one_input_share_a_product() -> None:
    x, w, ctx = random(2, 4, 6), random(3, 6), Context(())
    assert product(x, w, ctx) is not product(x, w, ctx)
    ctx.products = []
    assert product(x, w, ctx) is product(x, w, ctx)
    assert product(x * 1, w, ctx) is not product(x, w, ctx)
    assert product(x, w * 1, ctx) is not product(x, w, ctx)


def test_a_product_of_what_is_dropped_keeps_a_byte_for_each_element() -> None:
    torch.manual_seed(0)
    u, w, act, drop = random(2, 4, 6), random(3, 6), nn.GELU(), Dropout(0.3)
    torch.manual_seed(1)
    want = F.linear(drop(act(u)), w)
    with kept_by([u, w]) as kept:
        x, ctx = act(u), Context(())
        ctx.tell(x, (u,), act)
        torch.manual_seed(1)
        y = product(x, w, ctx, drop)
    close([y, *gradients(y, u, w)], [want, *gradients(want, u, w)])
    assert len(kept) == 1  # which elements stay


def added(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return weight + up @ down


def collected(g: Tensor, x: Tensor, _: Tensor, up: Tensor, down: Tensor) -> tuple:
    return g.t() @ (x @ down.t()), up.t() @ g.t() @ x


@pytest.mark.parametrize('collect', [None, collected])
def test_a_weight_that_is_written_again(collect: Callable | None) -> None:
    torch.manual_seed(0)
    layer, act = nn.Linear(5, 4, dtype=DOUBLE).requires_grad_(False), nn.GELU()
    u, up, down, shift = random(3, 2, 5), random(4, 2), random(2, 5), random(4)

    def run() -> Tensor:
        x, ctx = act(u), Context(())
        ctx.tell(x, (u,), act)
        return merged(Rows.of(layer), x, ctx, added, (up, down), shift, collect)

    with kept_by([u, up, down, *layer.parameters()]) as kept:
        y = run()
    assert not kept
    inputs = u, up, down, shift
    want = F.linear(act(u), added(layer.weight, up, down), layer.bias + shift)
    wanted = gradients(want, *inputs)
    close([y, *gradients(y, *inputs)], [want, *wanted])
    assert torch.autograd.gradgradcheck(lambda *_: run(), inputs)
    up.requires_grad_(False)
    close(gradients(run(), down), wanted[2:3])


def test_a_weight_is_written_only_where_nothing_is_lost() -> None:
    layer = nn.Linear(5, 4).requires_grad_(False)
    factors = torch.zeros(4, 1, requires_grad=True), torch.zeros(1, 5)

    def run(module: nn.Module = layer, dtype: torch.dtype = torch.float32) -> object:
        x, own = torch.ones(2, 5, dtype=dtype), [f.to(dtype) for f in factors]
        rows = Rows.of(module.to(dtype))
        return merged(rows, x, Context(()), added, tuple(own))

    assert run() is not None
    assert merged(nn.Identity(), torch.ones(2, 5), Context(()), added, factors) is None
    assert run(dtype=torch.bfloat16) is None
    assert run(nn.Linear(5, 4)) is None  # it learns
    with torch.no_grad():
        assert run() is None
    layer.register_forward_hook(lambda *_: None)
    assert run() is None


GAMMAS = (1.0, -0.9, 0.0, 1e-30, -1e-4, 0.2, 0.3, 1.0)
BETAS = (0.0, 0.1, 0.5, 1.0, -3.0, 0.0, 50.0, 100.0)
"""Of which no channel but the first two can be told from what leaves."""


@pytest.mark.parametrize('output_kept', [False, True])
def test_a_scale_alone_learns(output_kept: bool) -> None:
    y = random(3, 5, 8)
    gamma = torch.tensor(GAMMAS, dtype=DOUBLE, requires_grad=True)
    z, want = scale_shift(y, gamma, output_kept=output_kept), y * gamma
    close([z, *gradients(z, y, gamma)], [want, *gradients(want, y, gamma)])


def test_a_scale_of_what_can_be_made_again_keeps_its_source() -> None:
    u, gamma, act = random(2, 4, 6), random(6), nn.GELU()
    want = gradients(act(u) * gamma, u, gamma)
    with kept_by([u, gamma]) as kept:
        x, ctx = act(u), Context(())
        ctx.tell(x, (u,), act)
        z = scale_shift(x, gamma, made=ctx.made)
    assert not kept
    close(gradients(z, u, gamma), want)


@pytest.mark.parametrize('output_kept', [False, True])
def test_scale_and_shift_learn_at_any_scale(output_kept: bool) -> None:
    """As exactly in float32 as the formula, however small gamma is."""
    torch.manual_seed(0)
    y = random(3, 50, 8, dtype=torch.float32)
    gamma, beta = (torch.tensor(t, requires_grad=True) for t in (GAMMAS, BETAS))
    z = scale_shift(y, gamma, beta, output_kept)
    got = gradients(z, y, gamma, beta)
    wide = [t.detach().double().requires_grad_() for t in (y, gamma, beta)]
    want = gradients(wide[0] * wide[1] + wide[2], *wide)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)
    inputs = [t.detach().double().requires_grad_() for t in (y[:1, :3], gamma, beta)]

    def run(*args: Tensor) -> Tensor:
        return scale_shift(*args, output_kept)

    inputs[1] = (inputs[1].detach() + 0.01).requires_grad_()  # of the same branches
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_scale_and_shift_keep_what_leaves_where_that_tells_enough() -> None:
    y, gamma = random(2, 4, 8), torch.ones(8, dtype=DOUBLE, requires_grad=True)
    beta = random(8)
    with kept_by([gamma, beta]) as kept:
        z = scale_shift(y * 1, gamma, beta / 9, output_kept=True)
    assert z.untyped_storage().data_ptr() in kept
    assert len(kept) == 2  # and beta / 9
    with torch.no_grad():
        gamma[3] = 0.1
    with kept_by([gamma, beta, z]) as kept:
        scale_shift(y * 1, gamma, beta / 9, output_kept=True)
    assert len(kept) == 4  # the channel itself and its number


@pytest.mark.parametrize('told', [False, True])
def test_a_scaled_norm_is_one_norm(told: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, dtype=DOUBLE)
    skip, y, gamma, beta = random(2, 4, 6), random(2, 4, 6), random(6), random(6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    inputs = [skip, y, gamma, beta]

    def run(fast: bool) -> list[Tensor]:
        z = scaled(y, gamma, beta)
        x, ctx = skip + z, Context(())
        if told:
            ctx.tell(x, (skip, y, gamma, beta), lambda s, *rest: s + scaled(*rest))
        n = scaled_norm(norm, x, gamma, beta, ctx) if fast else norm(x) * gamma + beta
        return [n, *gradients(n, *inputs)]

    close(run(fast=True), run(fast=False))
    if told:
        args = skip, norm.weight, norm.bias, 1e-5, lambda x: x, skip
        assert torch.autograd.gradgradcheck(lean.NormAgain.apply, args)


@pytest.mark.parametrize(
    'norm',
    [nn.LayerNorm(6), nn.BatchNorm1d(6), nn.LayerNorm(6, elementwise_affine=False)],
)
def test_what_is_no_plain_norm_or_is_watched_runs(norm: nn.Module) -> None:
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    assert scaled_norm(norm, torch.ones(2, 6), torch.ones(6), torch.zeros(6)) is None


def trained(model: nn.Module, fast: bool) -> list[Tensor]:
    x = tiny.images('timm_vit', dtype=DOUBLE)
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=DOUBLE).view(y.shape)).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return [y.detach(), *grads]


METHODS = 'SSF FacTTT FacTTK LoRA NOAH BAPAT PATT RepAdapter Hydra Convpass'.split()
METHODS += 'RLRR GPS SPT DoRA'.split()
METHODS += [
    {'type': 'Consolidator', 'groups': (4, 2)},
    {'type': 'FourierFT', 'num_coefficients': 90},
    {'type': 'GPS', 'num_weights': 9},
    {'type': 'MTLoRA', 'rank': 4, 'task_rank': 2},
    {'type': 'VeRA', 'rank': 4},
]


@pytest.mark.filterwarnings('ignore:GPS trains the first:UserWarning')
@pytest.mark.filterwarnings('ignore:SPT trains a module:UserWarning')
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_methods_learn_what_their_formulas_say(
    monkeypatch: pytest.MonkeyPatch, method: str | dict
) -> None:
    model = mmpetl.inject(tiny.base('timm_vit', DOUBLE), method).train()
    tiny.shake_(model, 0.1)
    got = trained(model, fast=True)
    monkeypatch.setattr(lean, 'lean', lambda *_: False)
    monkeypatch.setattr(ScaleShift, 'within', lambda *_: None)
    close(got, trained(model, fast=False))


def kept_bytes(run: Callable[[], object], model: nn.Module) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()  # holds what is kept, so that no storage is counted twice
    total = sum(sizes.values())
    del out
    return total


@pytest.mark.parametrize(
    ('name', 'most'), [('SSF', 0.75), ('FacTTT', 0.92), ('RLRR', 0.75)]
)
def test_methods_keep_less_than_their_formulas(
    monkeypatch: pytest.MonkeyPatch, name: str, most: float
) -> None:
    x = tiny.images('timm_vit')
    model = mmpetl.inject(tiny.base('timm_vit'), name).train()
    kept = kept_bytes(lambda: model(x), model)
    monkeypatch.setattr(lean, 'lean', lambda *_: False)
    monkeypatch.setattr(ScaleShift, 'within', lambda *_: None)
    assert kept < most * kept_bytes(lambda: model(x), model)


def test_a_part_that_is_left_keeps_none_of_the_others() -> None:
    """Of queries, keys and values, that are one product of the trunk."""
    x, sizes = tiny.images('mmpretrain_vit'), []
    for targets in (('attn.q', 'attn.v'), ('attn.q', 'attn.k', 'attn.v')):
        method = {'type': 'LoRA', 'rank': 2, 'targets': targets}
        model = mmpetl.inject(tiny.base('mmpretrain_vit'), method).train()
        sizes.append(kept_bytes(lambda model=model: model(x), model))
    assert sizes[0] < sizes[1]


def test_a_projection_with_a_hook_is_called_beside_one_without() -> None:
    """Keys and values of one Linear cannot be cut out of it then; queries are apart."""
    x = tiny.images('timm_pvt_v2')
    grads = []
    for hooked in (False, True):
        model = mmpetl.inject(tiny.base('timm_pvt_v2'), {'type': 'RLRR'})
        tiny.shake_(model)
        called = []
        if hooked:
            for name, module in model.named_modules():
                if name.endswith('.kv'):
                    module.register_forward_hook(lambda *_, c=called: c.append(1))
        torch.manual_seed(0)  # of stochastic depth
        tiny.loss_of(tiny.outputs(model.train(), x)).backward()
        assert bool(called) == hooked
        grads.append(
            {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        )
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [(nn.Linear(8, 8), (2, 5, 8)), (nn.Conv2d(8, 8, 1), (2, 8, 3, 3))],
)
def test_an_activation_in_place_may_follow_a_sum(layer, shape):
    """As behind the 1x1 convolutions of EfficientNet's squeezing and of VGG."""
    x, found = torch.randn(shape, dtype=DOUBLE), []
    for inplace in (False, True):
        net = nn.Sequential(copy.deepcopy(layer), nn.ReLU(inplace)).double()
        torch.manual_seed(0)
        tiny.shake_(mmpetl.inject(net, {'type': 'LoRA', 'rank': 2}), seed=3)
        y = net(x)
        params = [p for p in net.parameters() if p.requires_grad]
        found.append([y, *gradients(y, *params)])
    assert len(found[0]) == 3
    close(*found)


@pytest.mark.parametrize('trunk', ['timm_vit', 'mmpretrain_vit', 'mmaction_vit'])
def test_where_a_stream_is_much_longer_a_sum_is_made_again(
    monkeypatch: pytest.MonkeyPatch, trunk: str
) -> None:
    """One feature of each token less in each block, and the same numbers to the bit."""
    x, method = tiny.images(trunk), {'type': 'VPTShallow', 'num_tokens': 40}
    model = mmpetl.inject(tiny.base(trunk), method).train()
    tiny.shake_(model)
    block = next(m for m in model.modules() if isinstance(m, BlockHost))
    shapes = []
    block.register_forward_hook(lambda *args: shapes.append(args[2].numel()))
    kept, grads = [], []
    for again in (True, False):
        if not again:
            monkeypatch.setattr(host, 'norm_again', lambda *_: None)
        model.zero_grad()
        kept.append(kept_bytes(lambda: model(x), model))
        tiny.loss_of(tiny.outputs(model, x)).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    blocks = sum(isinstance(m, BlockHost) for m in model.modules())
    assert kept[1] - kept[0] == blocks * shapes[0] * 4
    assert all(g.any() for g in grads[0])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


class Doubling(nn.Module):
    """In place: what leaves is what entered, with other values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2.0)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


@pytest.mark.parametrize('method', ['VPTShallow', 'SSF'])
def test_what_is_written_in_place_is_not_made_again(method: str) -> None:
    """A scale or a dropout of the branch that hands on the tensor it was given."""
    settings = {'VPTShallow': {'num_tokens': 40}}.get(method, {})
    found = []
    for scale in (Doubling, Twice):
        torch.manual_seed(0)
        net = tiny.base('timm_vit', DOUBLE)
        for block in net.blocks:
            block.ls1 = block.ls2 = scale()
        model = mmpetl.inject(net, {'type': method, **settings}).train()
        tiny.shake_(model)
        found.append(trained(model, fast=True))
    close(*found)


@pytest.mark.parametrize(
    'method',
    ['LoRA', 'SSF', 'BitFit', {'type': 'VPTShallow', 'num_tokens': 40}, 'GPS', 'Mona'],
    ids=str,
)
@pytest.mark.filterwarnings('ignore:GPS trains the first:UserWarning')
def test_transforms_of_functions_take_plain_operations(method: str | dict) -> None:
    """Gradients of each sample by itself, and what they are in sum."""
    model = mmpetl.inject(tiny.base('timm_vit', DOUBLE), method).train()
    tiny.shake_(model)
    for part in model.modules():  # one draw for all samples is another function
        if isinstance(part, Dropout):
            part.p = 0.0
    x = tiny.images('timm_vit', dtype=DOUBLE)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    model(x).square().sum().backward()
    for name, param in params.items():
        want = torch.zeros_like(param) if param.grad is None else param.grad
        torch.testing.assert_close(each[name].sum(0), want)


def test_few_tokens_are_not_worth_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, 'norm_again', lambda *_: pytest.fail('made again'))
    method = {'type': 'VPTShallow', 'num_tokens': 1}
    model = mmpetl.inject(tiny.base('timm_vit'), method).train()
    tiny.loss_of(tiny.outputs(model, tiny.images('timm_vit'))).backward()
