"""Facts stated in more than one file agree; the requirement files can be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmpetl import doctor
from mmpetl.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_has_the_version():
    lines = (ROOT / 'CITATION.cff').read_text().splitlines()
    assert f'version: {__version__}' in lines


def test_setup_states_the_version():
    command = [sys.executable, 'setup.py', '--version']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[-1] == __version__, done.stderr


def test_every_requirement_is_pinned():
    requirement = doctor._requirement_class()
    pins = [requirement(line) for line in doctor._lines('constraints')]
    names = {doctor.canonical(pin.name) for pin in pins}
    files = ('runtime', 'openmmlab', 'video', 'headless', 'tests', 'optional')
    for file in (*files, 'transformers', 'peft', 'onnx'):
        for line in doctor._lines(file):
            assert doctor.canonical(requirement(line).name) in names, line


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_one_pin_applies_on_each_python(python):
    requirement = doctor._requirement_class()
    seen: set[str] = set()
    for line in doctor._lines('constraints'):
        pin = requirement(line)
        env = {'python_version': python}
        if pin.marker is not None and not pin.marker.evaluate(env):
            continue
        assert doctor.canonical(pin.name) not in seen, line
        assert str(pin.specifier).startswith('=='), line
        seen.add(doctor.canonical(pin.name))
    assert {'torch', 'numpy', 'setuptools', 'mmcv-lite'} <= seen
