"""Polyhistor-Lite: adapters generated from task and layer embeddings."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.tasks import task_features
from mmpetl.methods.polyhistor_lite import (
    PolyhistorDelta,
    PolyhistorLite,
    kron_sum,
    make_static,
)

F64 = torch.float64
FOUR = ('semseg', 'parts', 'saliency', 'normals')
HOSTS = ('mmpretrain_swin', 'mmpretrain_vit')


def tuned(host: str, shaken: bool = True, **args):
    torch.manual_seed(4)
    method = PolyhistorLite(**{'rank': 2, 'tasks': FOUR} | args)
    model = mmpetl.inject(tiny.base(host, F64), method)
    if shaken:
        tiny.shake_(model)
    model.eval()
    return model


def adapters(model) -> list[PolyhistorDelta]:
    return [m for m in model.modules() if isinstance(m, PolyhistorDelta)]


def by_hand(delta: PolyhistorDelta, task: str) -> tuple[torch.Tensor, ...]:
    """The adapter of a layer, one Kronecker product after another."""
    made = delta.shared
    dims, narrow, rank = made.sizes
    total = [0.0] * 4
    for j in range(len(delta.places)):
        entry = torch.cat((made.embeddings[task], delta.places[j]))
        first, _, second = made.encode
        e = second.weight @ F.relu(first.weight @ entry + first.bias) + second.bias
        numbers = made.down.weight @ e + made.down.bias
        down = numbers[: narrow * rank].view(narrow, rank)
        down = down @ numbers[narrow * rank :].view(rank, dims)
        numbers = made.up.weight @ e + made.up.bias
        up = numbers[: dims * rank].view(dims, rank)
        up = up @ numbers[dims * rank :].view(rank, narrow)
        parts = [
            down,
            (made.down_bias.weight @ e + made.down_bias.bias)[:, None],
            up,
            (made.up_bias.weight @ e + made.up_bias.bias)[:, None],
        ]
        if len(delta.places) > 1:
            k, column = delta.kernels[j], delta.bias_kernels[j]
            factors = (k, column, k, column)
            parts = [
                torch.kron(factor.contiguous(), part.contiguous())
                for factor, part in zip(factors, parts, strict=True)
            ]
        total = [a + b for a, b in zip(total, parts, strict=True)]
    down, down_bias, up, up_bias = total
    return down, down_bias[:, 0], up, up_bias[:, 0]


@pytest.mark.parametrize('host', HOSTS)
def test_weights_are_sums_of_kronecker_products(host):
    model = tuned(host)
    factors = set()
    for delta in adapters(model):
        factors.add(len(delta.places))
        width = len(delta.places) * delta.shared.sizes[0]
        shapes = [(width // 4, width), (width // 4,), (width, width // 4), (width,)]
        got, want = delta.weights('parts'), by_hand(delta, 'parts')
        assert [tuple(w.shape) for w in got] == shapes
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert factors == ({1, 2} if 'swin' in host else {1})


def test_the_kernel_stands_in_front():
    kernels = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    template = torch.tensor([[[1.0, 2.0, 3.0]]])
    want = torch.tensor([[0.0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 0]])
    assert torch.equal(kron_sum(kernels, template), want)


def formula(tasks: int, widths: list[int], rank: int, reduction: int = 4) -> int:
    k, h, p = 64, 128, 64
    c = widths[0]
    narrow = c // reduction
    factors = [width // c for width in widths]
    return (
        tasks * k
        + k * sum(factors)
        + (2 * k * h + h + h * p + p)
        + (p + 1) * (2 * rank * (c + narrow) + c + narrow)
        + sum(s**3 + s**2 for s in factors if s > 1)
    )


def test_counts():
    swin = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    for rank, count in ((8, 162_224), (24, 411_824)):
        assert formula(4, swin, rank) == count
        method = PolyhistorLite(FOUR, rank=rank)
        assert counts('swin_t_dense', method).delta == count
    assert counts('vit_b', PolyhistorLite()).delta == formula(1, [768] * 12, 24)


def test_start_values():
    made = PolyhistorLite(FOUR).share([tiny.record(tuned('timm_vit')).sites[0]])
    linears = [m for m in made.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 6
    for linear in linears:
        assert not linear.bias.any()
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    vectors = torch.stack([*made.embeddings.values()])
    assert vectors.std().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize('host', HOSTS)
def test_a_loss_on_one_task_leaves_the_embedding_of_another(host):
    model = tuned(host)
    x = tiny.images(host, dtype=F64)
    tiny.loss_of(list(task_features(model, x, FOUR)['parts'])).backward()
    for name, param in model.named_parameters():
        if '.embeddings.' in name:
            moved = param.grad is not None and bool(param.grad.any())
            assert moved == name.endswith('.parts'), name
        elif param.requires_grad:
            assert param.grad.any(), name


def test_gradients_of_several_tasks_add_up():
    x = tiny.images('mmpretrain_swin', dtype=F64)
    model = tuned('mmpretrain_swin')
    params = [p for p in model.parameters() if p.requires_grad]

    def grads(tasks):
        features = task_features(model, x, tasks)
        loss = sum(tiny.loss_of(list(maps)) for maps in features.values())
        found = torch.autograd.grad(loss, params, allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    both = grads(['parts', 'normals'])
    for total, a, b in zip(both, grads(['parts']), grads(['normals']), strict=True):
        torch.testing.assert_close(total, (a + b).expand_as(total))


@pytest.mark.parametrize('host', HOSTS)
def test_static_adapters_give_the_same_features(host):
    model, x = tuned(host), tiny.images(host, dtype=F64)
    want = task_features(model, x, FOUR)
    assert make_static(model) is model
    assert not any('embeddings' in name for name, _ in model.named_parameters())
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    got = task_features(model, x, FOUR)
    for task in FOUR:
        for a, b in zip(got[task], want[task], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(PETLError, match='holds no PolyhistorLite'):
        make_static(tiny.base(host))


@pytest.mark.parametrize('host', HOSTS)
def test_generators_at_zero_are_the_frozen_model(host):
    model, x = tuned(host), tiny.images(host, dtype=F64)
    for delta in adapters(model):
        made = delta.shared
    with torch.no_grad():
        for linear in (made.down, made.down_bias, made.up, made.up_bias):
            linear.weight.zero_()
            linear.bias.zero_()
    frozen = mmpetl.inject(tiny.base(host, F64), tiny.Nothing())
    want = tiny.outputs(frozen, x)
    for maps in task_features(model, x, FOUR).values():
        for got, expected in zip(maps, want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(('activation', 'act'), [('gelu', F.gelu), ('swish', F.silu)])
def test_formula_on_the_stream(activation, act):
    model = tuned('timm_vit', tasks=('only',), activation=activation)
    delta = adapters(model)[0]
    x = torch.randn(2, 5, 32, dtype=F64)
    ctx = mmpetl.core.Context((5,))
    delta.notes(ctx)['tasks'] = ('only',)
    down, down_bias, up, up_bias = by_hand(delta, 'only')
    want = x + act(x @ down.t() + down_bias) @ up.t() + up_bias
    torch.testing.assert_close(delta.after(x, x, ctx), want)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 9}, r'bottleneck of the first stage \(32 / 4 = 8\), got 9'),
        ({'rank': 0}, 'rank of at least 1, got 0'),
        ({'rank': 1, 'reduction': 5}, r'divides the width .*\(32\), got 5'),
        ({'rank': 1, 'activation': 'tanh'}, "gelu or swish, got 'tanh'"),
    ],
)
def test_arguments_out_of_range_are_one_line(args, message):
    with pytest.raises(PETLError, match=message) as error:
        mmpetl.inject(tiny.base('timm_vit'), PolyhistorLite(**args))
    assert '\n' not in str(error.value)
