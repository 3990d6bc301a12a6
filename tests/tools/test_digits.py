"""The main job: what it runs, and the settings that a search found for it."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpetl.benchmark.spaces import holds, space_of
from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = json.loads((ROOT / 'configs/mini/digits_settings.json').read_text())


@pytest.fixture
def digits():
    return SimpleNamespace(**runpy.run_path(str(ROOT / 'tools' / 'digits.py')))


def args_of(digits, monkeypatch, *argv):
    monkeypatch.setattr(sys, 'argv', ['digits.py', *argv])
    return digits.parse_args()


def test_runs_have_about_as_many_steps_each(digits, monkeypatch):
    args = args_of(digits, monkeypatch)
    runs = digits.runs_of(args)
    assert len(runs) == 3 * 3 * len(digits.METHODS) == len(set(runs))
    for run in runs:
        steps = run.epochs * -(-run.shots // digits.BATCH)
        assert 0.8 * digits.STEPS <= steps <= 1.25 * digits.STEPS


@pytest.mark.parametrize('name', SETTINGS['methods'])
def test_what_was_found_lies_in_the_space_and_reaches_the_config(digits, name):
    found = SETTINGS['methods'][name]
    space, source = space_of(name, pytest.fail)
    assert source == found['space']
    assert set(found['options']) == set(space)
    default = found['validation_accuracy'] == found['default_accuracy']
    assert default or holds(space, found['options'])
    assert found['validation_accuracy'] >= found['default_accuracy']
    config = digits.Run(name, 200, 42, 10, None).config()
    for key, value in found['options'].items():
        node = config
        for part in key.split('.'):
            node = node[part]
        assert node == value
    other = digits.Run(name, 200, 42, 10, 1e-3).config()
    assert other.optim_wrapper.optimizer.lr == 1e-3


def test_every_method_had_as_many_trials_and_the_table_says_so(digits, monkeypatch):
    args = args_of(digits, monkeypatch)
    assert set(SETTINGS['methods']) == set(digits.METHODS)
    assert len({found['trials'] for found in SETTINGS['methods'].values()}) == 1
    assert '--plan digits' in SETTINGS['command']
    record = {
        'method': 'LoRA',
        'backbone_params': 9216,
        'seconds': 4.0,
        'peak_memory_bytes': 2**20,
        'trials': 6,
        'validation_accuracy': 94.5,
    }
    records = [
        {**record, 'shots': 100, 'accuracy': value} for value in (80.0, 82.0, 84.0)
    ]
    rows = {row[0]: row[1:] for row in digits.rows_of(records, args)}
    assert rows['LoRA'] == [
        '9,216',
        '82.0 ± 2.0',
        '...',
        '...',
        '6, best 94.5',
        '4',
        '1',
    ]


def test_a_method_of_clips_is_refused_by_name_and_left_out_of_all(
    digits, monkeypatch, capsys
):
    args = args_of(digits, monkeypatch, '--methods', 'AIM')
    with pytest.raises(PETLError, match='AIM looks along time'):
        digits.serving(['AIM'], args)
    args = args_of(digits, monkeypatch, '--methods', 'all')
    assert digits.serving(['AIM', 'BitFit'], args) == ['BitFit']
    assert 'left out: AIM' in capsys.readouterr().err


def test_a_folder_without_a_search_is_refused(digits, tmp_path):
    with pytest.raises(PETLError, match='0 kinds of finished searches'):
        digits.take(tmp_path)
