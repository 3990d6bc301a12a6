"""The switch that tells deltas which task a forward pass is for."""

from __future__ import annotations

import pytest
import tiny
import torch

from mmpetl.core import PETLError, disable, inject
from mmpetl.core.tasks import TaskSwitch, task_features, task_switch

CASES = {
    case.name: case
    for case in tiny.method_cases()
    if case.build().tasks and ':' not in case.id
}
METHODS = {name: case.build().config() for name, case in CASES.items()}
"""Those that tell tasks apart."""

TASKS = ['seg', 'depth', 'edges']


def tuned(name: str, tasks=TASKS, stem: str = 'mmpretrain_swin'):
    backbone = tiny.base(stem, torch.float64)
    model = inject(backbone, {**METHODS[name], 'tasks': tasks})
    tiny.shake_(model)
    model.eval()
    return model


@pytest.mark.parametrize('name', METHODS)
def test_tasks_get_features_of_their_own_in_any_order(name):
    model = tuned(name)
    x = tiny.images('mmpretrain_swin', dtype=torch.float64)
    all_of_them = task_features(model, x, TASKS)
    assert list(all_of_them) == TASKS
    some = task_features(model, x, ['edges', 'seg'])
    for task, maps in some.items():
        for got, want in zip(maps, all_of_them[task], strict=True):
            assert torch.equal(got, want)
    for a, b in zip(all_of_them['seg'], all_of_them['depth'], strict=True):
        assert not torch.allclose(a, b)


@torch.no_grad()
def test_every_backbone_serves_several_tasks_together(any_stem):
    """The features of a task are those of a pass for it alone."""
    x = tiny.images(any_stem, dtype=torch.float64)
    for name in [name for name, case in CASES.items() if tiny.fits(case, any_stem)]:
        model = tuned(name, stem=any_stem)
        together = task_features(model, x, TASKS)
        for task in TASKS:
            alone = tiny.tensors(task_features(model, x, [task])[task])
            for got, want in zip(tiny.tensors(together[task]), alone, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_outputs_in_front_of_the_streams_are_those_of_all_tasks(monkeypatch):
    model = tuned('MTLoRA')
    x = tiny.images('mmpretrain_swin', dtype=torch.float64)
    run = model.forward
    want = task_features(model, x, TASKS)
    monkeypatch.setattr(model, 'forward', lambda x: (x, *run(x)))
    for task, outs in task_features(model, x, TASKS).items():
        assert outs[0] is x
        assert all(map(torch.equal, outs[1:], want[task]))

    monkeypatch.setattr(model, 'forward', lambda x: (x,))
    with pytest.raises(PETLError, match='none with a part for each task'):
        task_features(model, x, TASKS)


@pytest.mark.parametrize('name', METHODS)
def test_checkpointed_blocks_meet_the_tasks_of_their_own_pass(name):
    x = tiny.images('mmpretrain_swin', dtype=torch.float64)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(4)
        model = tuned(name)
        for module in model.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = checkpointing
        model.train()
        features = task_features(model, x, TASKS)
        # Backward runs after the last task was asked for.
        sum(
            (i + 1) * tiny.loss_of(list(features[task])) for i, task in enumerate(TASKS)
        ).backward()
        grads.append(
            {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        )
    plain, again = grads
    for key, grad in plain.items():
        torch.testing.assert_close(again[key], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', METHODS)
def test_a_plain_call_with_several_tasks_is_refused(name):
    model, x = tuned(name), tiny.images('mmpretrain_swin', dtype=torch.float64)
    with pytest.raises(
        PETLError, match=r'3 tasks \(seg, depth, edges\).*task_features'
    ):
        model(x)
    assert len(tiny.outputs(tuned(name, ['seg']), x)) == 2


@pytest.mark.parametrize('name', METHODS)
def test_an_unknown_task_is_one_line(name):
    x = tiny.images('mmpretrain_swin', dtype=torch.float64)
    with pytest.raises(PETLError, match=r"'dept'. Did you mean 'depth'\?") as error:
        task_features(tuned(name), x, ['dept'])
    assert '\n' not in str(error.value)


def test_a_method_without_tasks_serves_all_by_one_pass():
    model = inject(tiny.base('mmpretrain_swin'), {'type': 'LoRA', 'rank': 2})
    x = tiny.images('mmpretrain_swin')
    assert task_switch(model) is None
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    features = task_features(model, x, TASKS)
    assert len(calls) == 1
    assert features['seg'] is features['edges']


def test_a_disabled_method_knows_of_no_tasks():
    model = tuned('VMTAdapter')
    x = tiny.images('mmpretrain_swin', dtype=torch.float64)
    disable(model)
    plain = inject(tiny.base('mmpretrain_swin', torch.float64), tiny.Nothing())
    assert task_switch(model) is None
    for got, want in zip(task_features(model, x, TASKS)['seg'], plain(x), strict=True):
        assert torch.equal(got, want)


def test_two_multi_task_methods_at_once_are_refused():
    model = tuned('VMTAdapter')
    second = {**METHODS['PolyhistorLite'], 'tasks': TASKS}
    with pytest.raises(PETLError, match='both tell tasks apart'):
        inject(model, second, slot='second')
    assert task_switch(model).once_for_all
    disable(model, '0')
    inject(model, second, slot='second')
    assert not task_switch(model).once_for_all


def test_asking_ends_with_its_block_even_after_an_error():
    switch = TaskSwitch(TASKS, once_for_all=False)
    with switch.asking(['depth']):
        assert switch.asked() == ('depth',)

    def fail():
        with switch.asking(['depth']):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(PETLError, match='3 tasks'):
        switch.asked()


@pytest.mark.parametrize(
    ('tasks', 'message'),
    [
        ([], 'at least one task'),
        (['seg', 'seg'], "'seg' twice"),
        (['a.b'], "identifiers as task names, got 'a.b'"),
        (['keys'], "cannot call a task 'keys'"),
    ],
)
@pytest.mark.parametrize('name', METHODS)
def test_task_names_are_distinct_identifiers(name, tasks, message):
    with pytest.raises(PETLError, match=message):
        inject(tiny.base('timm_vit'), {**METHODS[name], 'tasks': tasks})
