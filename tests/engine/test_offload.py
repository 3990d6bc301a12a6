"""Activations that wait in the memory of the machine change no number."""

from __future__ import annotations

import copy
import gc
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tiny
import torch
from mmengine.registry import MODEL_WRAPPERS
from tiny import base, images, loss_of, outputs
from torch import nn
from two_processes import MEETING_THE_BASE, in_two_processes

from mmpetl.analysis.memory import Living
from mmpetl.core import PETLError, inject
from mmpetl.engine.hooks import OffloadHook
from mmpetl.engine.hooks.offload import offload_passes
from mmpetl.engine.offload import Offloading
from mmpetl.engine.sharding import shard_base

METHODS = {
    **MEETING_THE_BASE,
    'drops features': {'type': 'AdaptFormer', 'drop_rate': 0.5},
    'computes within': {'type': 'SSF'},
    'is beside the trunk': {'type': 'LST', 'reduction': 4},
    'trains everything': {'type': 'Full'},
}


@MODEL_WRAPPERS.register_module()
class MMDataParallelLike(nn.Module):
    """What MMEngine takes for a wrapper of a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def _cases():
    for name, method in METHODS.items():
        yield pytest.param('timm_vit', method, id=name)
    for stem in tiny.trunks():
        marks = () if stem in tiny.hosts() else pytest.mark.slow
        method = tiny.folding(stem).build()
        yield pytest.param(stem, method, id=stem, marks=marks)


def step(model, x, offloading=None):
    """Gradients of a step, bytes that the forward pass leaves, and those held apart."""
    model.zero_grad()
    torch.manual_seed(1)
    with Living() as living:
        with offloading or nullcontext():
            loss = loss_of(outputs(model, x))
        kept = living.bytes
    held = offloading.held if offloading else 0
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return found, kept, held


@pytest.mark.parametrize(('trunk', 'method'), list(_cases()))
def test_gradients_are_those_without_it_and_hardly_anything_is_kept(trunk, method):
    model = inject(base(trunk), method).train()
    tiny.shake_(model)
    x = images(trunk, batch=2)
    plain, kept, _ = step(model, x)
    away, left, held = step(model, x, Offloading(model, least=1))
    assert plain
    for name, grad in plain.items():
        assert torch.equal(away[name], grad), name
    # Outputs are none of what is kept, and loss and norms are small.
    outs = sum(y.nbytes for y in outputs(model, x))
    assert held > 0.5 * (kept - outs)
    assert left - outs < 0.1 * kept


def test_small_tensors_and_weights_stay():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    model[0].requires_grad_(False)
    x = torch.randn(32, 64, requires_grad=True)
    with Offloading(model, least=32 * 64 * 4) as passes:
        out = model(x)
    # Of all that is kept (weights, what leaves the ReLU) only this is no weight.
    assert passes.held == 32 * 64 * 4
    with Offloading(model, least=32 * 64 * 4 + 1) as passes:
        model(x)
    assert passes.held == 0
    del out


def test_what_several_keep_is_copied_once_and_dropped():
    x = torch.randn(16, 16)
    weights = [torch.randn(16, 16, requires_grad=True) for _ in range(3)]
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        ys = [x @ w for w in weights]
    assert passes.held == 16 * 16 * 4
    sum(y.sum() for y in ys).backward()
    assert all(torch.equal(w.grad, weights[0].grad) for w in weights)
    del ys
    assert passes.held == 0


def test_what_is_written_in_place_holds_other_numbers():
    x = torch.ones(16)
    first, second = (torch.ones(16, requires_grad=True) for _ in range(2))
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        one = x * first
        x.add_(2)
        two = x * second
    assert passes.held == 2 * 16 * 4
    (one.sum() + two.sum()).backward()
    assert (first.grad == 1).all()
    assert (second.grad == 3).all()


def test_memory_that_is_used_again_is_no_copy():
    """A tensor may lie where one lay that has been copied."""
    model = nn.Linear(1, 1)
    weight = torch.ones(1000, requires_grad=True)
    outs = []
    with Offloading(model, least=1):
        for value in range(20):
            outs.append(torch.full((1000,), float(value)) * weight)
    sum(y.sum() for y in outs).backward()
    assert (weight.grad == sum(range(20))).all()


def test_what_is_expanded_stays():
    narrow, weight = torch.randn(1, 64), torch.ones(32, 64, requires_grad=True)
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        out = narrow.expand(32, 64) * weight
    assert passes.held == 0
    out.sum().backward()
    assert torch.equal(weight.grad, narrow.expand(32, 64))


def test_only_inputs_of_blocks_go_beside_checkpointing():
    plain = inject(base('mmpretrain_vit'), 'LoRA').train()
    tiny.shake_(plain)
    again = copy.deepcopy(plain)
    for layer in again.layers:
        layer.with_cp = True
    x = images('mmpretrain_vit', batch=2)
    expected, _, whole = step(plain, x, Offloading(plain, least=1))
    found, left, held = step(again, x, Offloading(again, least=1))
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)
    tokens = outputs(plain, x)[0]
    assert 0 < held < 0.5 * whole
    assert left < held + 2 * tokens.nbytes


def test_passes_of_a_model_are_offloaded():
    model = inject(base('timm_vit'), 'LoRA').train()
    x = images('timm_vit', batch=2)
    passes, leave = offload_passes(model)
    passes.least = 1
    out = model(x)
    assert passes.held > 0
    del out
    assert passes.held == 0
    with torch.no_grad():
        out = model(x)
    assert passes.held == 0
    with pytest.raises(RuntimeError, match='channels'):
        model(x[:, :2])
    # Nothing is offloaded behind a pass, nor behind one that ended in an error.
    out = torch.randn(1024, requires_grad=True).square()
    assert passes.held == 0
    leave()
    out = model(x)
    assert passes.held == 0
    del out


class _Stop(KeyboardInterrupt):
    pass


def test_a_pass_that_was_interrupted_leaves_nothing_behind_the_next():
    model = inject(base('timm_vit'), 'LoRA').train()
    x = images('timm_vit', batch=2)
    passes, leave = offload_passes(model)

    def interrupt(module, args):
        raise _Stop

    handle = model.blocks[0].register_forward_pre_hook(interrupt)
    with pytest.raises(_Stop):
        model(x)
    handle.remove()
    model(x)
    passes.least = 1
    out = torch.randn(1024, requires_grad=True).square()
    assert passes.held == 0
    del out
    leave()


def test_queries_among_keys_and_values_are_copied_with_them():
    made = torch.randn(4, 8, 3, 16)
    weights = [torch.ones(16, requires_grad=True) for _ in range(3)]
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        ys = [x * w for x, w in zip(made.unbind(2), weights, strict=True)]
    assert passes.held == made.nbytes
    sum(y.sum() for y in ys).backward()
    for at, weight in enumerate(weights):
        torch.testing.assert_close(weight.grad, made[:, :, at].sum((0, 1)))


@pytest.mark.parametrize(
    'views',
    [
        (lambda x: x, lambda x: x.view(-1, 4), lambda x: x.mT),
        (lambda x: x[:, ::2], lambda x: x, lambda x: x[:, 1::2]),
    ],
    ids=['shapes', 'parts'],
)
def test_one_memory_is_copied_once_whatever_its_shapes(views):
    x = torch.randn(16, 16)
    weights = [torch.randn(view(x).shape[-1], requires_grad=True) for view in views]
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        ys = [view(x) * w for view, w in zip(views, weights, strict=True)]
    assert passes.held == x.nbytes
    sum(y.sum() for y in ys).backward()
    for view, weight in zip(views, weights, strict=True):
        expected = view(x).reshape(-1, len(weight)).sum(0)
        torch.testing.assert_close(weight.grad, expected)


def test_numbers_of_another_sign_than_their_memory_stay():
    x = torch.randn(8, dtype=torch.complex64)
    one, other = (torch.ones(8, dtype=x.dtype, requires_grad=True) for _ in range(2))
    flipped = torch.ones(8, requires_grad=True)
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        found = x * one + x.conj() * other
        negative = x.conj().imag * flipped
    assert passes.held == x.nbytes
    (found.real.sum() + negative.sum()).backward()
    torch.testing.assert_close(one.grad, x.conj())
    torch.testing.assert_close(other.grad, x)
    torch.testing.assert_close(flipped.grad, -x.imag)


def _small(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(4)
    return x * w, x


def _weight(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    layer = nn.Linear(4, 4)
    return layer(w), layer.weight


def _output(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = w.exp()
    return y, y


@pytest.mark.parametrize('compute', [_small, _weight, _output])
@pytest.mark.parametrize('offloads', [False, True])
def test_what_stays_and_is_written_to_is_refused_as_without(compute, offloads):
    w = torch.ones(4, requires_grad=True)
    with Offloading(nn.Linear(1, 1), least=2**20) if offloads else nullcontext():
        y, kept = compute(w)
    with torch.no_grad():
        kept.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


def test_a_branch_that_no_backward_pass_reaches_is_dropped():
    """A group norm keeps its own small statistics, which know the node they are of."""
    model = nn.Linear(64, 64)
    passes = Offloading(model, least=4096)
    x, norm = torch.randn(128, 64, requires_grad=True), nn.GroupNorm(4, 128)
    for _ in range(3):
        with passes:
            hidden = model(x).square()
            aside = norm(hidden.view(1, 128, 64))
        hidden.sum().backward()
        del hidden, aside
        gc.collect()
        assert passes.held == 0


def test_two_backward_passes_and_one_through_a_gradient():
    x = torch.randn(32, requires_grad=True)
    with Offloading(nn.Linear(1, 1), least=1) as passes:
        y = (x**3).sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(y, x, retain_graph=True)
    torch.testing.assert_close(first, 3 * x**2)
    torch.testing.assert_close(second, first)
    first.sum().backward()
    torch.testing.assert_close(x.grad, 6 * x)
    del y, first, second
    assert passes.held == 0


def _runner(model):
    logger = logging.getLogger('offloads')
    return SimpleNamespace(model=model, logger=logger)


def test_a_run_on_a_cpu_says_that_there_is_nothing_to_do(caplog):
    model = nn.Linear(2, 2)
    OffloadHook().before_train(_runner(model))
    assert 'offload_activations does nothing on a CPU' in caplog.text
    assert not model._forward_pre_hooks


def test_a_run_on_a_device_offloads():
    model = nn.Linear(2, 2, device='meta')
    hook, runner = OffloadHook(), _runner(model)
    for _ in range(2):  # a training that was interrupted, and one that ends
        hook.before_train(runner)
        assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1
    hook.after_train(runner)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_compiled_model_is_refused(wrapped):
    model = nn.Linear(2, 2)
    if wrapped:
        model = MMDataParallelLike(model)
    model.train_step = model.forward
    with pytest.raises(PETLError, match='beside compile.*leave one out'):
        OffloadHook().before_train(_runner(model))


def _sharded(rank, folder):
    """What is held apart of a whole base and of one that two processes share."""
    torch.manual_seed(4)
    model, x = inject(base('timm_vit'), 'LoRA').train(), images('timm_vit', batch=2)
    whole, _, held = step(model, x, Offloading(model, least=1))
    shard_base(model)
    shared, _, then = step(model, x, Offloading(model, least=1))
    same = all(torch.equal(shared[name], grad) for name, grad in whole.items())
    torch.save({'same': same, 'held': (held, then)}, folder / f'{rank}.pth')


def test_weights_of_a_shared_base_stay(tmp_path):
    in_two_processes(_sharded, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert found['same']
        assert found['held'][0] == found['held'][1] > 0
