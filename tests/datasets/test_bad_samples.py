"""What becomes of bad samples: stopped at, or skipped and counted; dead workers."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset, pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmpetl.core import PETLError
from mmpetl.datasets import HeldOut, UnreadableFileError, guard_reading, guard_runner
from mmpetl.datasets.ledger import Ledger, TellBadSamples, ledger_of
from mmpetl.datasets.loader_watch import LoaderError, end_workers, watched
from mmpetl.datasets.reading import _explained


class Pictures(BaseDataset):
    """Pictures of a folder; the label is what their name says."""

    def load_data_list(self):
        paths = sorted(map(str, self.folder.glob('*.png')))
        return [{'img_path': path, 'gt_label': n} for n, path in enumerate(paths)]

    def __init__(self, folder, **kwargs):
        self.folder = folder
        super().__init__(**kwargs)


@pytest.fixture
def folder(tmp_path):
    """Eight pictures, the third and the fifth of which are damaged."""
    where = tmp_path / 'pictures'
    where.mkdir()
    for number in range(8):
        Image.new('RGB', (8, 8), (number,) * 3).save(where / f'{number}.png')
    for number in (2, 4):
        path = where / f'{number}.png'
        path.write_bytes(path.read_bytes()[:40])
    return where


def pictures(folder, ledger=None, must=False, **kwargs):
    built = Pictures(folder, pipeline=[LoadImageFromFile()], **kwargs)
    guard_reading(built, ledger=ledger, must=must)
    return built


def test_training_stops_at_a_bad_sample_unless_it_is_told_otherwise(folder, tmp_path):
    for ledger in (None, Ledger(tmp_path)):
        with pytest.raises(UnreadableFileError, match=r"2\.png'"):
            pictures(folder, ledger)[2]
    assert not (tmp_path / 'bad_samples.jsonl').exists()


def test_skipped_samples_are_counted(folder, tmp_path):
    ledger = Ledger(tmp_path, skips=True)
    built = pictures(folder, ledger)
    np.random.seed(0)
    drawn = [built[index]['gt_label'] for _ in range(3) for index in range(8)]
    assert len(drawn) == 24
    assert not {2, 4} & set(drawn)
    (line,) = ledger.told()
    assert line.startswith('2 bad samples were skipped, others drawn in their place')
    assert 'bad_samples.jsonl' in line


@pytest.mark.parametrize('how', ['test mode', 'must'])
def test_an_evaluation_never_leaves_out_a_sample(folder, tmp_path, how):
    ledger = Ledger(tmp_path, skips=True)
    kwargs = dict(test_mode=True) if how == 'test mode' else dict(must=True)
    with pytest.raises(UnreadableFileError, match=r"2\.png'"):
        pictures(folder, ledger, **kwargs)[2]
    built = pictures(folder, ledger, **kwargs)
    built.pipeline.transforms.append(lambda data: None)
    with pytest.raises(UnreadableFileError, match='may not leave out a sample'):
        built[0]


def test_a_set_of_bad_samples_comes_to_an_end(folder, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(UnreadableFileError, match='100 samples in a row are no good'):
        pictures(folder, Ledger(tmp_path, skips=True))[0]


def test_workers_write_into_one_ledger_and_the_log_tells(folder, tmp_path, caplog):
    ledger = Ledger(tmp_path, skips=True)
    built = pictures(folder, ledger)
    loader = DataLoader(built, num_workers=2, collate_fn=pseudo_collate)
    assert len(list(loader)) == 8
    hook = TellBadSamples(ledger)
    runner = SimpleNamespace(rank=0, logger=logging.getLogger('bad samples'))
    with caplog.at_level('WARNING'):
        hook.after_train_epoch(runner)
        hook.after_train(runner)
    assert len(caplog.messages) == 1  # nothing new the second time
    assert caplog.messages[0].startswith('2 bad samples were skipped')


def test_a_line_that_was_cut_leaves_the_others(tmp_path):
    ledger = Ledger(tmp_path, skips=True)
    ledger.add('skipped', 'a', 'why a')
    with ledger.path.open('a') as file:
        file.write('{"what": \n[]\n')
    ledger.add('skipped', 'b', 'why b')
    assert ledger.told()[0].startswith('2 bad samples were skipped')


def test_a_jpeg_whose_decoder_complains_may_be_taken(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.jpg', quality=95)
    data = bytearray((tmp_path / 'a.jpg').read_bytes())
    data[3000:3030] = np.random.default_rng(1).bytes(30)
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(UnreadableFileError, match='its decoder says'):
        pictures(tmp_path, Ledger(tmp_path, skips=False), test_mode=True)[0]
    ledger = Ledger(tmp_path, takes=True)
    sample = pictures(tmp_path, ledger, test_mode=True)[0]
    assert sample['img'].shape == (64, 64, 3)
    assert ledger.told()[0].startswith('1 bad samples were taken though their decoder')


@pytest.mark.parametrize('key', ['on_bad_sample', 'on_damaged_jpeg'])
def test_policies_have_names(tmp_path, key):
    assert not ledger_of({}, tmp_path).skips
    for name in ('skip and count', 'skipandcount', 'skip_and_count'):
        assert ledger_of({'on_bad_sample': name}, tmp_path).skips
    with pytest.raises(PETLError, match=f"{key} is 'skip', expected 'stop' or"):
        ledger_of({key: 'skip'}, tmp_path)


# --- a part of a set held out --------------------------------------------------


class Named(BaseDataset):
    """Samples by file name; a transform leaves out every other draw."""

    def __init__(self, **kwargs):
        self.draws = 0
        super().__init__(pipeline=[self.every_other], **kwargs)

    def load_data_list(self):
        return [{'filename': f'/a/set/c/{i}.mp4'} for i in range(300)]

    def every_other(self, data):
        self.draws += 1
        return data if self.draws % 2 else None


@pytest.mark.parametrize(
    'wrap',
    [
        lambda data: data,
        lambda data: RepeatDataset(data, times=2),
        lambda data: ConcatDataset([data, Named()]),
    ],
)
def test_held_out_samples_never_train_in_place_of_others(wrap):
    held = HeldOut(wrap(Named(test_mode=True)), 'val')
    out = {held.get_data_info(i)['filename'] for i in range(len(held))}
    train = HeldOut(wrap(Named()), 'train')
    np.random.seed(0)
    drawn = {train[i % len(train)]['filename'] for i in range(1200)}
    assert len(drawn) > 200
    assert not drawn & out


def test_the_held_out_part_is_scored_whole():
    held = HeldOut(Named(), 'val')
    held[0]
    with pytest.raises(PETLError, match='may not leave out a sample'):
        held[1]


def test_a_set_that_mixes_its_samples_is_not_divided():
    class Mixes:
        def __init__(self, dataset):
            self.dataset = dataset
            self.metainfo = {}

        def full_init(self):
            pass

        def __len__(self):
            return len(self.dataset)

    with pytest.raises(PETLError, match='put HeldOut inside of it'):
        HeldOut(Mixes(Named()), 'train')


# --- workers --------------------------------------------------------------------


class Stuck:
    """Kills its own process, or waits, at one picture."""

    def __init__(self, how):
        self.how = how

    def __call__(self, data):
        if data['img_path'].endswith('6.png'):
            if self.how == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return data


def loader_of(folder, how, **kwargs):
    for number in (2, 4):
        (folder / f'{number}.png').unlink(missing_ok=True)
    built = Pictures(folder, pipeline=[LoadImageFromFile(), Stuck(how)])
    loader = DataLoader(built, num_workers=2, collate_fn=pseudo_collate, **kwargs)
    watch = watched(loader, 'train_dataloader', 'timeout' in kwargs)
    guard_reading(built, board=watch.board)
    loader.watch = watch
    return loader


def test_a_killed_worker_names_its_sample(folder):
    with pytest.raises(LoaderError) as caught:
        list(loader_of(folder, 'kill'))
    message = str(caught.value)
    assert '6.png' in message
    assert 'train_dataloader.num_workers' in message
    assert '\n' not in message


def test_a_hanging_worker_names_its_sample_and_the_limit(folder):
    loader = loader_of(folder, 'hang', timeout=2)
    with pytest.raises(LoaderError) as caught:
        list(loader)
    assert 'has not finished a batch in 2 s' in str(caught.value)
    assert '6.png' in str(caught.value)


def test_loaders_wait_ten_minutes_unless_they_are_told(folder):
    assert loader_of(folder, 'kill').timeout == 600
    assert loader_of(folder, 'kill', timeout=3).timeout == 3


class Runner:
    """What guard_runner needs of MMEngine's."""

    def __init__(self, work_dir, loader, **cfg):
        self.cfg, self.work_dir, self.hooks = cfg, work_dir, []
        self._train_dataloader, self._val_dataloader = {'a': 1}, {'b': 1}
        self.loader = loader

    def build_dataloader(self, dataloader):
        return self.loader

    def register_hook(self, hook):
        self.hooks.append(hook)

    def train(self):
        return list(self.build_dataloader(self._train_dataloader))

    def val(self):
        return list(self.build_dataloader(self._val_dataloader))

    def test(self):
        raise RuntimeError('of something else')


def test_a_runner_trains_past_bad_samples_and_never_scores_past_them(folder, tmp_path):
    for phase in ('train', 'val'):
        built = Pictures(folder, pipeline=[LoadImageFromFile()])
        loader = DataLoader(built, collate_fn=pseudo_collate)
        runner = Runner(tmp_path, loader, on_bad_sample='skip and count')
        guard_runner(runner)
        if phase == 'train':
            assert len(runner.train()) == 8
            assert runner.hooks[0].ledger.told()
        else:
            with pytest.raises(UnreadableFileError, match=r"2\.png'"):
                runner.val()
    with pytest.raises(RuntimeError, match='of something else'):
        runner.test()
    with pytest.raises(PETLError, match='on_bad_sample'):
        guard_runner(Runner(tmp_path, loader, on_bad_sample='ignore'))


def test_an_error_of_a_dead_worker_is_told_wherever_it_is_raised(folder):
    """PyTorch raises it from a signal handler, in the middle of anything."""
    loader = loader_of(folder, 'hang')
    iterator = iter(loader)
    pid = iterator._workers[1].pid

    def step():
        raise RuntimeError(f'DataLoader worker (pid {pid}) is killed by signal: Bus. ')

    with pytest.raises(
        LoaderError, match='a loader worker is killed by signal: Bus at'
    ):
        _explained(step, [loader.watch])()
    end_workers(iterator)
