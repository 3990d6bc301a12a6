"""Checkpoints: small, whole, safe to load, and resumed to the same result."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from killing import KillAt, Killed
from mmengine.fileio import FileClient, HardDiskBackend, LocalBackend, register_backend
from pictures import BACKBONE

from mmpetl.core import PETLError, delta_state
from mmpetl.engine import DeltaCheckpointHook
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.resuming import rng_state, set_rng_state


def assert_equal_weights(one, other) -> None:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert list(mine) == list(theirs)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('kill_at', [3, 8, 13])
def test_a_killed_run_resumes_to_the_same_weights(make_runner, by_epoch, kill_at):
    whole = make_runner('whole', by_epoch=by_epoch)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', by_epoch=by_epoch, hooks=[KillAt(kill_at)]).train()
    resumed = make_runner('killed', by_epoch=by_epoch, resume=True)
    resumed.train()
    assert resumed.iter == 20
    assert_equal_weights(whole, resumed)


SEVERAL = [
    {'type': 'BitFit'},
    {'type': 'LoRA', 'rank': 2, 'drop_rate': 0.1, 'blocks': [1]},
    {'type': 'VPTDeep', 'num_tokens': 2},
]


def test_a_killed_run_of_several_methods_resumes_to_the_same_weights(make_runner):
    whole = make_runner('whole', method=SEVERAL)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', method=SEVERAL, hooks=[KillAt(13)]).train()
    with pytest.raises(PETLError, match='give the settings of the run again'):
        make_runner('killed', method=SEVERAL[:2], resume=True).train()
    resumed = make_runner('killed', method=SEVERAL, resume=True)
    resumed.train()
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_resuming_with_data_workers_gives_the_same_weights(make_runner, by_epoch):
    whole = make_runner('whole', by_epoch=by_epoch, num_workers=1)
    whole.train()
    with pytest.raises(Killed):
        make_runner(
            'killed', by_epoch=by_epoch, num_workers=1, hooks=[KillAt(13)]
        ).train()
    resumed = make_runner('killed', by_epoch=by_epoch, num_workers=1, resume=True)
    resumed.train()
    assert_equal_weights(whole, resumed)


def test_a_different_seed_gives_other_weights(make_runner):
    """Else the tests above would hold whatever was resumed."""
    one, other = make_runner('one'), make_runner('other', randomness={'seed': 43})
    one.train()
    other.train()
    key = 'head.fc.weight'
    assert not torch.equal(one.model.state_dict()[key], other.model.state_dict()[key])


def test_checkpoints_hold_the_delta_and_load_without_pickled_code(
    make_runner, tmp_path
):
    runner = make_runner()
    runner.train()
    files = sorted(p.name for p in (tmp_path / 'run').glob('epoch_*.pth'))
    assert files == ['epoch_3.pth', 'epoch_4.pth']
    content = torch.load(tmp_path / 'run' / 'epoch_4.pth', weights_only=True)
    assert set(content['state_dict']) == set(delta_state(runner.model))
    assert not [k for k in content['state_dict'] if 'qkv.weight' in k]
    meta = content['meta']['mmpetl']
    assert meta['method']['type'] == 'LoRA'
    assert meta['backbone']['type'] == 'mmpretrain.VisionTransformer'
    last = (tmp_path / 'run' / 'last_checkpoint').read_text()
    assert last == 'epoch_4.pth'
    assert not list((tmp_path / 'run').glob('*.part'))


def test_the_best_checkpoint_is_kept(make_runner, tmp_path):
    make_runner().train()
    assert len(list((tmp_path / 'run').glob('best_*.pth'))) == 1


def test_loading_restores_what_was_saved(make_runner, tmp_path):
    trained = make_runner()
    trained.train()
    loaded = make_runner('other', load_from=str(tmp_path / 'run' / 'epoch_4.pth'))
    loaded.load_or_resume()
    assert_equal_weights(trained, loaded)


REFUSED = {
    'method': (
        {'method': {'type': 'SSF'}},
        'the delta is of LoRA, the model has SSF',
    ),
    'arguments': (
        {'method': {'type': 'LoRA', 'rank': 3}},
        "the delta was made by .*'rank': 2.* the model has .*'rank': 3",
    ),
    'depth': (
        {'depth': 3},
        'a backbone with 2 blocks, this one has 3',
    ),
    'base': (
        {'randomness': {'seed': 7}},
        r'the base \(no name\) \[\w{16}\], this model has \(no name\) \[\w{16}\]',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_delta_for_something_else_is_refused(make_runner, tmp_path, case):
    make_runner().train()
    changes, message = dict(REFUSED[case][0]), REFUSED[case][1]
    if 'depth' in changes:
        arch = {**BACKBONE['arch'], 'num_layers': changes.pop('depth')}
        changes['backbone'] = {**BACKBONE, 'arch': arch}
    file = str(tmp_path / 'run' / 'epoch_4.pth')
    other = make_runner('other', load_from=file, **changes)
    before = {k: v.clone() for k, v in other.model.state_dict().items()}
    with pytest.raises(PETLError, match=message):
        other.load_or_resume()
    for key, value in other.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_foreign_checkpoint_is_refused(make_runner, tmp_path):
    file = tmp_path / 'foreign.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': {}}, file)
    runner = make_runner(load_from=str(file))
    with pytest.raises(PETLError, match='is no delta of mmpetl.*model.backbone.check'):
        runner.load_or_resume()


def test_a_checkpoint_cannot_run_code(make_runner, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'owned'),))

    file = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': {'x': Evil()}}, file)
    runner = make_runner(load_from=str(file))
    with pytest.raises(pickle.UnpicklingError):
        runner.load_or_resume()
    assert not (tmp_path / 'owned').exists()


def test_a_resumed_config_text_is_not_run(make_runner, tmp_path):
    make_runner().train()
    file = tmp_path / 'run' / 'epoch_4.pth'
    content = torch.load(file, weights_only=True)
    content['meta']['config'] = f'import os; os.mkdir({str(tmp_path / "owned")!r})'
    torch.save(content, file)
    make_runner('run', resume=True).train()
    assert not (tmp_path / 'owned').exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / 'a.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', file)

    def fail(*args):
        raise OSError('power is gone')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='power'):
        backend.put(b'new', file)
    assert file.read_bytes() == b'old'


def test_checkpoints_of_a_remote_folder_go_there(make_runner, tmp_path, monkeypatch):
    """By the scheme of the folder, as with MMEngine's hook."""
    monkeypatch.chdir(tmp_path)
    kept: dict[str, bytes] = {}

    class Memory(LocalBackend):
        def put(self, obj, filepath):
            kept[filepath] = obj

        def isfile(self, filepath):
            return filepath in kept

        def remove(self, filepath):
            del kept[filepath]

    register_backend('memory', Memory, force=True, prefixes='memory')
    FileClient.register_backend(
        'memory', HardDiskBackend, force=True, prefixes='memory'
    )
    hook = {
        'type': 'mmpetl.DeltaCheckpointHook',
        'out_dir': 'memory://bucket',
        'max_keep_ckpts': 1,
        'save_best': 'auto',
    }
    make_runner(default_hooks={'checkpoint': {**hook, 'interval': 1}}).train()
    assert 'memory://bucket/run/epoch_4.pth' in kept
    assert [name for name in kept if 'best_' not in name] == [
        'memory://bucket/run/epoch_4.pth'
    ]
    assert len(kept) == 2
    assert not list(tmp_path.rglob('*.pth'))
    assert not (tmp_path / 'memory:').exists()
    said = (tmp_path / 'run' / 'last_checkpoint').read_text()
    assert said == 'memory://bucket/run/epoch_4.pth'


@pytest.mark.parametrize(
    ('given', 'backend'),
    [
        ({}, {'backend': 'mmpetl.atomic'}),
        ({'out_dir': 'elsewhere'}, {'backend': 'mmpetl.atomic'}),
        ({'out_dir': 's3://bucket'}, None),
        ({'out_dir': 's3://bucket', 'backend_args': {'a': 1}}, {'a': 1}),
        ({'file_client_args': {'backend': 'disk'}}, None),
    ],
)
def test_local_checkpoints_are_written_whole_by_default(given, backend):
    assert DeltaCheckpointHook(**given).backend_args == backend


def test_what_a_checkpoint_replaces_goes_last(make_runner, tmp_path, monkeypatch):
    """With one file to keep, a failing write must leave that one."""
    hooks = {
        'checkpoint': {
            'type': 'mmpetl.DeltaCheckpointHook',
            'interval': 1,
            'max_keep_ckpts': 1,
        }
    }
    put, count = AtomicLocalBackend.put, 0

    def fail_third(self, obj, path):
        nonlocal count
        count += str(path).endswith('.pth')
        if count == 3:
            raise OSError('disk full')
        put(self, obj, path)

    monkeypatch.setattr(AtomicLocalBackend, 'put', fail_third)
    with pytest.raises(
        PETLError,
        match=r'epoch_3.pth is missing: disk full.* is epoch_2.pth, and --resume goes',
    ):
        make_runner(default_hooks=hooks).train()
    left = [p.name for p in (tmp_path / 'run').glob('epoch_*.pth')]
    assert left == ['epoch_2.pth']
    assert Path((tmp_path / 'run' / 'last_checkpoint').read_text()).name in left


@pytest.mark.parametrize('removal', [1, 3])
def test_a_kill_before_a_removal_leaves_nothing_behind(
    make_runner, tmp_path, monkeypatch, removal
):
    """Saved every five of twenty steps; the newest and the best are kept."""
    hook = {'type': 'mmpetl.DeltaCheckpointHook', 'interval': 5, 'by_epoch': False}
    hooks = {'checkpoint': hook | {'max_keep_ckpts': 1, 'save_best': 'auto'}}
    remove, count = AtomicLocalBackend.remove, 0

    def killed(self, path):
        nonlocal count
        count += 'best_' not in str(path)
        if count == removal:
            raise Killed
        remove(self, path)

    make_runner('whole', by_epoch=False, default_hooks=hooks).train()
    folder = tmp_path / 'killed'
    with monkeypatch.context() as patch:
        patch.setattr(AtomicLocalBackend, 'remove', killed)
        with pytest.raises(Killed):
            make_runner('killed', by_epoch=False, default_hooks=hooks).train()
    left = sorted(p.name for p in folder.glob('iter_*.pth'))
    assert left == sorted(f'iter_{5 * n}.pth' for n in (removal, removal + 1))
    # Of another run, or kept by hand: not on record, so that it stays.
    (folder / 'iter_3.pth').write_bytes((folder / left[0]).read_bytes())
    (folder / 'stopped_at_iter_4.pth').write_bytes(b'cut short')
    make_runner('killed', by_epoch=False, default_hooks=hooks, resume=True).train()
    kept, wanted = (
        sorted(p.name for p in (tmp_path / name).glob('*.pth'))
        for name in ('killed', 'whole')
    )
    assert kept == sorted([*wanted, 'iter_3.pth'])


def test_random_state_round_trips_through_a_file(tmp_path):
    import random

    import numpy as np

    torch.save(rng_state(), tmp_path / 'rng.pth')
    first = (torch.rand(3), np.random.rand(3), random.random())
    set_rng_state(torch.load(tmp_path / 'rng.pth', weights_only=True))
    again = (torch.rand(3), np.random.rand(3), random.random())
    assert torch.equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]
