"""E2VPT's pruning: train prompts, score them, train what is left from the start."""

from __future__ import annotations

import json

import pytest
import torch
from killing import KillAt, Killed

from mmpetl.core import PETLError, delta_state
from mmpetl.methods.e2vpt import E2VPT

METHOD = {
    'type': 'E2VPT',
    'num_tokens': 4,
    'num_kv_tokens': 2,
    'prune': {'tokens': 0.5, 'segments': 0.75, 'num_segments': 4},
}


def equal_deltas(one, other) -> bool:
    mine, theirs = delta_state(one.model), delta_state(other.model)
    return all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_phases_end_the_same_after_a_kill_and_prompts_are_rewound(
    make_runner, tmp_path
):
    def prompts(folder, **more):
        train_cfg = {'type': 'mmpetl.E2VPTPromptLoop', 'max_epochs': 2}
        return make_runner(folder, method=METHOD, train_cfg=train_cfg, **more)

    def prune(folder, of):
        train_cfg = {'type': 'mmpetl.E2VPTPruneLoop', 'prompts': str(tmp_path / of)}
        return make_runner(
            folder, method=METHOD, train_cfg=train_cfg, param_scheduler=None
        )

    with pytest.raises(PETLError, match='no checkpoint of trained prompts at .*/none'):
        prune('early', 'none').train()
    whole = prompts('whole')
    start = {k: v.clone() for k, v in delta_state(whole.model).items()}
    whole.train()
    with pytest.raises(Killed):
        prompts('killed', hooks=[KillAt(7)]).train()
    resumed = prompts('killed', resume=True)
    resumed.train()
    assert equal_deltas(whole, resumed)
    runner = prune('pruned', 'whole')
    runner.train()
    assert equal_deltas(runner, whole), 'the pass has moved something'
    prune('again', 'killed').train()
    text = (tmp_path / 'pruned' / 'masks.json').read_text()
    assert (tmp_path / 'again' / 'masks.json').read_text() == text
    args = {k: v for k, v in METHOD.items() if k != 'type'}
    args = E2VPT.after_phases(args, tmp_path / 'pruned')
    assert 'prune' not in args
    assert sum(args['token_mask']) == 2
    assert [sum(row) for row in args['segment_mask']] == [1] * 4
    scores = torch.tensor(json.loads(text)['importance'])
    kept = torch.tensor(args['token_mask'], dtype=torch.bool)
    assert scores.sum(1)[kept].min() >= scores.sum(1)[~kept].max()
    method = {'type': 'E2VPT', **args}
    rewound = make_runner('rewound', method=method)
    begun = {k: v.clone() for k, v in delta_state(rewound.model).items()}
    assert all(torch.equal(begun[k], start[k]) for k in start if k.endswith('.E'))
    rewound.train()
    with pytest.raises(Killed):
        make_runner('cut', method=method, hooks=[KillAt(13)]).train()
    resumed = make_runner('cut', method=method, resume=True)
    resumed.train()
    assert equal_deltas(rewound, resumed)
    with pytest.raises(PETLError, match='holds 0 E2VPT that prune'):
        make_runner(
            'none',
            method=method,
            train_cfg={'type': 'mmpetl.E2VPTPruneLoop', 'prompts': 'x'},
            param_scheduler=None,
        ).train()


def test_an_average_is_what_is_scored_also_when_it_is_resumed(make_runner, tmp_path):
    hooks = {'custom_hooks': [{'type': 'mmpetl.TrainableEMAHook', 'decay': 0.5}]}
    train_cfg = {'type': 'mmpetl.E2VPTPromptLoop', 'max_epochs': 2}
    make_runner('prompts', method=METHOD, train_cfg=train_cfg, **hooks).train()
    train_cfg = {'type': 'mmpetl.E2VPTPruneLoop', 'prompts': str(tmp_path / 'prompts')}
    found = []
    for resume in (False, True):
        runner = make_runner(
            f'pruned-{resume}',
            method=METHOD,
            train_cfg=train_cfg,
            param_scheduler=None,
            resume=resume,
            **hooks,
        )
        runner.train()
        found.append(runner)
    assert equal_deltas(*found)
    texts = [
        (tmp_path / f'pruned-{r}' / 'masks.json').read_text() for r in (False, True)
    ]
    assert texts[0] == texts[1]
