"""Interpolation between base and tuned: both ends bit for bit, for every method."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from made_up_runs import make_bench
from tiny import Nothing, Tuned, base, core, fits, images, method_cases, shake_

from mmpetl.analysis.wise import best_alpha, check_base, interpolated, obstacle
from mmpetl.benchmark.records import Job, Record
from mmpetl.core import Delta, PETLError, disable, enable, inject

STEMS = ('mmpretrain_vit', 'mmpretrain_swin')


def _has_no_neutral(case, stem: str) -> bool:
    """Whether a feature of the method's own leaves, or some delta changes a shape.

    Prompts, prefixes and queries add what a base does not have.
    """
    return bool(case.build().replaces) or _changes_shapes(case, stem)


@cache
def _changes_shapes(case, stem: str) -> bool:
    backbone = inject(base(stem), case.build()).eval()
    grown = []

    def looking(port, which: int, *args):
        y = port(*args)
        grown.append(_shapes(y) != _shapes(args[which]))
        return y

    for delta in backbone.modules():
        if isinstance(delta, Delta):
            delta.before = partial(looking, delta.before, 0)
            delta.after = partial(looking, delta.after, 1)
    with torch.no_grad():
        backbone(images(stem))
    return any(grown)


def _shapes(x: Any) -> list[torch.Size]:
    """Of a feature, or of queries, keys and values."""
    return [part.shape for part in (x if isinstance(x, tuple) else (x,))]


CASES = [
    pytest.param(case, stem, id=f'{case.id}-{stem}')
    for case in method_cases()
    for stem in STEMS
    if fits(case, stem)
]


def _tuned(case, stem):
    x = images(stem)
    torch.manual_seed(4)
    backbone = inject(base(stem), case.build())
    model = Tuned(backbone, x)
    shake_(model)
    with torch.no_grad():
        for head in model.heads:
            head.weight.add_(0.3)
    model.eval()
    return model, x


def _base(stem, x):
    model = Tuned(inject(base(stem), Nothing()), x)
    model.eval()
    return model


@pytest.mark.parametrize(('case', 'place'), CASES)
@torch.no_grad()
def test_both_ends_are_the_base_and_the_tuned_model(case, place):
    model, x = _tuned(case, place)
    if _has_no_neutral(case, place):
        assert 'neutral element' in obstacle(model) or 'in place' in obstacle(model)
        return
    assert obstacle(model) is None
    start = _base(place, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tuned, untuned = model(x), start(x)
    with interpolated(model, start.state_dict(), 1.0):
        assert all(torch.equal(a, b) for a, b in zip(model(x), tuned, strict=True))
    with interpolated(model, start.state_dict(), 0.0):
        assert all(torch.equal(a, b) for a, b in zip(model(x), untuned, strict=True))
    with interpolated(model, start.state_dict(), 0.5):
        half = model(x)
    for end in (tuned, untuned):
        assert not any(torch.allclose(a, b) for a, b in zip(half, end, strict=True))
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], v) for k, v in state.items())
    assert all(torch.equal(a, b) for a, b in zip(model(x), tuned, strict=True))


@pytest.mark.parametrize(
    'name', ['lora', 'fact_tk', 'fact_tt', 'ssf', 'rep_adapter', 'gps']
)
@torch.no_grad()
def test_what_folds_is_interpolated_in_weight_space(name):
    """Linear in the weights: a plain model of averaged weights computes the same."""
    from mmpetl.core import fold

    case = next(c for c in method_cases() if c.id == name)
    x = images('mmpretrain_vit', dtype=torch.float64)
    torch.manual_seed(4)
    start = base('mmpretrain_vit', torch.float64)
    tuned = inject(base('mmpretrain_vit', torch.float64), case.build())
    shake_(tuned)
    tuned.eval()
    alpha = 0.3
    with interpolated(tuned, start.state_dict(), alpha):
        found = tuned(x)[0]
    fold(tuned)
    ends = start.state_dict(), tuned.state_dict()
    mean = {k: torch.lerp(v, ends[1][k], alpha) for k, v in ends[0].items()}
    start.load_state_dict(mean)
    torch.testing.assert_close(found, start(x)[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_adapter_is_scaled_in_its_branch():
    case = next(c for c in method_cases() if c.id == 'adaptformer')
    model, x = _tuned(case, 'mmpretrain_vit')
    start = _base('mmpretrain_vit', x)
    with interpolated(model, start.state_dict(), 0.25):
        found = model(x)
        heads = [h.weight.clone() for h in model.heads]
    for block in core(model).layers:
        block.petl.ffn_sum['0'].scale *= 0.25
    for head, weight in zip(model.heads, heads, strict=True):
        head.weight.copy_(weight)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_control_moves_the_head_alone():
    case = next(c for c in method_cases() if c.id == 'bitfit')
    model, x = _tuned(case, 'mmpretrain_vit')
    start = _base('mmpretrain_vit', x)
    body = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    with interpolated(model, start.state_dict(), 0.0, head_only=True):
        now = model.backbone.state_dict()
        assert all(torch.equal(now[k], v) for k, v in body.items())
        assert torch.equal(model.heads[0].weight, start.heads[0].weight)


@pytest.mark.parametrize('other', ['VPTDeep', 'LST', 'BitFit', 'SSF', 'LNTune'])
@torch.no_grad()
def test_a_method_that_is_switched_off_takes_no_part_and_keeps_its_values(other):
    place = 'mmpretrain_vit'
    x = images(place)
    backbone = inject(base(place), 'LoRA')
    model = Tuned(backbone, x)
    shake_(model)
    model.eval()
    inject(backbone, other, slot='other')
    shake_(model, seed=1)
    disable(backbone, '0')
    beside = model(x)
    enable(backbone, '0')
    both = model(x)
    disable(backbone, 'other')
    assert not torch.allclose(model(x)[0], both[0])
    assert obstacle(model) is None
    start = _base(place, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tuned = model(x)
    for alpha, end in ((0.0, start(x)), (1.0, tuned)):
        with interpolated(model, start.state_dict(), alpha):
            assert all(torch.equal(a, b) for a, b in zip(model(x), end, strict=True))
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], v) for k, v in state.items())
    enable(backbone, 'other')
    assert torch.equal(model(x)[0], both[0])
    disable(backbone, '0')
    assert torch.equal(model(x)[0], beside[0])
    disable(backbone, 'other')
    assert obstacle(model) == 'Tuned holds no method that is enabled'


@torch.no_grad()
def test_deltas_in_float32_are_scaled_over_a_base_in_bfloat16():
    place = 'mmpretrain_vit'
    x = images(place, dtype=torch.bfloat16)
    models = [base(place, torch.bfloat16) for _ in range(2)]
    backbone = inject(models[0], {'type': 'Adapter'})
    shake_(backbone)
    backbone.eval()
    assert {p.dtype for p in backbone.parameters()} == {torch.float32, torch.bfloat16}
    for alpha, end in ((0.0, models[1](x)[0]), (1.0, backbone(x)[0])):
        with interpolated(backbone, models[1].state_dict(), alpha):
            assert torch.equal(backbone(x)[0], end)


def test_another_base_is_refused():
    case = next(c for c in method_cases() if c.id == 'lora')
    model, x = _tuned(case, 'mmpretrain_vit')
    start = _base('mmpretrain_vit', x)
    state = start.state_dict()
    key = 'backbone.layers.0.attn.qkv.weight'
    with pytest.raises(PETLError, match='is frozen, but differs from the base'):
        check_base(model, {**state, key: state[key] + 1})
    with pytest.raises(PETLError, match='the base has no heads.0.weight'):
        check_base(model, {k: v for k, v in state.items() if 'heads' not in k})
    with pytest.raises(PETLError, match='heads must be of the same classes'):
        check_base(model, {**state, 'heads.0.weight': state['heads.0.weight'][:2]})


def test_alpha_is_a_share():
    case = next(c for c in method_cases() if c.id == 'lora')
    model, x = _tuned(case, 'mmpretrain_vit')
    state = _base('mmpretrain_vit', x).state_dict()
    with (
        pytest.raises(PETLError, match='alpha of at least 0 and at most 1'),
        interpolated(model, state, 1.5),
    ):
        pass


def test_of_equal_scores_the_lower_alpha_is_chosen():
    assert best_alpha([0.0, 0.5, 1.0], [1.0, 3.0, 3.0]) == 1
    with pytest.raises(PETLError, match='a score per alpha'):
        best_alpha([0.0], [])


def test_a_run_that_failed_is_trained_anew(tmp_path, monkeypatch):
    from mmpetl.analysis import further_runs
    from mmpetl.cli.commands.analyse import wise as command

    store = make_bench(tmp_path, tasks=['digits'], methods=['LoRA'], seeds=[1])
    job = Job('mini/digits', 'LoRA', seed=2)
    store.write(Record(job, 'failed'))

    def run(jobs, *args):
        raise PETLError(f'trains {jobs[0].id}')

    monkeypatch.setattr(further_runs, 'run_jobs', run)
    monkeypatch.setattr(command, 'held_out_jobs', lambda *args: ({'LoRA': job}, None))
    args = command.make_parser().parse_args([str(tmp_path), '--methods', 'LoRA'])
    args.out = tmp_path
    with pytest.raises(PETLError, match='trains'):
        command.compare(args, tmp_path)
