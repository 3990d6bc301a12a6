"""Accumulated passes: schedules, samples, and going on inside of a step."""

from __future__ import annotations

import copy

import pytest
from killing import KillAt, Killed
from mmengine.config import Config
from mmengine.hooks import Hook
from test_resuming import assert_equal_ends, settings

from mmpetl.config.batch import reach_batch
from mmpetl.engine import files


class Rates(Hook):
    """The rate that each step of the optimizer is taken with."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.optim_wrapper.should_update():
            rate = runner.optim_wrapper.param_groups[0]['lr']
            self.seen.append(round(float(rate), 12))


def accumulated(passes: int, by_epoch: bool, **more) -> dict:
    """Settings of a run at the same batch of 8, in so many passes."""
    given = settings(1, by_epoch=by_epoch, **more)
    length = {'max_epochs': 4} if by_epoch else {'max_iters': 20, 'val_interval': 5}
    given['train_cfg'] = {'by_epoch': by_epoch, 'val_interval': 1, **length}
    if by_epoch:
        given['param_scheduler'] = [
            given['param_scheduler'][0],
            {
                'type': 'CosineAnnealingLR',
                'T_max': 4,
                'end': 4,
                'by_epoch': True,
                'convert_to_iter_based': True,
            },
        ]
    config = Config({**copy.deepcopy(given), 'batch': 8})
    config.train_dataloader.batch_size = 8 // passes
    reach_batch(config)
    config = config.to_dict()
    return {'by_epoch': config.pop('by_epoch'), **config}


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_schedules_move_with_the_steps(make_runner, by_epoch: bool) -> None:
    found = []
    for passes in (1, 2):
        rates = Rates()
        runner = make_runner(
            f'of{passes}', hooks=[rates], **accumulated(passes, by_epoch)
        )
        runner.train()
        assert runner.iter == 20 * passes
        found.append(rates.seen)
    assert len(found[0]) == 20
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert len(set(found[0])) > 5, 'the rate moves'


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_a_run_goes_on_between_two_passes_of_a_step(
    make_runner, by_epoch: bool
) -> None:
    changes = accumulated(2, by_epoch)
    changes['default_hooks']['checkpoint'] |= {'by_epoch': False, 'interval': 7}
    whole = make_runner('whole', **changes)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillAt(24)], **changes).train()
    resumed = make_runner('killed', resume=True, **changes)
    resumed.train()
    assert_equal_ends(whole, resumed)


def test_large_checkpoints_are_written_seldom_and_the_last_always(
    make_runner, tmp_path, monkeypatch
) -> None:
    changes = settings(1, every=5)
    saves = changes['default_hooks']['checkpoint']
    saves |= {'by_epoch': True, 'interval': 1, 'max_keep_ckpts': -1}
    for name, most, kept in (('all', 1e6, [1, 2, 3, 4]), ('few', 0.001, [1, 4])):
        saves['most_mb_per_s'] = most
        make_runner(name, **changes).train()
        found = sorted(p.name for p in (tmp_path / name).glob('epoch_*.pth'))
        assert found == [f'epoch_{epoch}.pth' for epoch in kept]
    now = [100.0]
    monkeypatch.setattr(files.time, 'monotonic', lambda: now[0])
    path = tmp_path / 'x'
    path.write_bytes(bytes(8_000_000))
    pace = files.Pace(4.0)
    assert not pace.is_soon()
    pace.written(path)
    for later, soon in ((1.9, True), (2.1, False)):
        now[0] = 100.0 + later
        assert pace.is_soon() is soon
    assert not files.Pace().is_soon()
