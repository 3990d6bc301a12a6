"""Guards, optimizer groups and the efficiency record."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.hooks import Hook

from mmpetl.core import PETLError
from mmpetl.engine import OwnerOptimWrapperConstructor


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(make_runner, tmp_path):
    runner = make_runner(spoil=5)
    with pytest.raises(PETLError, match=r'the loss is nan .*picture_\d+\.jpg') as info:
        runner.train()
    assert '\n' not in str(info.value)
    for value in runner.model.state_dict().values():
        assert torch.isfinite(value).all()


def test_a_moved_base_is_noticed(make_runner):
    class Mover(Hook):
        def after_train_epoch(self, runner):
            with torch.no_grad():
                runner.model.backbone.layers[0].attn.qkv.weight[0, 0] += 1e-3

    runner = make_runner(hooks=[Mover()])
    with pytest.raises(PETLError, match=r'1 frozen parameters changed during training'):
        runner.train()


def test_a_thawed_base_is_noticed(make_runner):
    class Thaw(Hook):
        priority = 'HIGHEST'

        def before_train(self, runner):
            runner.model.backbone.layers[0].attn.qkv.weight.requires_grad_(True)

    runner = make_runner(hooks=[Thaw()])
    with pytest.raises(PETLError, match='belongs to the frozen base but would train'):
        runner.train()


def constructor(**paramwise):
    return OwnerOptimWrapperConstructor(
        {'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}}, paramwise
    )


def test_groups_are_by_owner_and_hold_all_that_trains(make_runner):
    model = make_runner(method={'type': 'BitFit'}).model
    groups = {g['name']: g for g in constructor(head={'lr_mult': 10}).groups(model)}
    assert set(groups) == {'selected_no_decay', 'head', 'head_no_decay'}
    assert groups['head']['lr'] == pytest.approx(1e-2)
    assert groups['head']['weight_decay'] == pytest.approx(0.1)
    assert groups['selected_no_decay']['weight_decay'] == 0
    handed = {id(p) for g in groups.values() for p in g['params']}
    assert handed == {id(p) for p in model.parameters() if p.requires_grad}


def test_one_decay_for_all_on_request(make_runner):
    model = make_runner(method={'type': 'BitFit'}).model
    groups = constructor(decay_all=True).groups(model)
    assert {g['weight_decay'] for g in groups} == {0.1}


def test_unknown_group_options_are_refused():
    with pytest.raises(PETLError, match=r"no key 'heads'.* Did you mean 'head'"):
        constructor(heads={'lr_mult': 2})
    with pytest.raises(PETLError, match='takes lr_mult and decay_mult'):
        constructor(head={'lr': 2})


def test_the_record_holds_counts_time_memory_and_ppt(make_runner, tmp_path):
    runner = make_runner()
    runner.train()
    record = json.loads((tmp_path / 'run' / 'efficiency.json').read_text())
    # 2 blocks x (q, v) x (A, B) x rank 2 x width 32; head 32 x 10 + 10
    assert record['counts']['delta'] == 2 * 2 * 2 * 2 * 32
    assert record['counts']['head'] == 330
    assert record['steps'] == 20
    assert record['step_time_s'] > 0
    assert record['peak_memory_bytes'] > 0
    score = record['val']['accuracy/top1'] / 100
    assert record['val']['PPT/accuracy/top1'] == pytest.approx(
        score * 0.99997776, rel=1e-5
    )


def test_the_builder_says_loudly_that_the_base_is_random(make_runner, tmp_path):
    make_runner(log_level='INFO')
    logs = ''.join(p.read_text() for p in (tmp_path / 'run').rglob('*.log'))
    assert 'THE BASE IS RANDOM' in logs
