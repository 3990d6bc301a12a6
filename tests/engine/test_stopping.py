"""Signals: the run saves behind its step, leaves, and goes on to the same end."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
from mmengine.hooks import Hook
from test_resuming import assert_equal_ends, settings

from mmpetl.engine.stopping import (
    Stopped,
    resume_line,
    stop_on_signals,
    train_until_stopped,
)


class Signal(Hook):
    """Sends this process a signal at a step or a batch of validation."""

    priority = 'NORMAL'

    def __init__(self, number, step=None, val=None) -> None:
        self.number, self.step, self.val = number, step, val

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            os.kill(os.getpid(), self.number)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.val:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def nothing_ignored():
    """A shell ignores SIGINT for jobs in the background, nohup SIGHUP; it stays so."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = {n: signal.signal(n, signal.default_int_handler) for n in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(runner):
    with stop_on_signals() as stop:
        train_until_stopped(runner, stop)


def test_a_stopped_run_goes_on_to_the_same_end(make_runner, tmp_path):
    """Inside an epoch with a gradient that waits, by data workers, then in validation,
    with nothing but what the signals have let it save in between."""
    changes = settings(2, workers=2, save_best='auto')
    changes['default_hooks']['checkpoint'] |= {'by_epoch': True, 'interval': 3}
    whole = make_runner('whole', **changes)
    whole.train()
    folder = tmp_path / 'stopped'
    with pytest.raises(Stopped, match='stopped by SIGTERM; saved as .*_8.pth') as info:
        train(make_runner('stopped', hooks=[Signal(signal.SIGTERM, step=8)], **changes))
    assert info.value.code == 143
    assert (folder / 'last_checkpoint').read_text() == 'stopped_at_iter_8.pth'
    again = [Signal(signal.SIGHUP, val=10)]
    with pytest.raises(Stopped, match='stopped by SIGHUP; saved as .*_10.pth') as info:
        train(make_runner('stopped', resume=True, hooks=again, **changes))
    assert info.value.code == 129
    resumed = make_runner('stopped', resume=True, **changes)
    train(resumed)
    assert_equal_ends(whole, resumed)
    # What a signal has saved goes when the next checkpoint is written.
    assert sorted(p.name for p in folder.glob('*.pth')) == sorted(
        p.name for p in (tmp_path / 'whole').glob('*.pth')
    )
    assert (folder / 'best.json').read_bytes() == (
        tmp_path / 'whole' / 'best.json'
    ).read_bytes()


def test_handlers_are_as_before_and_a_second_signal_does_not_wait():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match='not saved') as info, stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert info.value.code == 130
    assert isinstance(info.value, KeyboardInterrupt)
    with stop_on_signals() as stop:
        stop.stepping = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # as a launcher repeats it
        stop.since -= 3
        with pytest.raises(Stopped, match='by SIGTERM'):
            os.kill(os.getpid(), signal.SIGTERM)
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_what_is_ignored_stays_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_line_names_the_flag_that_the_command_needs(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/x.py', 'a b'])
    assert resume_line() == "go on with: python tools/x.py 'a b' --resume"
    with pytest.raises(Stopped, match="python tools/x.py 'a b'$"):
        with stop_on_signals(flag=''):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_a_run_forks_ends_by_the_system():
    """No handler in Python: a child that waits for a lock would not come to it."""
    with stop_on_signals():
        assert getattr(signal.getsignal(signal.SIGTERM), 'ends_forks', False)
        pid = os.fork()
        if pid == 0:
            is_plain = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            os._exit(0 if is_plain and signal.SIGTERM not in blocked else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert getattr(signal.getsignal(signal.SIGTERM), 'ends_forks', False)
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for _ in range(20):  # without it, about one in a hundred waits for ever
            with multiprocessing.get_context('fork').Pool(2):
                pass
