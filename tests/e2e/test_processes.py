"""Real processes: kill -9 and resume, and two processes that train together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / 'configs' / 'mini' / 'digits.py')
OPTIONS = (
    'model.backbone.method.type=LoRA',
    'train_cfg.max_epochs=6',
    'train_dataloader.batch_size=4',
    'default_hooks.logger.interval=1',
)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    from mmpetl.datasets.mini import make

    make(tmp_path / 'data', names=['vtab-1k/digits'], size='tiny')
    return {
        **os.environ,
        'MMPETL_DATA': str(tmp_path / 'data'),
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        'CUDA_VISIBLE_DEVICES': '',
    }


def command(work_dir: Path, *more: str) -> list[str]:
    tool = str(ROOT / 'tools' / 'train.py')
    return [sys.executable, tool, CONFIG, '--work-dir', str(work_dir), *more] + [
        '--cfg-options',
        *OPTIONS,
    ]


def final_state(work_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / 'epoch_6.pth', weights_only=True)['state_dict']


def test_kill_9_and_resume_give_the_weights_of_a_whole_run(tmp_path, environment):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    log = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    subprocess.run(command(whole), env=environment, check=True, **log)
    process = subprocess.Popen(command(killed), env=environment, **log)
    deadline = time.monotonic() + 120
    while not (killed / 'last_checkpoint').exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / 'epoch_6.pth').exists()
    subprocess.run(command(killed, '--resume'), env=environment, check=True, **log)
    mine, theirs = final_state(whole), final_state(killed)
    assert list(mine) == list(theirs)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


def test_two_processes_train_together_without_a_gpu(tmp_path, environment):
    work_dir = tmp_path / 'two'
    script = [str(ROOT / 'tools' / 'dist_train.sh'), CONFIG, '2']
    script += ['--work-dir', str(work_dir), '--cfg-options', *OPTIONS]
    environment['PORT'] = str(29600 + os.getpid() % 300)
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # The thirty samples are shared: 30 / 2 processes / batches of 4, rounded up.
    assert '[6][4/4]' in done.stdout + done.stderr
    assert final_state(work_dir)


@pytest.mark.slow
def test_a_sharded_base_trains_to_the_same_weights_and_goes_on_without(
    tmp_path, environment
):
    environment['PORT'] = str(29500 + os.getpid() % 90)
    ends = {}
    for name, flags in (('whole', ()), ('parts', ('--shard-base',))):
        script = [str(ROOT / 'tools' / 'dist_train.sh'), CONFIG, '2', *flags]
        script += ['--work-dir', str(tmp_path / name), '--cfg-options', *OPTIONS]
        done = subprocess.run(script, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ('base is sharded' in done.stdout + done.stderr) == bool(flags)
        ends[name] = final_state(tmp_path / name)
    for key, value in ends['whole'].items():
        assert torch.equal(ends['parts'][key], value), key
    # What it leaves is a checkpoint like any other.
    (tmp_path / 'parts' / 'epoch_6.pth').unlink()
    script = [str(ROOT / 'tools' / 'dist_train.sh'), CONFIG, '2', '--resume']
    script += ['--work-dir', str(tmp_path / 'parts'), '--cfg-options', *OPTIONS]
    subprocess.run(script, env=environment, check=True, capture_output=True)
    for key, value in final_state(tmp_path / 'parts').items():
        assert torch.equal(ends['whole'][key], value), key
    alone = subprocess.run(
        command(tmp_path / 'alone', '--shard-base'),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1].startswith('error: a base is sharded over the')


def test_an_error_in_several_processes_is_one_line_each(tmp_path, environment):
    script = [str(ROOT / 'tools' / 'dist_train.sh'), CONFIG, '2', '--cfg-options']
    environment['PORT'] = str(29900 + os.getpid() % 90)
    done = subprocess.run(
        [*script, 'model.backbone.method.type=LoRa'],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    lines = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
    # The launcher may stop the second process before it has spoken.
    assert 1 <= len(lines) <= 2
    assert all("Did you mean 'LoRA'?" in line for line in lines)


def begun(process: subprocess.Popen, work_dir: Path) -> None:
    """Wait until a run has written its first checkpoint; minutes on a busy machine."""
    deadline = time.monotonic() + 600
    while not (work_dir / 'last_checkpoint').exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP', 'SIGINT'])
def test_a_signal_to_the_group_saves_and_leaves_with_one_line(
    tmp_path, environment, name
):
    """As a terminal and a batch system send it: data workers get it too.

    What a shell's background job or nohup ignores would be ignored by the run, too.
    """
    work_dir, number = tmp_path / 'run', getattr(signal, name)
    options = ('train_cfg.max_epochs=400', 'train_dataloader.num_workers=2')
    process = subprocess.Popen(
        command(work_dir) + list(options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )
    try:
        begun(process, work_dir)
        time.sleep(0.5)
        sent = time.monotonic()
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:  # or it would train on for 400 epochs
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert time.monotonic() - sent < 25
    assert process.returncode == 128 + number
    assert 'Traceback' not in said
    (line,) = [x for x in said.splitlines() if x.startswith('error: ')]
    assert f'stopped by {name}; saved as stopped_at_iter_' in line
    assert line.endswith('--resume')
    assert (work_dir / 'last_checkpoint').read_text().startswith('stopped_at_iter_')
    left = Path('/proc').glob('[0-9]*/stat') if Path('/proc').is_dir() else ()
    groups = [p.read_text().rpartition(')')[2].split()[2] for p in left if p.exists()]
    assert str(process.pid) not in groups


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tmp_path, environment):
    work_dir = tmp_path / 'run'
    log = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    options = ['train_cfg.max_epochs=400']
    first = subprocess.Popen(command(work_dir) + options, env=environment, **log)
    try:
        begun(first, work_dir)
        second = subprocess.run(
            command(work_dir, '--resume'),
            env=environment,
            capture_output=True,
            text=True,
        )
        assert second.returncode == 1
        assert f'pid {first.pid}; wait for its end' in second.stderr
        assert 'Traceback' not in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_a_short_part_of_the_kill_series(tmp_path):
    tool = str(ROOT / 'tools' / 'misc' / 'kill_series.py')
    part = ['--only', 'inside epochs, EMA', 'best, published, 2', '--kills', '2']
    run = [sys.executable, tool, '--out', str(tmp_path / 'kills'), *part]
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
        assert '4 of 4 ended as a run that was not killed' in done.stdout
