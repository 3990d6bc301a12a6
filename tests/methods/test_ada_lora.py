from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import PETLError, injections, plan_steps
from mmpetl.methods.ada_lora import AdaLoRA, gradient_of_penalty

QV = ('attn.q', 'attn.v')


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def steps(model: nn.Module, held: list[nn.Parameter], number: int) -> None:
    optimizer = torch.optim.SGD(held, lr=0.01)
    for _ in range(number):
        (model(torch.ones(1, 3, 32, 32)) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ('size', 'targets', 'number'),
    [
        ('vit_b', QV, 295_104),
        ('vit_b', None, 1_327_680),
        ('videomae_b', QV, 295_104),
    ],
)
def test_counts(size: str, targets: tuple[str, ...] | None, number: int) -> None:
    args = {} if targets is None else {'targets': targets}
    assert counts(size, AdaLoRA(rank=8, **args)).delta == number


class Plain:
    """The allocation written element by element, from the paper's formulas."""

    def __init__(self, method: AdaLoRA, sizes: list[int], total: int) -> None:
        self.method, self.total = method, total
        self.first, self.last = sum(sizes), method.target_rank * len(sizes)
        self.means: dict = {}
        self.spreads: dict = {}

    def budget(self, t: int) -> int:
        begins, ends = int(0.1 * self.total), self.total - int(0.3 * self.total)
        if t <= begins:
            return self.first
        if t > ends:
            return self.last
        share = 1 - (t - begins) / (self.total - int(0.3 * self.total) - begins)
        return int(self.last + (self.first - self.last) * share**3)

    def step(self, t: int, params: dict, grads: dict) -> set[tuple[str, int]]:
        """The directions that are set to zero after step t."""
        ends = self.total - int(0.3 * self.total)
        if t < ends:
            for key, value in params.items():
                now = (value * grads[key]).abs()
                mean = 0.85 * self.means.get(key, 0) + 0.15 * now
                spread = (now - mean).abs()
                self.spreads[key] = 0.85 * self.spreads.get(key, 0) + 0.15 * spread
                self.means[key] = mean
        if t <= ends and (t <= int(0.1 * self.total) or t % self.method.every):
            return set()
        scores = {}
        for name in {name for name, _ in params}:
            of = {
                part: self.means[name, part] * self.spreads[name, part]
                for part in 'AEB'
            }
            for i in range(len(of['E'])):
                scores[name, i] = (
                    of['E'][i, 0] + of['A'][i].mean() + of['B'][:, i].mean()
                ).item()
        worst = sorted(scores, key=scores.get)
        return set(worst[: self.first - self.budget(t)])


def test_allocation_equals_the_formulas_step_by_step() -> None:
    """Twelve steps: one of warm-up, eight that prune, three at the target."""
    method = AdaLoRA(rank=4, target_rank=2, every=2, targets=QV, orthogonality=0.5)
    model = mmpetl.inject(tiny.timm_vit().double(), method).train()
    plan_steps(model, 12)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    deltas = {n.rpartition('.')[0] for n in params if n.endswith('.E')}
    parts = {(n, part): params[f'{n}.{part}'] for n in deltas for part in 'AEB'}
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    seen: dict = {}

    def before_masks(*_) -> None:
        for key, param in parts.items():
            seen[key] = param.detach().clone(), param.grad.clone()

    optimizer.register_step_post_hook(before_masks)
    plain = Plain(method, [4] * len(deltas), 12)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pruned = []
    for t in range(1, 13):
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()
        want = plain.step(
            t,
            {k: p for k, (p, _) in seen.items()},
            {k: g for k, (_, g) in seen.items()},
        )
        got = {
            (name, i)
            for name in deltas
            for i, value in enumerate(params[f'{name}.E'][:, 0].tolist())
            if value == 0
        }
        assert got == want, t
        pruned.append(len(got))
    assert pruned == [0, 3, 0, 7, 0, 8, 0, 8, 0, 8, 8, 8]
    assert sum(method.ranks(model).values()) == 8
    # What an average of the weights still has of them is left out of evaluation.
    model.eval()
    want = model(x)
    with torch.no_grad():
        for name, i in got:
            params[f'{name}.E'][i] = 1.0
    assert torch.equal(model(x), want)


def test_the_penalty_is_added_to_the_gradients() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (rows @ rows.T - torch.eye(3)).norm().backward()
    torch.testing.assert_close(gradient_of_penalty(rows.detach()), rows.grad)
    flat = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q.T
    assert gradient_of_penalty(torch.eye(3, 5, dtype=torch.float64)).eq(0).all()
    assert gradient_of_penalty(flat).isfinite().all()
    found = []
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        method = AdaLoRA(rank=3, target_rank=2, orthogonality=weight)
        model = mmpetl.inject(tiny.timm_vit().double(), method).train()
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=1e-3)
        (model(torch.ones(1, 3, 32, 32, dtype=torch.float64)) ** 2).sum().backward()
        with pytest.warns(UserWarning, match='nobody has said how many there are'):
            optimizer.step()
        found.append({n: p.grad for n, p in model.named_parameters() if '.petl.' in n})
    sites = sum(n.endswith('.A') for n in found[0])
    name = next(n for n in found[0] if n.endswith('.B'))
    torch.manual_seed(1)
    fresh = mmpetl.inject(tiny.timm_vit().double(), method).get_parameter(name)
    fresh.grad = None
    cov = fresh.T @ fresh - torch.eye(3)
    (0.5 * cov.norm() / (2 * sites)).backward()
    torch.testing.assert_close(found[1][name] - found[0][name], fresh.grad)


def test_nothing_is_pruned_where_ranks_are_equal_or_a_slot_is_frozen() -> None:
    model = mmpetl.inject(tiny.timm_vit(), AdaLoRA(rank=2, target_rank=2)).train()
    plan_steps(model, 4)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    for _ in range(4):
        (model(torch.ones(1, 3, 32, 32)) ** 2).sum().backward()
        optimizer.step()
    method = injections(model)[0][2].slots['0'].method
    assert set(method.ranks(model).values()) == {2}
    count = model.get_submodule('petl.shared.0')
    assert int(count.step) == 4
    mmpetl.freeze(model)
    optimizer.step()
    assert int(count.step) == 4


@pytest.mark.parametrize('copied', [copy.deepcopy, pickled], ids=['copy', 'pickle'])
def test_a_copy_sees_its_steps(copied: Callable[[nn.Module], nn.Module]) -> None:
    original = mmpetl.inject(tiny.timm_vit(), AdaLoRA(rank=2, target_rank=1)).train()
    plan_steps(original, 4)
    model = copied(original)
    steps(model, [p for p in model.parameters() if p.requires_grad], 4)
    assert int(model.get_submodule('petl.shared.0').step) == 4
    assert int(original.get_submodule('petl.shared.0').step) == 0
    method = injections(model)[0][2].slots['0'].method
    assert sum(method.ranks(model).values()) == len(method.ranks(model))


def test_what_the_user_froze_is_not_moved() -> None:
    model = mmpetl.inject(tiny.timm_vit(), AdaLoRA(rank=2, target_rank=1)).train()
    plan_steps(model, 4)
    held = [p for p in model.parameters() if p.requires_grad]
    first = next(d for d in model.modules() if hasattr(d, 'uncertainty'))
    first.A.requires_grad_(False)
    first.E.requires_grad_(False)
    before = first.A.clone(), first.E.clone()
    with torch.no_grad():
        first.E.fill_(0.5)
    steps(model, held, 4)
    assert torch.equal(first.A, before[0])
    assert first.E.eq(0.5).all()


def test_a_gradient_that_the_optimizer_unscales_itself_is_refused() -> None:
    model = mmpetl.inject(tiny.timm_vit(), AdaLoRA(rank=2, target_rank=1)).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.grad_scale = torch.ones(())
    with pytest.raises(PETLError, match='give the optimizer fused=False'):
        optimizer.step()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'AdaLoRA needs rank of at least 1, got 0'),
        ({'warm_up': 0.5, 'final': 0.5}, 'a sum below 1; got 0.5 and 0.5'),
        ({'rank': 4}, r'target_rank of at most rank \(4\), got 8'),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.timm_vit(), AdaLoRA(**args))


def test_ranks_by_layer_share_one_budget() -> None:
    method = AdaLoRA(rank={'*.qkv*': 4, '*': 1}, target_rank=2)
    assert method.budget(100, 100, [4, 4, 1]) == 5
    assert method.budget(1, 100, [4, 4, 1]) == 9
    model = mmpetl.inject(tiny.timm_vit(), {**method.config(), 'rank': {'*': 4}})
    assert sum(p.numel() for n, p in model.named_parameters() if n.endswith('.E')) == 48
    assert math.isclose(AdaLoRA(rank=4, target_rank=2).scale, 1, rel_tol=1e-5)
