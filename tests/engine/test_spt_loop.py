"""SPT's pass as a phase: what it leaves, and the run that follows."""

from __future__ import annotations

import json

import pytest
import torch
from killing import KillAt, Killed

from mmpetl.core import PETLError, count_trainable
from mmpetl.methods.spt import SPT

METHOD = {'type': 'SPT', 'rank': 2}


@pytest.fixture
def look(make_runner):
    """``look(folder, method, **train_cfg)``: a runner of the pass."""

    def make(folder='pass', method=METHOD, **train_cfg):
        train_cfg = {'type': 'mmpetl.SPTLoop', 'budget': 1500, **train_cfg}
        return make_runner(
            folder, method=method, train_cfg=train_cfg, param_scheduler=None
        )

    return make


def test_a_pass_is_repeatable_and_the_run_after_it_resumes(look, make_runner, tmp_path):
    runner = look(batches=2)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    base = [k for k in before if k.startswith('backbone.')]
    assert all(torch.equal(after[k], before[k]) for k in base)
    look('again', batches=2).train()
    one, other = tmp_path / 'pass' / 'spt.json', tmp_path / 'again' / 'spt.json'
    assert one.read_bytes() == other.read_bytes()
    found = json.loads((tmp_path / 'pass' / 'spt.json').read_text())
    assert abs(found['params'] - 1500) < 200
    args = {k: v for k, v in METHOD.items() if k != 'type'}
    method = {'type': 'SPT', **SPT.after_phases(args, tmp_path / 'pass')}
    whole = make_runner('whole', method=method)
    got = count_trainable(whole.model.backbone)
    assert got.delta + got.selected == found['params']
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', method=method, hooks=[KillAt(13)]).train()
    resumed = make_runner('killed', method=method, resume=True)
    resumed.train()
    state, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(state[k], other[k]) for k in state)
    with pytest.raises(PETLError, match='holds 0 SPT whose parameters are to be found'):
        look('found', method=method).train()


def test_a_phase_of_a_config_reads_training_data_only():
    from mmengine.config import Config

    from mmpetl.engine.loops import SPTLoop

    config = Config({'train_cfg': {'max_epochs': 3}, 'val_cfg': {}})
    SPTLoop.prepare(config, {'budget': 7}, {})
    assert config.train_cfg == {'type': 'mmpetl.SPTLoop', 'budget': 7}
    assert config.val_dataloader is config.val_cfg is config.val_evaluator is None
    assert SPTLoop.cost({}, 100) == (0.0, 16)
