"""What every method promises on every backbone that offers its sites."""

from __future__ import annotations

import copy
import json
import re
from functools import cache

import pytest
import torch
from mmengine.model import BaseModule
from tiny import (
    STILL,
    TINY,
    Nothing,
    Pair,
    Tuned,
    base,
    core,
    images,
    loss_of,
    outputs,
    record,
    shake_,
    train,
    trains_most,
)
from torch import Tensor, nn

from mmpetl.core import (
    Owner,
    PETLError,
    Site,
    base_changes,
    build_method,
    count_trainable,
    delta_state,
    disable,
    eject,
    enable,
    find_injected,
    fold,
    frozen_keys,
    inject,
    load_delta_state,
    owners,
)

F64 = torch.float64

ROUNDED = {
    # Its adapters are themselves products of four rounded matrices.
    'polyhistor_lite-mmpretrain_vit': 8,
    # A norm over two channels, 16 by the reduction of 8, gives no more than signs.
    'lst-mmpretrain_swin': 12,
}
"""By how much more than the base a pair may lose under autocast, where not by 4."""


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of outputs are equal bit for bit."""
    return len(a) == len(b) and all(map(torch.equal, a, b))


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    assert [y.shape for y in a] == [y.shape for y in b]
    scale = max(y.abs().max().item() for y in b)
    return max((y - z).abs().max().item() for y, z in zip(a, b, strict=True)) / scale


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def of_method(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the method adds or selects, by name."""
    params = dict(model.named_parameters())
    mine = (Owner.DELTA, Owner.SELECTED)
    return {n: params[n] for n, o in owners(model).items() if o in mine}


def offered_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of an injected backbone."""
    return record(model).sites


def is_delta(name: str) -> bool:
    return 'petl' in name.split('.')


@torch.no_grad()
def test_output_equals_the_base_at_step_0(pair: Pair) -> None:
    model, x = pair.inject(), images(pair.stem)
    plain = outputs(inject(base(pair.stem), Nothing()), x)
    ys = outputs(model, x)
    if feature := [s for s in offered_sites(model) if s.kind == 'feature']:
        dims = [pair.method.build().feature_dims(s) for s in feature]
        assert [y.shape for y in ys] == [
            (len(y), d) for y, d in zip(plain, dims, strict=True)
        ]
    else:
        assert [y.shape for y in ys] == [y.shape for y in plain]
    if pair.method.build().starts_as_identity:
        assert same(ys, plain)


def test_every_trainable_tensor_gets_a_gradient_and_moves(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    assert of_method(model).keys() <= before.keys()
    train(model, x)
    without = [n for n, p in trainable(model).items() if p.grad is None]
    still = [n for n, p in trainable(model).items() if torch.equal(p, before[n])]
    assert not without, f'no gradient: {without}'
    # Nothing stands still but what is known to, and that does.
    known = STILL.get(pair.method.name, {}).get(pair.stem)
    expected = [n for n in before if known and re.search(known, n)]
    assert still == expected, f'did not move: {still}'


def test_nothing_frozen_changes(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    keys = frozen_keys(model)
    assert keys or trains_most(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if k in keys}
    buffers = {n: b.clone() for n, b in model.named_buffers() if not is_delta(n)}
    train(model, x)
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    now = dict(model.named_buffers())
    assert [n for n in buffers if not torch.equal(buffers[n], now[n])] == []
    assert base_changes(model) == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_base_keys_stay_and_the_object_is_of_its_class(pair: Pair) -> None:
    plain, model = base(pair.stem), pair.inject()
    keys = [k for k in model.state_dict() if not is_delta(k)]
    assert keys == list(plain.state_dict())
    assert isinstance(model, type(plain))
    for (name, a), (_, b) in zip(
        plain.named_modules(),
        [(n, m) for n, m in model.named_modules() if not is_delta(n)],
        strict=True,
    ):
        assert isinstance(b, type(a)), name


@torch.no_grad()
def test_save_rebuild_load_gives_identical_outputs(pair: Pair, tmp_path) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    shake_(model)
    torch.save(delta_state(model), tmp_path / 'delta.pth')
    method = record(model).slots['0'].method
    config = json.loads(json.dumps(method.config()))
    torch.manual_seed(99)  # other start values than the first time
    fresh = Tuned(inject(base(pair.stem), config), x)
    fresh.eval()
    load_delta_state(fresh, torch.load(tmp_path / 'delta.pth', weights_only=True))
    assert same(fresh(x), model(x))
    sizes = {n: p.numel() for n, p in trainable(model).items()}
    buffers = {n for n, _ in model.named_buffers()}
    saved = {k: v.numel() for k, v in delta_state(model).items() if k not in buffers}
    assert saved == sizes


@torch.no_grad()
def test_deep_copy_is_independent(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    shake_(model)
    before = model(x)
    twin = copy.deepcopy(model)
    assert same(twin(x), before)
    shake_(twin, seed=7)
    assert same(model(x), before)
    if of_method(model):
        assert not same(twin(x), before)
    load_delta_state(model, delta_state(twin))
    assert same(model(x), twin(x))


def test_inject_twice_is_refused(pair: Pair) -> None:
    model = pair.inject()
    keys = list(model.state_dict())
    with pytest.raises(PETLError, match='already injected'):
        inject(model, pair.method.build())
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_eject_restores_the_base_bit_for_bit(pair: Pair) -> None:
    x, plain = images(pair.stem), base(pair.stem)
    frozen = next(iter(dict(plain.named_parameters())))
    plain.get_parameter(frozen).requires_grad_(False)
    model = inject(copy.deepcopy(plain), pair.method.build())
    shake_(model)
    if trains_most(model):
        with pytest.raises(PETLError, match='no second copy'):
            eject(model)
        return
    head = [n for n, o in owners(model).items() if o is Owner.HEAD]
    eject(model)
    assert find_injected(model) == []
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in plain.parameters()
    ]
    state, wanted = model.state_dict(), plain.state_dict()
    assert list(state) == list(wanted)
    assert [
        k for k in state if k not in head and not torch.equal(state[k], wanted[k])
    ] == []
    assert same(outputs(model, x), outputs(plain, x))


@torch.no_grad()
def test_disable_equals_the_base_and_enable_restores(pair: Pair) -> None:
    model, x = pair.inject(), images(pair.stem)
    shake_(model)
    if trains_most(model):
        with pytest.raises(PETLError, match='no second copy'):
            disable(model)
        return
    tuned = outputs(model, x)
    plain = outputs(inject(base(pair.stem), Nothing()), x)
    disable(model)
    assert of_method(model).keys().isdisjoint(trainable(model))
    assert same(outputs(model, x), plain)
    enable(model)
    assert same(outputs(model, x), tuned)
    assert of_method(model).keys() <= trainable(model).keys()


@torch.no_grad()
@pytest.mark.parametrize('odd', [False, True], ids=['square', 'odd'])
def test_folded_equals_unfolded(pair: Pair, odd: bool) -> None:
    plain = base(pair.stem)
    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 1e-5)):
        x = images(pair.stem, odd=odd, dtype=dtype)
        model = pair.inject(dtype)
        shake_(model)
        tuned = outputs(model, x)
        if record(model).slots['0'].sites and not _folds(pair):
            with pytest.raises(PETLError, match='cannot be folded'):
                fold(model)
            assert same(outputs(model, x), tuned)
            return
        assert fold(model) is model
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        assert gap(outputs(model, x), tuned) < tolerance


def _folds(pair: Pair) -> bool:
    return pair.method.build().folds


@torch.no_grad()
def test_evaluation_is_deterministic(pair: Pair) -> None:
    model, x = pair.inject(), images(pair.stem, odd=True)
    shake_(model)
    first = outputs(model, x)
    assert same(outputs(model, x), first)
    assert all(torch.isfinite(y).all() for y in first)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(pair: Pair) -> None:
    model, x = pair.inject(F64), images(pair.stem, batch=3, odd=True, dtype=F64)
    shake_(model)
    together = outputs(model, x)
    for i in range(3):
        alone = outputs(model, x[i : i + 1])
        assert gap(alone, [y[i : i + 1] for y in together]) < 1e-9
    backwards = outputs(model, x.flip(0))
    assert gap([y.flip(0) for y in backwards], together) < 1e-9


@cache
def bare_autocast(stem: str) -> tuple[float, list[torch.dtype]]:
    """What autocast changes in the bare base, and the dtypes that it hands over."""
    ys, full = autocast(base(stem), images(stem))
    return distance(ys, full), [y.dtype for y in ys]


@torch.no_grad()
def autocast(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs under bfloat16 autocast and without it."""
    full = outputs(model, x)
    with torch.autocast('cpu', torch.bfloat16):
        return outputs(model, x), full


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative error of an output, by its norm."""
    pairs = zip(a, b, strict=True)
    return max(((y.float() - z).norm() / z.norm()).item() for y, z in pairs)


def test_autocast_hands_over_what_it_does_of_the_base(pair: Pair) -> None:
    """The same dtypes, in both modes, and an error of the base's own size."""
    x, model = images(pair.stem), pair.inject()
    shake_(model)
    ys, full = autocast(model, x)
    error, dtypes = bare_autocast(pair.stem)
    assert [y.dtype for y in ys] == dtypes
    assert distance(ys, full) < ROUNDED.get(pair.id, 4) * error
    model.train()
    ys, _ = autocast(model, x)
    assert [y.dtype for y in ys] == dtypes


def test_works_under_autocast(pair: Pair) -> None:
    x = images(pair.stem)
    model = Tuned(pair.inject(), x)
    shake_(model)
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        ys = model(x)
    loss_of([y.float() for y in ys]).backward()
    for name, param in trainable(model).items():
        assert param.grad is not None, name
        assert torch.isfinite(param.grad).all(), name
        assert param.grad.dtype == torch.float32, name


def test_activation_checkpointing_gives_the_same_gradients(pair: Pair) -> None:
    x = images(pair.stem, odd=True, dtype=F64)
    grads = []
    for checkpointing in (False, True):
        model = Tuned(pair.inject(F64), x)
        shake_(model)
        model.train()
        inner = core(model)
        if hasattr(inner, 'set_grad_checkpointing'):
            inner.set_grad_checkpointing(checkpointing)
        for _, block in record(model).site_map.blocks(inner):
            block.with_cp = checkpointing
        torch.manual_seed(5)
        loss_of(model(x)).backward()
        grads.append({n: p.grad for n, p in trainable(model).items()})
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    scale = max(g.abs().max() for g in plain.values())
    for name, grad in plain.items():
        assert checkpointed[name] is not None, name
        assert (grad - checkpointed[name]).abs().max() <= 1e-9 * scale, name


def test_the_hosts_initialiser_changes_nothing(pair: Pair) -> None:
    model = pair.inject()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parent = BaseModule()
    parent.backbone = model
    parent.init_weights()
    if hasattr(model, 'init_weights'):
        model.init_weights()
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def test_config_builds_the_method_again(pair: Pair) -> None:
    config = pair.method.build().config()
    again = build_method(json.loads(json.dumps(config)))
    assert again.config() == config
    assert type(again) is type(pair.method.build())


def test_frozen_modules_evaluate_and_deltas_train(pair: Pair) -> None:
    model = pair.inject()
    model.train()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if is_delta(name):
            assert module.training, name
        elif own and not any(p.requires_grad for p in own):
            assert not module.training, name
    model.eval()
    assert not any(m.training for m in model.modules())


def test_counts_are_the_trainable_numbers(pair: Pair) -> None:
    model, plain = pair.inject(), base(pair.stem)
    counts = count_trainable(model)
    assert counts.trainable == sum(p.numel() for p in trainable(model).values())
    added = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert counts.delta == added
    total = sum(p.numel() for p in plain.parameters())
    assert counts.selected + counts.head + counts.base == total


@torch.no_grad()
def test_two_methods_stack_and_leave_each_other_alone(pair: Pair) -> None:
    model, x = pair.inject(), images(pair.stem)
    shake_(model)
    alone = outputs(model, x)
    low_rank = {'type': 'LoRA', 'rank': 3, 'targets': ['attn.proj']}
    inject(model, low_rank, slot='second')
    model.eval()
    assert same(outputs(model, x), alone)
    for name, param in model.named_parameters():
        if '.second.' in name:
            param.add_(0.1 * torch.randn_like(param))
    assert not same(outputs(model, x), alone)
    eject(model, 'second')
    assert same(outputs(model, x), alone)


def test_a_host_with_frozen_stages_keeps_the_deltas_trainable(pair: Pair) -> None:
    build = TINY[pair.stem].frozen_stages
    if build is None:
        pytest.skip(f'{pair.stem} has no frozen stages')
    model = inject(build(), pair.method.build())
    for _ in range(2):
        model.train()
        params = dict(model.named_parameters())
        deltas = [n for n, o in owners(model).items() if o is Owner.DELTA]
        assert [n for n in deltas if not params[n].requires_grad] == []
    x = images(pair.stem)
    tuned = Tuned(model, x)
    train(tuned, x, steps=1)
    assert [n for n, p in trainable(tuned).items() if p.grad is None] == []
