"""timm's cosine rule, against timm."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

from mmpetl.core import PETLError
from mmpetl.engine import TimmCosineLR


def theirs(lr, epochs, late, T_max, warmup, start, floor):
    """Rates of timm's scheduler, called as scripts call it."""
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=T_max,
        lr_min=floor,
        warmup_t=warmup,
        warmup_lr_init=start,
        cycle_limit=1,
    )
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch if late else epoch + 1)
    return rates


@pytest.mark.parametrize(
    ('late', 'T_max', 'warmup', 'epochs'),
    [
        (True, 100, 10, 110),
        (False, 100, 10, 110),
        (True, 500, 10, 100),
        (False, 20, 0, 25),
    ],
)
def test_rates_are_those_of_timm(late, T_max, warmup, epochs):
    lr, start, floor = 3e-3, 1e-6, 1e-5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = TimmCosineLR(
        optimizer, T_max, warmup=warmup, start=start, eta_min=floor, late=late
    )
    ours = []
    for _ in range(epochs):
        ours.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    right = theirs(lr, epochs, late, T_max, warmup, start, floor)
    assert ours == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize(('begin', 'end'), [(0, None), (2, 9)])
def test_by_iterations_it_meets_the_rule_by_epochs(late, begin, end):
    """As MMEngine builds it with ``convert_to_iter_based``."""
    length, epochs, rates = 3, 14, {}
    for by_iteration in (False, True):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
        config = {
            'type': 'mmpetl.TimmCosineLR',
            'T_max': 10,
            'warmup': 2,
            'start': 1e-4,
            'eta_min': 1e-5,
            'late': late,
            'begin': begin,
            'convert_to_iter_based': by_iteration,
            **({'end': end} if end else {}),
        }
        scheduler = PARAM_SCHEDULERS.build(
            config, default_args={'optimizer': optimizer, 'epoch_length': length}
        )
        assert scheduler.by_epoch is not by_iteration
        seen = []
        for _ in range(epochs * (length if by_iteration else 1)):
            seen.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        rates[by_iteration] = seen
    if end is None:
        assert rates[True][::length] == pytest.approx(rates[False], rel=1e-9)
        assert len({round(rate, 12) for rate in rates[True][: 2 * length]}) > 2
    else:
        # By epochs the last value is that of epoch end - 1, by iterations that of the
        # last iteration in front of the end.
        upto = end - 1
        assert rates[True][: upto * length : length] == pytest.approx(
            rates[False][:upto], rel=1e-9
        )
        assert len(set(rates[True][end * length :])) == 1


def test_iterations_are_not_converted_to_iterations():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(PETLError, match='leave by_epoch=False or convert_to_iter'):
        TimmCosineLR.build_iter_from_epoch(
            optimizer, T_max=4, by_epoch=False, epoch_length=2
        )


def test_groups_keep_their_ratio_at_the_peak_and_share_the_floor():
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{'params': [params[0]], 'lr': 1.0}, {'params': [params[1]], 'lr': 0.5}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = TimmCosineLR(optimizer, 4, eta_min=0.1)
    assert [g['lr'] for g in optimizer.param_groups] == [1.0, 0.5]
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [g['lr'] for g in optimizer.param_groups] == [0.1, 0.1]


def test_it_resumes_where_it_was():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, TimmCosineLR(optimizer, 10, warmup=2, start=0.1)

    (whole, a), (part, b) = make(), make()
    for _ in range(4):
        a.step()
    state = a.state_dict()
    b.load_state_dict(state)
    part.load_state_dict(whole.state_dict())
    for _ in range(3):
        a.step()
        b.step()
    assert whole.param_groups[0]['lr'] == part.param_groups[0]['lr']


def test_arguments_are_checked():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(PETLError, match='warmup of at least 0 and at most 5'):
        TimmCosineLR(optimizer, 5, warmup=6)
