"""The doctor: made-up environments with one ailment each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmpetl import doctor

ROOT = Path(__file__).resolve().parents[2]


def only(findings):
    assert len(findings) == 1
    return findings[0]


def test_missing_wrong_and_untested_versions():
    versions = {'torch': '2.4.0', 'numpy': '2.0.0'}
    torch, numpy, timm = doctor.check_required(
        versions,
        ['torch>=2.6', 'numpy>=1.26', 'timm'],
        ['torch==2.11.0', 'numpy==2.4.6', 'timm==1.0.31'],
    )
    assert (torch.verdict, torch.found) == ('wrong', '2.4.0')
    assert torch.mend == 'pip install "torch==2.11.0"'
    assert (numpy.verdict, numpy.fatal) == ('note', False)
    assert (timm.verdict, timm.fatal) == ('missing', True)


def test_video_is_a_note_that_brings_no_second_opencv():
    finding = only(doctor.check_video({}, ['mmaction2==1.2.0']))
    assert (finding.verdict, finding.fatal) == ('note', False)
    assert finding.mend.endswith('pip install --no-deps "mmaction2==1.2.0"')
    assert only(doctor.check_video({'mmaction2': '1.2.0'})).verdict == 'ok'


def test_markers_are_respected():
    assert not doctor.check_required({}, ["tomli; python_version < '3'"])


def test_local_versions_count_as_their_release():
    versions = {'torch': '2.11.0+cpu'}
    finding = only(doctor.check_required(versions, ['torch>=2.6'], ['torch==2.11.0']))
    assert finding.verdict == 'ok'


def test_a_compiled_mmcv_serves_for_mmcv_lite():
    lite = ['mmcv-lite>=2.1.0,<2.2']
    assert only(doctor.check_required({'mmcv': '2.1.0'}, lite)).verdict == 'ok'
    old = only(doctor.check_required({'mmcv': '1.7.0'}, lite))
    assert (old.name, old.verdict) == ('mmcv', 'wrong')


@pytest.mark.parametrize(
    ('versions', 'verdict'),
    [
        ({}, 'missing'),
        ({'opencv-python': '4.9'}, 'ok'),
        ({'opencv-contrib-python-headless': '5.0'}, 'ok'),
        ({'opencv-python': '5.0', 'opencv-contrib-python': '5.0'}, 'note'),
        ({'opencv-python': '4.9', 'opencv-contrib-python': '5.0'}, 'clash'),
    ],
)
def test_opencv(versions, verdict):
    finding = only(doctor.check_opencv(versions))
    assert finding.verdict == verdict
    assert all(name in finding.mend for name in versions) or verdict == 'ok'


def test_both_mmcv_clash():
    assert not doctor.check_mmcv({'mmcv': '2.1.0'})
    assert not doctor.check_mmcv({'mmcv-lite': '2.1.0'})
    both = only(doctor.check_mmcv({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}))
    assert both.verdict == 'clash'
    assert 'pip uninstall -y mmcv mmcv-lite' in both.mend


def test_transformers_is_a_note():
    """None of its releases serves both; none of the notes tells to break the other."""
    ours = ["transformers>=5.24; python_version >= '3.11'"]
    assert not doctor.check_transformers({}, ours)
    new = only(doctor.check_transformers({'transformers': '5.24.0'}, ours))
    assert (new.verdict, new.fatal) == ('note', False)
    assert new.wanted == 'optional, >=5.24'
    assert 'multimodal' in new.mend
    assert 'pip install' not in new.mend
    early = only(doctor.check_transformers({'transformers': '5.20.2'}, ours))
    assert 'multimodal' in early.mend
    assert 'pip install "transformers>=5.24" (python_version >= "3.11")' in early.mend
    old = only(doctor.check_transformers({'transformers': '4.31.0'}, ours))
    assert 'multimodal' not in old.mend
    assert 'transformers>=5.24' in old.mend
    # Where the requirement files are not at hand, as in a wheel.
    assert only(doctor.check_transformers({'transformers': '4.31.0'})).verdict == 'ok'


def test_the_declared_transformers_is_pinned_where_it_can_be_had():
    """The pin and the range agree on every Python that mmpetl runs on."""
    requirement = doctor._requirement_class()
    (line,) = doctor._lines('transformers')
    ours = requirement(line)
    for python in ('3.10', '3.11', '3.12'):
        env = {'python_version': python}
        pins = [requirement(line) for line in doctor._lines('constraints')]
        pins = [
            pin
            for pin in pins
            if pin.name == 'transformers'
            and (pin.marker is None or pin.marker.evaluate(env))
        ]
        assert bool(pins) == (ours.marker is None or ours.marker.evaluate(env))
        for pin in pins:
            assert ours.specifier.contains(str(pin.specifier).removeprefix('=='))


def test_torch_and_torchvision_belong_together():
    needs = ['numpy', 'torch==2.11.0', 'pillow!=8.3']
    fits = {'torch': '2.11.0+cu130', 'torchvision': '0.26.0'}
    assert only(doctor.check_torch_pair(fits, needs)).verdict == 'ok'
    clash = only(doctor.check_torch_pair({**fits, 'torch': '2.10.0'}, needs))
    assert clash.verdict == 'clash'
    assert clash.mend == 'pip install "torch==2.11.0"'


def test_pkg_resources_and_python():
    assert not doctor.check_pkg_resources(True)
    finding = only(doctor.check_pkg_resources(False))
    assert finding.fatal
    assert 'setuptools<81' in finding.mend
    assert doctor.check_python((3, 9)).fatal
    assert not doctor.check_python((3, 12)).fatal
    assert doctor.check_python((3, 13)).fatal


def test_safe_loading_switched_off_is_a_clash():
    name = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    assert not doctor.check_unpickling({})
    assert not doctor.check_unpickling({name: '0'})
    assert only(doctor.check_unpickling({name: '1'})).fatal


def test_a_module_that_does_not_load(tmp_path, monkeypatch):
    (tmp_path / 'broken_binary.py').write_text("raise ImportError('libGL.so.1: no')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = only(doctor.check_imports(['broken_binary', 'not_there_at_all']))
    assert finding.fatal
    assert 'libGL.so.1' in finding.found


def test_report_lists_each_remedy_once():
    findings = [
        doctor.Finding('good', '1', 'any', 'ok'),
        doctor.Finding('bad', '-', '>=2', 'missing', 'pip install bad'),
    ]
    text = doctor.report(findings)
    assert text.count('pip install bad') == 1
    assert text.endswith('1 to mend')


def test_exit_code_follows_the_findings():
    command = [sys.executable, str(ROOT / 'mmpetl' / 'doctor.py')]
    env = {**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert 'unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' in done.stdout


def test_it_runs_where_torch_does_not(tmp_path):
    """As a file, with a torch that cannot load: a report, no traceback."""
    (tmp_path / 'torch.py').write_text("raise ImportError('no torch today')")
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, str(ROOT / 'mmpetl' / 'doctor.py')]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert 'no torch today' in done.stdout
    assert 'Traceback' not in done.stderr
