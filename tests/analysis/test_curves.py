"""What several logs of one run say together."""

from __future__ import annotations

import json
import os

import pytest

from mmpetl.analysis.curves import read_log, summary
from mmpetl.core import PETLError


def log(folder, when, rows, end='\n'):
    path = folder / when / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, rows)) + end)
    return path


def losses(first, last, start):
    return [{'loss': start - step, 'step': step} for step in range(first, last + 1, 10)]


def test_a_resumed_run_is_read_as_a_whole(tmp_path):
    """Killed at step 50, resumed from 30: what was done twice counts once."""
    log(tmp_path, '20260101_000000', [*losses(10, 50, 100), {'top1': 1.0, 'step': 1}])
    late = log(
        tmp_path,
        '20260102_000000',
        [*losses(40, 60, 200), {'top1': 3.0, 'step': 1}, {'top1': 4.0, 'step': 2}],
    )
    # Its folder says when it began, whatever a copy did to the time of the file.
    os.utime(late, (0, 0))
    found = read_log(tmp_path)
    assert found['loss'] == ([10, 20, 30, 40, 50, 60], [90, 80, 70, 160, 150, 140])
    assert found['top1'] == ([1, 2], [3.0, 4.0])
    assert read_log(late)['loss'] == ([40, 50, 60], [160, 150, 140])


def test_a_run_that_began_anew_stands_for_itself(tmp_path):
    log(tmp_path, '20260101_000000', [*losses(10, 50, 100), {'top1': 1.0, 'step': 1}])
    log(tmp_path, '20260102_000000', losses(10, 20, 200))
    assert read_log(tmp_path) == {'loss': ([10, 20], [190, 180])}


@pytest.mark.parametrize('resumes', [False, True])
def test_the_config_says_whether_a_run_goes_on(tmp_path, resumes):
    log(tmp_path, '20260101_000000', losses(10, 40, 100))
    late = log(tmp_path, '20260102_000000', [{'loss': 7.0, 'step': 50}])
    late.with_name('config.py').write_text(f'seed = 1\nresume = {resumes}\n')
    kept = ([10, 20, 30, 40], [90, 80, 70, 60]) if resumes else ([], [])
    assert read_log(tmp_path) == {'loss': ([*kept[0], 50], [*kept[1], 7.0])}


def test_a_resumed_part_may_have_logged_validation_alone(tmp_path):
    log(tmp_path, '20260101_000000', losses(10, 20, 100))
    late = log(tmp_path, '20260102_000000', [{'top1': 5.0, 'step': 2}])
    late.with_name('config.py').write_text('resume = True\n')
    found = read_log(tmp_path)
    assert found == {'loss': ([10, 20], [90, 80]), 'top1': ([2], [5.0])}


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path):
    path = log(tmp_path, '20260101_000000', losses(10, 20, 100), '\n{"loss": 7')
    assert read_log(path)['loss'] == ([10, 20], [90, 80])
    path.write_text(path.read_text() + '\n')
    with pytest.raises(PETLError, match='line 3 of .* is no line of a log'):
        read_log(path)


def test_least_and_most_are_those_of_numbers():
    nan = float('nan')
    line = summary({'loss': ([1, 2, 3], [nan, 2.0, 1.0])})[1]
    assert line.split() == ['loss', '3', 'nan', '1', '2', '1']
