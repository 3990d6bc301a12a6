"""SCT, GPS and LST in a run: chosen once, by data, and never again after a kill."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killing import KillAt, Killed
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from two_processes import in_two_processes

from mmpetl.core import PETLError
from mmpetl.engine.hooks import calibration
from mmpetl.methods.gps import GPS
from mmpetl.methods.lora import LoRA
from mmpetl.methods.lst import LST
from mmpetl.methods.sct import SCT

METHODS = {
    'sct': {'type': 'SCT', 'num_channels': 8},
    'gps': {'type': 'GPS', 'num_weights': 2},
}
TARGETS = {'sct': SCT, 'gps': GPS, 'lst': LST, 'lora': LoRA}


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """The methods whose data pass has been made, in order."""
    made = []
    for name, cls in TARGETS.items():
        calibrate = cls.calibrate

        def counted(self, backbone, batches, name=name, calibrate=calibrate):
            made.append(name)
            calibrate(self, backbone, batches)

        monkeypatch.setattr(cls, 'calibrate', counted)
    return made


def chosen(runner) -> dict[str, torch.Tensor]:
    """Indices and the record of the pass, copied."""
    buffers = runner.model.backbone.named_buffers()
    return {n: b.clone() for n, b in buffers if 'petl' in n.split('.')}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


def weights(runner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('kill_at', [3, 13])
@pytest.mark.parametrize('name', METHODS)
def test_a_killed_run_resumes_to_the_same_weights(
    make_runner, passes, name, kill_at, by_epoch
):
    method = METHODS[name]
    whole = make_runner('whole', method=method, by_epoch=by_epoch)
    first = chosen(whole)
    whole.train()
    assert passes == [name]
    assert not same(chosen(whole), first)
    assert chosen(whole)['petl.shared.0.done']
    killed = make_runner(
        'killed', method=method, by_epoch=by_epoch, hooks=[KillAt(kill_at)]
    )
    with pytest.raises(Killed):
        killed.train()
    assert same(chosen(killed), chosen(whole))
    passes.clear()
    resumed = make_runner('killed', method=method, by_epoch=by_epoch, resume=True)
    resumed.train()
    # Killed before its first checkpoint, a run has nothing to resume from.
    assert passes == ([name] if kill_at == 3 else [])
    assert resumed.iter == 20
    assert same(chosen(resumed), chosen(whole))
    assert same(weights(resumed), weights(whole))


def test_lst_prunes_once_by_fisher_information_and_resumes(make_runner, passes):
    method = {'type': 'LST', 'reduction': 4, 'init': 'fisher'}
    whole = make_runner('whole', method=method)
    drawn = weights(whole)
    whole.train()
    assert passes == ['lst']
    assert chosen(whole)['petl.shared.0.done']
    with pytest.raises(Killed):
        make_runner('killed', method=method, hooks=[KillAt(13)]).train()
    passes.clear()
    resumed = make_runner('killed', method=method, resume=True)
    resumed.train()
    assert passes == []
    assert same(weights(resumed), weights(whole))
    key = next(k for k in drawn if k.endswith('block.norm1.weight'))
    assert not torch.equal(drawn[key], weights(whole)[key])


@pytest.mark.parametrize(
    ('start', 'made'), [('eva', ['lora']), ('pissa', [])], ids=['eva', 'pissa']
)
def test_lora_starts_once_by_data_or_base_and_resumes(make_runner, passes, start, made):
    method = {'type': 'LoRA', 'rank': 2, 'start': start, 'lr_ratio': 16.0}
    whole = make_runner('whole', method=method)
    whole.train()
    assert passes == made
    with pytest.raises(Killed):
        make_runner('killed', method=method, hooks=[KillAt(13)]).train()
    passes.clear()
    resumed = make_runner('killed', method=method, resume=True)
    resumed.train()
    assert passes == []
    assert same(weights(resumed), weights(whole))
    rates = {g.get('name'): g['lr'] for g in resumed.optim_wrapper.param_groups}
    assert rates['delta_x16'] == pytest.approx(16 * rates['delta'])


@pytest.mark.parametrize('name', METHODS)
def test_resuming_takes_the_choice_from_the_checkpoint(
    make_runner, passes, tmp_path, name
):
    """Another choice in the file is kept: nothing chooses anew."""
    method = METHODS[name]
    with pytest.raises(Killed):
        make_runner('run', method=method, hooks=[KillAt(13)]).train()
    file = tmp_path / 'run' / 'epoch_2.pth'
    content = torch.load(file, weights_only=True)
    key = next(k for k in content['state_dict'] if k.endswith('.index'))
    other = content['state_dict'][key].flip(0).clone()
    assert not torch.equal(other, content['state_dict'][key])
    content['state_dict'][key] = other
    torch.save(content, file)
    passes.clear()
    resumed = make_runner('run', method=method, resume=True)
    resumed.train()
    assert passes == []
    assert torch.equal(resumed.model.state_dict()[key], other)


@pytest.mark.parametrize('name', METHODS)
def test_training_goes_on_from_a_loaded_delta_without_choosing_anew(
    make_runner, passes, tmp_path, name
):
    method = METHODS[name]
    trained = make_runner('run', method=method)
    trained.train()
    assert passes == [name]
    file = str(tmp_path / 'run' / 'epoch_4.pth')
    again = make_runner('again', method=method, load_from=file)
    again.train()
    assert passes == [name]
    assert same(chosen(again), chosen(trained))


def test_a_method_without_a_data_pass_needs_none(make_runner, passes):
    make_runner(method={'type': 'LoRA', 'rank': 2}).train()
    assert passes == []


@pytest.mark.parametrize('name', METHODS)
def test_the_pass_draws_nothing_from_the_generators_of_training(
    make_runner, monkeypatch, name
):
    """The same batches in the same order, flipped alike, with it and without."""

    class Batches(Hook):
        def __init__(self):
            self.seen = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.seen.append(data_batch['inputs'].clone())

    hooks = [Batches(), Batches()]
    make_runner('with', method=METHODS[name], hooks=hooks[:1]).train()
    monkeypatch.setattr(TARGETS[name], 'calibrate', lambda *args: None)
    make_runner('without', method=METHODS[name], hooks=hooks[1:]).train()
    one, other = (hook.seen for hook in hooks)
    assert len(one) == 20
    assert all(map(torch.equal, one, other))


def test_gps_keeps_a_checkpoint_and_optimizer_of_the_size_of_its_count(
    make_runner, tmp_path
):
    runner = make_runner(method=METHODS['gps'])
    runner.train()
    content = torch.load(tmp_path / 'run' / 'epoch_4.pth', weights_only=True)
    state = content['state_dict']
    count = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    index = sum(v.numel() for k, v in state.items() if k.endswith('.index'))
    assert index == sum(v.numel() for k, v in state.items() if k.endswith('.values'))
    assert sum(v.numel() for v in state.values()) == count + index + 1
    moments = content['optimizer']['state'].values()
    assert sum(m['exp_avg'].numel() for m in moments) == count
    assert not [k for k in state if k.endswith('qkv.weight')]


@pytest.mark.parametrize('name', METHODS)
def test_one_class_stops_the_run_before_it_starts(make_runner, tmp_path, name):
    runner = make_runner(method=METHODS[name])
    runner.train_loop.dataloader.dataset.labels[:] = 4
    before = chosen(runner)
    with pytest.raises(PETLError, match=r'the data hold one only \(4\)'):
        runner.train()
    assert same(chosen(runner), before)
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_gps_finds_no_labels_in_dense_data(make_runner, monkeypatch):
    runner = make_runner(method=METHODS['gps'])
    dataset = runner.train_loop.dataloader.dataset
    item = type(dataset).__getitem__

    def without(self, i):
        sample = item(self, i)
        sample['data_samples'].pop('gt_label')
        return sample

    monkeypatch.setattr(type(dataset), '__getitem__', without)
    with pytest.raises(PETLError, match="choose criterion='task'"):
        runner.train()


def test_gps_by_the_loss_of_the_task(make_runner, passes):
    method = {'type': 'GPS', 'criterion': 'task'}
    runner = make_runner(method=method)
    head = runner.model.head.fc.weight.clone()
    first = chosen(runner)
    runner.train()
    assert passes == ['gps']
    assert not same(chosen(runner), first)
    assert not torch.equal(runner.model.head.fc.weight, head)


# -------------------------------------------------------- whose transforms are used


@TRANSFORMS.register_module(name='Offset')
class Offset(BaseTransform):
    """Makes the picture of a sample, ``offset`` lighter."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def transform(self, results):
        from mmpretrain.structures import DataSample

        rng = np.random.RandomState(results['sample_idx'])
        picture = rng.uniform(0, 100, (3, 32, 32)) + self.offset
        label = results['sample_idx'] % 10
        return {
            'inputs': torch.from_numpy(picture).float(),
            'data_samples': DataSample().set_gt_label(label),
        }


@DATASETS.register_module(name='PipelinePictures')
class PipelinePictures(BaseDataset):
    """40 samples with a pipeline, as the sets of OpenMMLab have."""

    def load_data_list(self):
        return [{'img_path': f'{number}.jpg'} for number in range(40)]


@pytest.mark.parametrize('wrapped', [False, True], ids=['plain', 'repeated'])
@pytest.mark.parametrize(('name', 'offset'), [('sct', 0), ('gps', 100)])
def test_sct_sees_test_transforms_and_gps_those_of_training(
    make_runner, monkeypatch, name, offset, wrapped
):
    def loader(offset, wrapped=False):
        pipeline = [{'type': 'mmengine.Offset', 'offset': offset}]
        dataset = {'type': 'mmengine.PipelinePictures', 'pipeline': pipeline}
        if wrapped:
            dataset = {'type': 'RepeatDataset', 'times': 2, 'dataset': dataset}
        return {
            'batch_size': 10,
            'num_workers': 0,
            'persistent_workers': False,
            'collate_fn': {'type': 'default_collate'},
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'dataset': dataset,
        }

    runner = make_runner(method=METHODS[name])
    config = copy.deepcopy(runner.cfg)
    config.train_dataloader = loader(100, wrapped)
    config.val_dataloader = loader(0)
    config.work_dir += '-2'
    config.experiment_name += '-2'
    from mmengine.runner import Runner

    runner = Runner.from_cfg(config)
    seen = []
    runner.model.backbone.patch_embed.projection.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach() * 127.5 + 127.5)
    )
    used = calibration.training_data(runner, TARGETS[name].calibration_pipeline)
    TARGETS[name](**{k: v for k, v in METHODS[name].items() if k != 'type'}).calibrate(
        runner.model, used
    )
    pictures = torch.cat(seen)
    views, times = (2 if name == 'gps' else 1), (2 if wrapped and name == 'gps' else 1)
    assert len(pictures) == 40 * views * times
    assert (pictures - offset).min() > -0.01
    assert (pictures - offset).max() < 100.01


def test_the_pass_may_have_transforms_of_its_own(make_runner):
    from mmengine.config import Config

    dataset = {'type': 'mmengine.PipelinePictures', 'pipeline': []}
    own = [{'type': 'mmengine.Offset', 'offset': 300}]
    runner = SimpleNamespace(
        train_loop=make_runner(method=METHODS['gps']).train_loop,
        cfg=Config({'train_dataloader': {'batch_size': 10, 'dataset': dataset}}),
    )
    used = calibration.training_data(runner, 'train', own)
    assert used.batch_size == 10
    assert float(used.dataset[0]['inputs'].min()) >= 300
    del runner.cfg.train_dataloader.dataset.pipeline
    with pytest.raises(PETLError, match='training set has none to exchange'):
        calibration.training_data(runner, 'train', own)


PICTURES = {'type': 'mmengine.PipelinePictures', 'pipeline': []}
FOLD = {'type': 'mmpretrain.KFoldDataset', 'num_splits': 4, 'dataset': PICTURES}
HELD = {'type': 'mmpetl.HeldOut', 'part': 'train', 'share': 0.5, 'dataset': PICTURES}
TWICE = {'type': 'RepeatDataset', 'times': 2}
WRAPPED = {
    'held out': (HELD, HELD),
    'held out and repeated': ({**TWICE, 'dataset': HELD}, HELD),
    'a fold': (FOLD, FOLD),
    'a fold, balanced': (
        {'type': 'ClassBalancedDataset', 'oversample_thr': 0.5, 'dataset': FOLD},
        FOLD,
    ),
    'held out of what is repeated': (
        {**HELD, 'dataset': {**TWICE, 'dataset': PICTURES}},
        {**HELD, 'dataset': {**TWICE, 'dataset': PICTURES}},
    ),
    'held out of joined sets': (
        {**HELD, 'dataset': {'type': 'ConcatDataset', 'datasets': [PICTURES] * 2}},
        {**HELD, 'dataset': {'type': 'ConcatDataset', 'datasets': [PICTURES] * 2}},
    ),
}


@pytest.mark.parametrize('exchanged', ['own', 'test'])
@pytest.mark.parametrize('case', WRAPPED)
def test_the_pass_reads_no_sample_that_is_held_out(make_runner, case, exchanged):
    from mmengine.config import Config

    given, want = WRAPPED[case]
    pipeline = [{'type': 'mmengine.Offset', 'offset': 300}]
    tested = {**PICTURES, 'pipeline': pipeline}
    runner = SimpleNamespace(
        train_loop=make_runner().train_loop,
        cfg=Config(
            {
                'train_dataloader': {'batch_size': 10, 'dataset': given},
                'val_dataloader': {'batch_size': 10, 'dataset': tested},
            }
        ),
    )
    read = calibration.training_data(
        runner, exchanged, pipeline if exchanged == 'own' else None
    ).dataset

    def names(dataset):
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]

    assert names(read) == names(DATASETS.build(copy.deepcopy(want)))
    assert len(set(names(read))) < 40
    assert float(read[0]['inputs'].min()) >= 300


# ------------------------------------------------------------------- two processes


def _calibrate(rank: int, folder: Path) -> None:
    """The hook in one of two processes that see different halves of the data."""
    from tiny import base, images

    from mmpetl.core import delta_state, inject
    from mmpetl.engine.hooks import CalibrationHook

    x, labels = images('timm_vit', batch=8), torch.arange(8) % 2
    dataset = TensorDataset(x, labels)
    sampler = DistributedSampler(dataset, 2, rank)
    for name, method in METHODS.items():
        torch.manual_seed(rank)
        model = inject(base('timm_vit'), method)
        loop = SimpleNamespace(dataloader=DataLoader(dataset, 4, sampler=sampler))
        torch.manual_seed(0)
        runner = SimpleNamespace(
            iter=0,
            model=model,
            cfg={},
            train_loop=loop,
            logger=SimpleNamespace(info=str),
        )
        CalibrationHook().before_train(runner)
        torch.save(delta_state(model), folder / f'{name}-{rank}.pth')


def test_two_processes_choose_what_one_does(tmp_path):
    from tiny import base, images

    from mmpetl.core import delta_state, inject

    in_two_processes(_calibrate, tmp_path)
    for name in METHODS:
        cls = TARGETS[name]
        first, second = (
            torch.load(tmp_path / f'{name}-{rank}.pth', weights_only=True)
            for rank in range(2)
        )
        assert first['petl.shared.0.done']
        assert same(first, second)
        args = {k: v for k, v in METHODS[name].items() if k != 'type'}
        method = cls(**args)
        alone = inject(base('timm_vit'), method)
        data = TensorDataset(images('timm_vit', batch=8), torch.arange(8) % 2)
        torch.manual_seed(0)
        method.calibrate(alone, DataLoader(data, 4))
        for key, value in delta_state(alone).items():
            if key.endswith('.index'):
                assert torch.equal(first[key], value), key
