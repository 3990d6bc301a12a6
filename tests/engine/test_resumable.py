"""What cannot be taken up again is refused in one line, and never in silence."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from killing import KillAt, Killed
from mmengine.hooks import Hook

from mmpetl.core import PETLError
from mmpetl.engine.best import best_checkpoint
from mmpetl.engine.resumable import check_loaded, check_resumable, data_facts


@pytest.fixture(scope='module')
def kept():
    """The content of a checkpoint, made once."""
    return {}


@pytest.fixture
def content(kept, make_runner, tmp_path):
    if not kept:
        with pytest.raises(Killed):
            make_runner('made', hooks=[KillAt(7)]).train()
        file = tmp_path / 'made' / 'epoch_1.pth'
        kept['content'] = torch.load(file, weights_only=True)
    return copy.deepcopy(kept['content'])


def without(key):
    return lambda content: content.pop(key)


def put(path, value):
    *way, last = path.split('.')

    def change(content):
        for key in way:
            content = content[int(key) if key.isdigit() else key]
        content[int(last) if last.isdigit() else last] = value

    return change


ALONE = {
    'no epoch': (lambda c: c['meta'].pop('epoch'), 'missing required field epoch'),
    'epoch -5': (put('meta.epoch', -5), 'meta.epoch'),
    'epoch 1.5': (put('meta.epoch', 1.5), 'meta.epoch: expected int'),
    'iter true': (put('meta.iter', True), 'meta.iter: expected int'),
    'meta None': (put('meta', None), 'meta'),
    'meta list': (put('meta', []), 'meta'),
    'no hub': (without('message_hub'), 'message_hub'),
    'hub': (put('message_hub.log_scalars.loss', 1.0), 'expected a HistoryBuffer'),
    'hub lacks': (lambda c: c['message_hub'].pop('resumed_keys'), 'resumed_keys'),
    'no rng': (without('rng'), 'lacks rng'),
    'rng': (put('rng', [1]), r'rng\[?\.?'),
    'rng torch': (put('rng.0.torch', torch.zeros(3)), r'rng\[0\] is no state'),
    'rng python': (put('rng.0.python', [3, [1, 2], None]), r'rng\[0\] is no state'),
    'no rng at all': (put('rng', []), 'not one entry for each process'),
    'state list': (put('state_dict', []), 'state_dict'),
    'state text': (put('state_dict.x', 'text'), 'state_dict.x: expected a tensor'),
    'optimizer': (put('optimizer', 3), 'optimizer'),
    'schedulers': (put('param_schedulers', [1]), 'param_schedulers'),
    'seed': (put('meta.seed', 7), 'the seed 7, and randomness.seed is 42'),
    'best': (put('message_hub.runtime_info.best_ckpt', 3), 'runtime_info.best_ckpt'),
    'delta list': (put('meta.mmpetl', [1]), 'meta.mmpetl: expected object, got array'),
    'no method': (lambda c: c['meta']['mmpetl'].pop('method'), 'field method'),
    'validated': (put('validated', 'yes'), 'validated'),
}


@pytest.mark.parametrize('case', ALONE)
def test_a_checkpoint_that_lacks_a_part_is_refused(content, case):
    change, message = ALONE[case]
    assert check_resumable(content, 'a.pth', 42) == []
    change(content)
    with pytest.raises(PETLError, match=message) as info:
        check_resumable(content, 'a.pth', 42)
    assert str(info.value).startswith('a.pth')
    assert '\n' not in str(info.value)


def test_one_of_mmengine_is_taken_and_what_it_lacks_is_said(content):
    for key in ('rng', 'validated', 'data'):
        content.pop(key)
    content['meta'].pop('mmpetl')
    (line,) = check_resumable(content, 'a.pth')
    assert 'no random generators' in line


@pytest.mark.parametrize('bad', [None, [], 'x', {'state_dict': []}, {1: 2}])
def test_what_is_no_checkpoint_is_refused_before_it_is_loaded(bad):
    with pytest.raises(PETLError, match=r'^a\.pth'):
        check_loaded(bad, 'a.pth')


HERE = {
    'epoch': (put('meta.epoch', 900), 'epoch is 900, and this run ends at 4'),
    'no optimizer': (without('optimizer'), 'lacks optimizer'),
    'optimizer sizes': (
        lambda c: c['optimizer']['state'][0].update(exp_avg=torch.zeros(5)),
        r'optimizer.state.0.exp_avg is \(5,\), wanted',
    ),
    'no state': (put('optimizer.state', {}), 'state is empty after 5 iterations'),
    'no schedules': (without('param_schedulers'), 'lacks param_schedulers'),
    'other schedules': (
        put('param_schedulers', []),
        'param_schedulers are 0, .* has 1',
    ),
    'gradients': (put('gradients', [{'x': torch.zeros(3)}]), 'does not fit'),
    'other data': (
        put('data', {'samples': 46, 'digest': None}),
        'on 46 training samples, these are 40',
    ),
}


def averaged(change):
    """A checkpoint with MMEngine's average in it, and something wrong there."""

    def spoil(content):
        state = content['state_dict']
        average = {f'module.{key}': value.clone() for key, value in state.items()}
        content['ema_state_dict'] = average | {'steps': torch.tensor(7)}
        key = next(k for k in average if '.petl.' in k)
        made = change(content['ema_state_dict'], key)
        if made is not None:
            content['ema_state_dict'] = made

    return spoil


HERE |= {
    'average list': (averaged(lambda a, k: [1]), 'ema_state_dict: expected object'),
    'average text': (averaged(lambda a, k: a.update({k: 'x'})), 'expected a tensor'),
    'average lacks': (
        averaged(lambda a, k: {key: a[key] for key in a if key != k}),
        'ema_state_dict lacks module',
    ),
    'average int8': (averaged(lambda a, k: a.update({k: a[k].char()})), 'int8'),
    'average NaN': (
        averaged(lambda a, k: a.update({k: a[k] * float('nan')})),
        'not finite',
    ),
    'average shape': (averaged(lambda a, k: a.update({k: a[k][:1]})), 'has shape'),
}


@pytest.mark.parametrize('case', HERE)
def test_a_checkpoint_of_another_run_is_refused(content, make_runner, tmp_path, case):
    change, message = HERE[case]
    change(content)
    file = tmp_path / 'epoch_1.pth'
    torch.save(content, file)
    with pytest.raises(PETLError, match=message) as info:
        make_runner('run', resume=True, load_from=str(file)).train()
    assert str(file) in str(info.value)
    assert '\n' not in str(info.value)


class Listed:
    """Samples that say what they are."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def get_data_info(self, index):
        return {'img_path': self.names[index], 'gt_label': index, 'sample_idx': index}


def test_a_training_set_is_known_by_its_samples_and_not_by_its_folder():
    one = data_facts(Listed(['/a/1.png', '/a/2.png']))
    assert one == data_facts(Listed(['/else/1.png', '/else/2.png']))
    assert one != data_facts(Listed(['/a/1.png', '/a/3.png']))
    assert data_facts([1, 2, 3]) == {'samples': 3, 'digest': None}


# ----------------------------------------------------------------- the best


class KillInValidation(Hook):
    priority = 'HIGHEST'

    def __init__(self, iteration) -> None:
        self.iteration = iteration

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            raise Killed


def best_of(folder):
    (file,) = folder.glob('best_*.pth')
    assert best_checkpoint(folder) == file
    return file.name, (folder / 'best.json').read_text()


@pytest.mark.parametrize('iteration', [5, 10, 20])
def test_a_validation_that_was_due_is_made_up_for(make_runner, tmp_path, iteration):
    whole = make_runner('whole')
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillInValidation(iteration)]).train()
    make_runner('killed', resume=True).train()
    assert best_of(tmp_path / 'killed') == best_of(tmp_path / 'whole')


def test_a_stale_best_goes_when_the_run_goes_on(make_runner, tmp_path):
    """As a kill before the deletion leaves it, under a name that sorts last."""
    with pytest.raises(Killed):
        make_runner('run', hooks=[KillAt(12)]).train()
    folder = tmp_path / 'run'
    (best,) = folder.glob('best_*.pth')
    stale = best.with_name(best.name.rpartition('_')[0] + '_9.pth')
    shutil.copy(best, stale)
    other = folder / 'best_of_mine.pth'
    other.touch()
    make_runner('run', resume=True).train()
    assert not stale.exists()
    assert other.exists()
    other.unlink()
    best_of(folder)


def test_a_copied_folder_leaves_that_which_it_was_copied_from(make_runner, tmp_path):
    with pytest.raises(Killed):
        make_runner('run', hooks=[KillAt(12)]).train()
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    before = {p: p.read_bytes() for p in (tmp_path / 'run').glob('*.pth')}
    resumed = make_runner('copy', resume=True)
    resumed.train()
    assert resumed.iter == 20
    assert before == {p: p.read_bytes() for p in (tmp_path / 'run').glob('*.pth')}
    best_of(tmp_path / 'copy')


@pytest.mark.parametrize('saved', [True, False], ids=['saved', 'not saved'])
def test_a_validation_is_on_file_wherever_a_run_is_killed_behind_it(
    make_runner, tmp_path, monkeypatch, saved
):
    """Behind the checkpoint that says that it is done, or before that."""
    from mmpetl.benchmark.collect import last_test
    from mmpetl.engine import DeltaCheckpointHook
    from mmpetl.engine.hooks.run_log import RunLogHook, read_run_log

    path, after = tmp_path / 'run' / 'log.jsonl', DeltaCheckpointHook.after_val_epoch

    def killed(self, runner, metrics):
        if saved:
            after(self, runner, metrics)
        raise Killed

    def run(**how):
        runner = make_runner(**how)
        runner.register_hook(RunLogHook(str(path)))
        runner.train()

    (tmp_path / 'run').mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(DeltaCheckpointHook, 'after_val_epoch', killed)
        with pytest.raises(Killed):
            run()
    run(resume=True)
    found = [line['step'] for line in read_run_log(path) if 'val' in line]
    assert found == ([5, 10, 15, 20] if saved else [5, 5, 10, 15, 20])
    # The same reading twice is one reading, where it is one of the test set.
    path.write_text(
        path.read_text().replace('"reads_test": false', '"reads_test": true')
    )
    assert last_test(path.parent) == ({}, 4)
