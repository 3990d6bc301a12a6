"""A method from outside of the package: its space, workers and records."""

from __future__ import annotations

import hashlib

from mmpetl.benchmark import run_facts, spaces, sweep
from mmpetl.core import Method
from mmpetl.registry import METHODS


def test_its_settings_lie_beside_its_file_and_records_tell_the_file(
    tmp_path, monkeypatch
):
    file = tmp_path / 'nudge.py'
    file.write_text('rank = 4\n')
    made = type('Nudge', (Method,), {'family': 'adapter', '__module__': 'nudge'})
    monkeypatch.setattr(made, 'file', classmethod(lambda cls: file))
    monkeypatch.setitem(METHODS._module_dict, 'Nudge', made)
    warned: list[str] = []
    assert spaces.space_of('Nudge', warned.append)[1] == 'fallback'
    assert warned
    folder = tmp_path / 'configs' / 'nudge'
    folder.mkdir(parents=True)
    (folder / 'search_space.py').write_text("space = {'optim_wrapper.x': [1, 2]}\n")
    space, source = spaces.space_of('Nudge', warned.append)
    assert space == {'optim_wrapper.x': [1, 2]}
    assert source == 'configs/nudge/search_space.py'
    digest = hashlib.sha256(b'rank = 4\n').hexdigest()
    assert run_facts.versions('LoRA + Nudge')['nudge.py'] == digest[:12]
    assert not [name for name in run_facts.versions('LoRA') if name.endswith('.py')]


def test_workers_are_told_the_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPETL_METHODS', 'nudge.py')
    assert sweep.environment()['MMPETL_METHODS'] == str(tmp_path / 'nudge.py')
