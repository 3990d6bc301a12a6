"""NOAH's phases: train a supernet, search in it, train what was found."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
import torch
from killing import KillAt, Killed, in_a_child
from mmengine.hooks import Hook

from mmpetl.core import PETLError, delta_state
from mmpetl.core.supernet import supernet_of
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.loops.noah import NOAHSearchLoop
from mmpetl.engine.loops.search import read_search
from mmpetl.methods.noah import WIDTHS, SearchSpace, Subnet

SPACE = {'widths': [1, 2, 3], 'depths': [1, 2]}
HELD = {'num_tokens': 3, 'rank': 3, 'hidden_dims': 3}
METHOD = {'type': 'NOAH', **HELD, 'space': SPACE}
PLAN = {
    'generations': 3,
    'population': 6,
    'parents': 3,
    'mutations': 2,
    'crossovers': 2,
}

# ------------------------------------------------------------------- phase 1


def assert_equal_weights(one, other) -> None:
    mine, theirs = delta_state(one.model), delta_state(other.model)
    assert list(mine) == list(theirs)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


@pytest.fixture
def supernet(make_runner):
    """``supernet(folder, **overrides)``: a runner of phase 1."""

    def make(folder='supernet', max_epochs=4, seed=0, **overrides):
        train_cfg = {
            'type': 'mmpetl.NOAHSupernetLoop',
            'max_epochs': max_epochs,
            'val_interval': max_epochs,
            'seed': seed,
        }
        return make_runner(
            folder, **{'method': METHOD, 'train_cfg': train_cfg, **overrides}
        )

    return make


@pytest.fixture
def search(make_runner, tmp_path):
    """``search(folder, **train_cfg)``: a runner of phase 2."""

    def make(folder='search', method=None, overrides=None, **train_cfg):
        return make_runner(
            folder,
            method=method or METHOD,
            train_cfg={
                'type': 'mmpetl.NOAHSearchLoop',
                'supernet': str(tmp_path / 'supernet'),
                'evolution': PLAN,
                **train_cfg,
            },
            param_scheduler=None,
            **(overrides or {}),
        )

    return make


def test_a_supernet_run_killed_in_its_first_epoch_ends_the_same(supernet):
    whole = supernet('whole')
    whole.train()
    with pytest.raises(Killed):
        supernet('killed', hooks=[KillAt(3)]).train()
    resumed = supernet('killed', resume=True)
    resumed.train()
    assert resumed.iter == 20
    assert_equal_weights(whole, resumed)


def test_a_supernet_run_survives_kill_9(supernet):
    whole = supernet('whole')
    whole.train()
    code = in_a_child(
        lambda: supernet('killed', hooks=[KillAt(13, signal.SIGKILL)]).train()
    )
    assert code == -signal.SIGKILL
    resumed = supernet('killed', resume=True)
    resumed.train()
    assert_equal_weights(whole, resumed)


def test_another_subnet_is_drawn_at_each_step_and_the_largest_is_left(supernet):
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            net = runner.train_loop.supernet
            seen.append(tuple(d.width for _, _, d in net.deltas))

    runner = supernet(hooks=[Watch()])
    runner.train()
    assert len(seen) == 20
    assert len(set(seen)) > 10
    assert all(set(widths) <= {0, 1, 2, 3} for widths in seen)
    assert {d.width for _, _, d in runner.train_loop.supernet.deltas} == {3}


def test_only_slices_that_were_drawn_move(supernet):
    """A space of width 1 in the first block, in a supernet that holds more."""
    method = {**METHOD, 'space': {'widths': [1], 'depths': [1]}}
    runner = supernet(
        method=method,
        optim_wrapper={
            'optimizer': {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.0},
            'constructor': 'mmpetl.OwnerOptimWrapperConstructor',
        },
    )
    before = {k: v.clone() for k, v in delta_state(runner.model).items()}
    runner.train()
    moved = {
        k.rpartition('petl.')[2]: (v != before[k])
        for k, v in delta_state(runner.model).items()
        if 'layers.0' in k
    }
    after = delta_state(runner.model)
    assert all(torch.equal(after[k], before[k]) for k in after if 'layers.1' in k)
    for key, where in moved.items():
        tall = key.endswith(('.E', '.A', 'down.weight', 'down.bias'))
        if key.endswith('up.bias'):
            assert where.any()
        else:
            inside, outside = (where[:1], where[1:])
            if not tall:
                inside, outside = where[:, :1], where[:, 1:]
            assert inside.any(), key
            assert not outside.any(), key


def test_phase_1_needs_a_supernet(supernet):
    fixed = {'type': 'NOAH', **HELD}
    with pytest.raises(PETLError, match='0 supernets, one is needed'):
        supernet(method=fixed).train()


def test_several_processes_must_look_for_unused_parameters(supernet, monkeypatch):
    import torch.distributed as dist

    from mmpetl.engine import PETLDistributedDataParallel

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(port))
    plain = supernet('plain')
    plain.train()
    dist.init_process_group('gloo', rank=0, world_size=1)
    try:
        strict = supernet('strict')
        strict.model = PETLDistributedDataParallel(strict.model)
        with pytest.raises(PETLError, match='find_unused_parameters=True'):
            strict.train()
        runner = supernet('wrapped')
        runner.model = PETLDistributedDataParallel(
            runner.model, find_unused_parameters=True
        )
        runner.train()
    finally:
        dist.destroy_process_group()
    theirs = delta_state(runner.model.module)
    for key, value in delta_state(plain.model).items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------- phase 2


@pytest.fixture
def trained(supernet, tmp_path):
    supernet(max_epochs=2).train()
    return tmp_path / 'supernet'


def test_the_search_leaves_a_log_a_picture_and_what_it_found(trained, search, tmp_path):
    runner = search(limit=1000)
    runner.train()
    folder = tmp_path / 'search'
    lines = [json.loads(t) for t in (folder / 'search.jsonl').open()]
    settings = lines[0]['settings']
    assert settings['space'] == SPACE
    assert settings['limit'] == 1000
    scored = [line for line in lines if 'origin' in line]
    assert [line['done'] for line in lines if 'done' in line] == [0, 1, 2, 3]
    found = json.loads((folder / 'found.json').read_text())
    best = max(scored, key=lambda c: (c['score'], -c['params']))
    assert {k: found[k] for k in (*WIDTHS, 'params', 'score')} == {
        k: best[k] for k in (*WIDTHS, 'params', 'score')
    }
    net = supernet_of(runner.model)
    for line in scored:
        assert net.size(Subnet.of(line)) == line['params'] <= 1000
    assert (folder / 'search.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert not list(folder.glob('*.part'))
    assert len({line['score'] for line in scored}) > 1, 'the scores say nothing'


def test_scores_are_those_of_the_ordinary_validation(
    trained, search, make_runner, tmp_path
):
    """A stand-alone model with the slices of the supernet gets the same accuracy."""
    runner = search()
    runner.train()
    found = json.loads((tmp_path / 'search' / 'found.json').read_text())
    # The same pictures, flipped as they were when the search read them.
    batches = runner.train_loop._batches
    fixed = make_runner('fixed', method={'type': 'NOAH', **Subnet.of(found).as_dict()})
    mine, held = delta_state(fixed.model), delta_state(runner.model)
    with torch.no_grad():
        for key, value in mine.items():
            value.copy_(held[key][tuple(slice(n) for n in value.shape)])
    right = count = 0
    fixed.model.eval()
    with torch.no_grad():
        for batch in batches:
            for sample in fixed.model.val_step(batch):
                right += int(sample.pred_label) == int(sample.gt_label)
                count += 1
    assert count == 40
    assert 100 * right / count == pytest.approx(found['score'], abs=1e-4)


def test_a_search_killed_in_its_first_generation_ends_the_same(
    trained, search, tmp_path, monkeypatch
):
    search('whole').train()

    evaluate, asked = NOAHSearchLoop.evaluate, []

    def killing(self, subnet):
        asked.append(subnet)
        if len(asked) == 2:
            raise Killed
        return evaluate(self, subnet)

    with monkeypatch.context() as patch:
        patch.setattr(NOAHSearchLoop, 'evaluate', killing)
        with pytest.raises(Killed):
            search('killed').train()
    search('killed', overrides={'resume': True}).train()
    for name in ('search.jsonl', 'found.json'):
        whole = (tmp_path / 'whole' / name).read_text()
        assert (tmp_path / 'killed' / name).read_text() == whole


def test_a_search_survives_kill_9_and_does_not_score_twice(
    trained, search, tmp_path, monkeypatch
):
    search('whole').train()
    evaluate, asked = NOAHSearchLoop.evaluate, []

    def counting(self, subnet):
        asked.append(subnet)
        if in_child and len(asked) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(self, subnet)

    monkeypatch.setattr(NOAHSearchLoop, 'evaluate', counting)
    in_child = True
    assert in_a_child(lambda: search('killed').train()) == -signal.SIGKILL
    in_child = False
    resumed = search('killed', overrides={'resume': True})
    resumed.train()
    whole = (tmp_path / 'whole' / 'search.jsonl').read_text()
    assert (tmp_path / 'killed' / 'search.jsonl').read_text() == whole
    every = sum('origin' in json.loads(t) for t in whole.splitlines())
    assert len(asked) == every - 6, 'the first generation of six was scored again'


@pytest.mark.parametrize(
    'average',
    [
        {'type': 'mmpetl.TrainableEMAHook', 'decay': 0.5},
        {'type': 'mmengine.EMAHook', 'momentum': 0.5},
        {'type': 'mmpretrain.EMAHook', 'momentum': 0.5},
    ],
    ids=['ours', 'mmengine', 'mmpretrain'],
)
def test_an_average_is_what_is_searched_also_when_it_is_resumed(
    supernet, search, tmp_path, monkeypatch, average
):
    hooks = {'custom_hooks': [average]}
    supernet(max_epochs=2, **hooks).train()
    file = torch.load(tmp_path / 'supernet' / 'epoch_2.pth', weights_only=True)
    search('whole', overrides=hooks).train()
    evaluate, asked = NOAHSearchLoop.evaluate, []

    def killing(self, subnet):
        asked.append(subnet)
        if len(asked) == 8:
            raise Killed
        return evaluate(self, subnet)

    with monkeypatch.context() as patch:
        patch.setattr(NOAHSearchLoop, 'evaluate', killing)
        with pytest.raises(Killed):
            search('killed', overrides=hooks).train()
    assert (tmp_path / 'killed' / 'search.jsonl').is_file()
    resumed = search('killed', overrides={'resume': True, **hooks})
    resumed.train()
    assert resumed._resume is True, 'it stays a resumed run'
    for key, value in delta_state(resumed.model).items():
        assert torch.equal(value, file['state_dict'][key]), key
    for name in ('search.jsonl', 'found.json'):
        whole = (tmp_path / 'whole' / name).read_text()
        assert (tmp_path / 'killed' / name).read_text() == whole


def test_an_interrupted_write_keeps_the_generations_before(
    trained, search, tmp_path, monkeypatch
):
    put, count = AtomicLocalBackend.put, 0

    def fail_third(self, obj, path):
        nonlocal count
        count += str(path).endswith('search.jsonl')
        if count == 3:
            raise OSError('disk full')
        put(self, obj, path)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicLocalBackend, 'put', fail_third)
        with pytest.raises(OSError, match='disk full'):
            search().train()
    journal = tmp_path / 'search' / 'search.jsonl'
    assert read_search(journal, {}, SearchSpace.of(SPACE, 2))[1] == 2
    search(overrides={'resume': True}).train()
    assert (tmp_path / 'search' / 'found.json').is_file()


def test_a_finished_search_resumed_with_more_generations_goes_on(
    trained, search, tmp_path
):
    search('short', evolution={**PLAN, 'generations': 1}).train()
    search('short', overrides={'resume': True}).train()
    search('whole').train()
    for name in ('search.jsonl', 'found.json'):
        whole = (tmp_path / 'whole' / name).read_text()
        assert (tmp_path / 'short' / name).read_text() == whole


def test_without_resume_a_search_starts_anew(trained, search, tmp_path):
    search().train()
    search(seed=1).train()
    first = (tmp_path / 'search' / 'search.jsonl').open().readline()
    assert json.loads(first)['settings']['seed'] == 1


def test_resuming_with_another_space_is_refused(trained, search):
    search().train()
    other = {**METHOD, 'space': {'widths': [1, 2], 'depths': [1, 2]}}
    with pytest.raises(
        PETLError,
        match=r"was begun with space={'widths': \[1, 2, 3\].*now it is {'widths': \[1, "
        r'2\].*another work folder',
    ) as error:
        search(method=other, overrides={'resume': True}).train()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('change', [{'limit': 1000}, {'seed': 5}])
def test_resuming_with_other_settings_is_refused(trained, search, change):
    search().train()
    key, value = next(iter(change.items()))
    with pytest.raises(PETLError, match=f'was begun with {key}=.*now it is {value}'):
        search(overrides={'resume': True}, **change).train()


def test_resuming_on_another_supernet_is_refused(trained, supernet, search, tmp_path):
    search().train()
    supernet('other', max_epochs=2, seed=1).train()
    with pytest.raises(PETLError, match='was begun with supernet='):
        search(supernet=str(tmp_path / 'other'), overrides={'resume': True}).train()


def test_a_supernet_of_another_space_is_refused(trained, search):
    other = {**METHOD, 'space': {'widths': [1, 2], 'depths': [1, 2]}}
    with pytest.raises(PETLError, match='the delta was made by .*use the same arg'):
        search(method=other).train()


def test_a_budget_that_no_subnet_of_the_supernet_meets_is_refused(search):
    with pytest.raises(PETLError, match=r'no subnet of the space has between 0 and 10'):
        search(limit=10).train()


def test_a_search_without_a_supernet_is_refused(search):
    with pytest.raises(PETLError, match='no checkpoint of a supernet.*train one first'):
        search().train()
    with pytest.raises(PETLError, match='0 supernets'):
        search(method={'type': 'NOAH'}).train()


def test_a_search_without_validation_data_is_refused(trained, search):
    runner = search()
    runner._val_loop = None
    with pytest.raises(PETLError, match='scores subnets on validation data'):
        runner.train()


def test_an_unknown_metric_or_setting_is_named(trained, search):
    with pytest.raises(PETLError, match=r"'mIoU', which .* reports: accuracy/top1"):
        search(metric='mIoU').train()
    with pytest.raises(PETLError, match="no setting 'size'; it takes: generations"):
        search(evolution={'size': 3}).train()


# ------------------------------------------------------------------- phase 3


@pytest.fixture
def found(trained, search, tmp_path):
    search().train()
    return {'type': 'NOAH', 'found': str(tmp_path / 'search' / 'found.json')}


def test_the_found_subnet_is_trained_from_fresh_modules(
    found, trained, make_runner, tmp_path
):
    runner = make_runner('retrain', method=found)
    start = {k: v.clone() for k, v in delta_state(runner.model).items()}
    content = torch.load(trained / 'epoch_2.pth', weights_only=True)['state_dict']
    deltas = [k for k in start if '.petl.' in k]
    assert deltas
    for key in deltas:
        inherited = content[key][tuple(slice(n) for n in start[key].shape)]
        if start[key].any():
            assert not torch.equal(start[key], inherited), key
        elif inherited.any():
            assert key.endswith(('.B', '.bias', 'up.weight')), key
    runner.train()
    saved = torch.load(tmp_path / 'retrain' / 'epoch_4.pth', weights_only=True)
    method = saved['meta']['mmpetl']['method']
    widths = json.loads((tmp_path / 'search' / 'found.json').read_text())
    assert {n: method[n] for n in WIDTHS} == {n: widths[n] for n in WIDTHS}
    assert method['found'] is None


@pytest.mark.slow
def test_a_killed_retraining_resumes_to_the_same_weights(found, make_runner):
    whole = make_runner('whole', method=found)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', method=found, hooks=[KillAt(13)]).train()
    resumed = make_runner('killed', method=found, resume=True)
    resumed.train()
    assert_equal_weights(whole, resumed)


@pytest.mark.slow
def test_a_retrained_delta_loads_without_the_search(found, make_runner, tmp_path):
    trained = make_runner('retrain', method=found)
    trained.train()
    file = tmp_path / 'retrain' / 'epoch_4.pth'
    method = torch.load(file, weights_only=True)['meta']['mmpetl']['method']
    (tmp_path / 'search' / 'found.json').unlink()
    loaded = make_runner('loaded', method=method, load_from=str(file))
    loaded.load_or_resume()
    assert_equal_weights(trained, loaded)


def test_retraining_without_a_found_subnet_is_refused(make_runner, tmp_path):
    method = {'type': 'NOAH', 'found': str(tmp_path / 'found.json')}
    with pytest.raises(PETLError, match='there is no found subnet') as error:
        make_runner(method=method)
    assert '\n' not in str(error.value)
