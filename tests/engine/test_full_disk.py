"""A full disk: one line that says what is missing, and a run that can be resumed."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
import resource

import pytest
import torch
from mmengine.hooks import Hook

from mmpetl.apis.run import cli_errors
from mmpetl.core import PETLError
from mmpetl.engine.full_disk import let_log_fail, logs_may_fail, writes_named


class FullAt(Hook):
    """Lets no file grow beyond 512 bytes from an iteration on."""

    priority = 'HIGHEST'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            # Python has SIGXFSZ ignored, so that writing raises EFBIG.
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))


def final_state(folder) -> dict:
    saved = torch.load(folder / 'iter_20.pth', weights_only=True)
    moments = saved['optimizer']['state'].values()
    states = [{k: v for k, v in m.items() if k != 'step'} for m in moments]
    return {'weights': dict(saved['state_dict']), 'moments': states}


def ended(work) -> tuple[int, str]:
    """Exit code and standard error of ``work``, done as a command would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), cli_errors():
            work()
    except SystemExit as end:
        return end.code, said.getvalue()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return 0, said.getvalue()


@pytest.mark.parametrize('logs', [False, True])
def test_a_run_on_a_full_disk_names_what_is_missing_and_goes_on(
    make_runner, tmp_path, logs
):
    """Saved at 5; full from 7 on, so that 10 is missing, or the curves of step 7 are.

    With ``logs`` every step writes a line before anything else is written.
    """
    level = 'INFO' if logs else 'WARNING'
    hook = {'type': 'LoggerHook', 'interval': 1 if logs else 1000}
    saves = {'type': 'mmpetl.DeltaCheckpointHook', 'interval': 5, 'by_epoch': False}

    def run(folder, **other):
        return make_runner(
            folder,
            by_epoch=False,
            log_level=level,
            default_hooks={'logger': hook, 'checkpoint': saves},
            **other,
        )

    folder = tmp_path / 'full'

    def fill() -> None:
        with logs_may_fail():
            runner = run('full', hooks=[FullAt(7)])
        let_log_fail(runner.logger)
        with writes_named(folder):
            runner.train()

    code, said = ended(fill)
    assert code == 1
    assert 'Traceback' not in said
    assert 'Logging error' not in said
    (line,) = [x for x in said.splitlines() if x.startswith('error: ')]
    what = f'cannot write .*{folder}' if logs else f'{folder}/iter_10.pth is missing'
    assert re.match(f'error: {what}.*: File too large', line)
    assert 'the newest whole checkpoint is iter_5.pth, and --resume goes on' in line
    lacking = re.findall(rf'warning: {folder}.*log lacks lines from here on: F', said)
    assert len(lacking) == int(logs)
    assert [p.name for p in folder.glob('iter_*')] == ['iter_5.pth']
    assert (folder / 'last_checkpoint').read_text() == 'iter_5.pth'

    run('whole').train()
    run('full', resume=True).train()
    mine, theirs = final_state(tmp_path / 'whole'), final_state(folder)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_only_refused_writing_is_a_full_disk(tmp_path):
    with pytest.raises(PETLError, match='there is no whole checkpoint; make room'):
        with writes_named(tmp_path):
            raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(FileNotFoundError):
        with writes_named(tmp_path):
            raise FileNotFoundError(errno.ENOENT, 'No such file', 'x')


def test_a_fault_of_a_handler_itself_is_shown(tmp_path, capsys):
    """Only what the system refuses is one line; a wrong format string is a defect."""
    logger = logging.Logger('x')
    logger.addHandler(logging.FileHandler(tmp_path / 'x.log'))
    let_log_fail(logger)
    logger.info('%d', 'no number')
    assert 'TypeError' in capsys.readouterr().err
    assert logging.StreamHandler.handleError is logging.Handler.handleError
