"""Outputs and gradients equal those of the authors' code, in float64."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, LAYERS
from reference import DATA, Case, Reference, Renamed, facts, far, model_of

from mmpetl.core import fold
from mmpetl.core.inject import injection_of

TOLERANCE = 1e-6
MERGED = [
    name
    for name, case in CASES.items()
    if any(key.startswith('merged/') for key in facts(case)['tensors'])
]


@pytest.fixture(params=CASES, scope='module')
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_every_file_is_held_against_a_backbone_or_a_layer() -> None:
    held = {c.file for c in CASES.values()} | LAYERS
    assert {p.stem for p in DATA.glob('*.npz')} == held


def test_outputs_loss_and_gradients_equal_the_reference(case: Case) -> None:
    reference = Reference(case)
    model = model_of(case, reference)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    x = reference.tensors['input'].double().requires_grad_()
    ys = model(x)
    for ours, theirs in zip(ys, reference.outputs(), strict=True):
        assert far(ours, theirs) < TOLERANCE
    loss = sum((y**2).sum() for y in ys)
    assert loss.item() == pytest.approx(
        reference.facts['numerics']['loss_value'], rel=TOLERANCE
    )
    loss.backward()
    assert far(x.grad, reference.tensors['grad_input'].double()) < TOLERANCE
    params = dict(model.named_parameters())
    # A gradient that is zero but for rounding has no scale of its own.
    gradients = reference.group('grad')
    largest = max(g.abs().max().item() for g in gradients.values())
    compared = set()
    for name, theirs in gradients.items():
        renamed = Renamed(name, case.rules)
        if renamed.name is None:
            continue
        ours = renamed.place(params[renamed.name].grad)
        theirs = renamed.convert(theirs, ours, grad=True)
        worst = (ours - theirs).abs().max().item()
        scale = max(theirs.abs().max().item(), 1e-6 * largest)
        assert worst < TOLERANCE * scale, name
        compared.add(renamed.name)
    theirs = {Renamed(n, case.rules).name for n in reference.trainable()}
    assert trainable == theirs - {None}
    assert compared == trainable


def test_buffers_equal_the_reference(case: Case) -> None:
    reference = Reference(case)
    if case.buffers is not None:  # They are filled from the reference.
        assert case.buffers(reference.group('buffer'))
        return
    buffers = dict(model_of(case, reference).named_buffers())
    for name, theirs in reference.group('buffer').items():
        renamed = Renamed(name, case.rules)
        wanted = theirs if theirs.is_floating_point() else theirs.to(torch.int64)
        assert torch.equal(buffers[renamed.name], wanted), name


@pytest.mark.parametrize('name', MERGED)
@torch.no_grad()
def test_the_fold_equals_the_merge_of_the_reference(name: str) -> None:
    case = CASES[name]
    reference = Reference(case)
    model = model_of(case, reference)
    fold(model.backbone)
    with pytest.raises(ValueError, match='holds 0 injected'):
        injection_of(model.backbone)
    params = dict(model.named_parameters())
    merged = reference.group('merged')
    assert merged
    for key, theirs in merged.items():
        ours = params[Renamed(key, case.rules).name]
        assert far(ours, theirs) < TOLERANCE, key
    x = reference.tensors['input'].double()
    kept = reference.tensors.get('merged_output')
    theirs = reference.outputs()[0] if kept is None else kept.double()
    assert far(model(x)[0], theirs) < TOLERANCE
