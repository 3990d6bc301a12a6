"""GLoRA's phases: train a supernet of paths, search in it, train and fold the found."""

from __future__ import annotations

import json

import pytest
import torch
from killing import KillAt, Killed

from mmpetl.core import PETLError, count_trainable, delta_state, fold
from mmpetl.core.supernet import supernet_of
from mmpetl.engine.loops.glora import GLoRASearchLoop
from mmpetl.methods.glora import GLoRA

METHOD = {'type': 'GLoRA', 'rank': 2, 'space': {'B': ['lora', 'none']}}
PLAN = {
    'generations': 2,
    'population': 4,
    'parents': 2,
    'mutations': 2,
    'crossovers': 1,
}


@pytest.fixture
def supernet(make_runner):
    """``supernet(folder, **overrides)``: a runner of phase 1."""

    def make(folder='supernet', **overrides):
        train_cfg = {
            'type': 'mmpetl.GLoRASupernetLoop',
            'max_epochs': 2,
            'val_interval': 2,
        }
        return make_runner(
            folder, **{'method': METHOD, 'train_cfg': train_cfg, **overrides}
        )

    return make


@pytest.fixture
def search(make_runner, tmp_path):
    """``search(folder, **overrides)``: a runner of phase 2."""

    def make(folder='search', limit=5000, **overrides):
        train_cfg = {
            'type': 'mmpetl.GLoRASearchLoop',
            'supernet': str(tmp_path / 'supernet'),
            'evolution': PLAN,
            'limit': limit,
        }
        overrides |= {'method': METHOD, 'train_cfg': train_cfg}
        return make_runner(folder, param_scheduler=None, **overrides)

    return make


def test_a_killed_supernet_ends_the_same_and_draws_by_layer(supernet):
    whole, drawn = supernet('whole'), []
    net = whole.train_loop.supernet
    activate = net.activate
    net.activate = lambda subnet: drawn.append(subnet) or activate(subnet)
    whole.train()
    steps = [subnet for subnet in drawn if subnet != net.space.largest()]
    assert len(set(steps)) == 10
    assert all(len({paths for _, paths in subnet.paths}) > 3 for subnet in steps)
    with pytest.raises(Killed):
        supernet('killed', hooks=[KillAt(8)]).train()
    resumed = supernet('killed', resume=True)
    resumed.train()
    mine, theirs = delta_state(whole.model), delta_state(resumed.model)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_killed_search_ends_the_same_and_what_it_found_trains_and_folds(
    supernet, search, make_runner, tmp_path, monkeypatch
):
    supernet().train()
    search('whole').train()
    evaluate, asked = GLoRASearchLoop.evaluate, []

    def killing(self, subnet):
        asked.append(subnet)
        if len(asked) == 6:
            raise Killed
        return evaluate(self, subnet)

    with monkeypatch.context() as patch:
        patch.setattr(GLoRASearchLoop, 'evaluate', killing)
        with pytest.raises(Killed):
            search('killed').train()
    resumed = search('killed', resume=True)
    resumed.train()
    for name in ('search.jsonl', 'found.json'):
        whole = (tmp_path / 'whole' / name).read_text()
        assert (tmp_path / 'killed' / name).read_text() == whole
    found = json.loads(whole)
    assert found['search']['generations'] == 2
    args = {k: v for k, v in METHOD.items() if k != 'type'}
    args = GLoRA.after_phases(args, tmp_path / 'killed')
    assert args == {'rank': 2, 'found': found['paths']}
    runner = make_runner('found', method={'type': 'GLoRA', **args})
    assert count_trainable(runner.model.backbone).delta == found['params'] <= 5000
    runner.train()
    backbone = runner.model.backbone.eval()
    x = torch.rand(2, 3, 32, 32)
    want = backbone(x)[0]
    folded = fold(backbone)(x)[0]
    torch.testing.assert_close(folded, want, rtol=1e-4, atol=1e-5)


def test_a_budget_is_of_the_paths_that_act(supernet, search):
    net = supernet_of(search().model)
    sizes = [net.size(s) for s in (net.space.smallest(), net.space.largest())]
    assert sizes == [0, count_trainable(search('other').model.backbone).delta]
    with pytest.raises(PETLError, match='no subnet of the space has between 1 and 0'):
        search(limit=0).train()  # and without a path there is nothing to train
