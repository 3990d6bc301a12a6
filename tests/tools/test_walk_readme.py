"""What the README has a reader type is found, run in order, until a line fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def walking() -> ModuleType:
    path = ROOT / 'tools' / 'misc' / 'walk_readme.py'
    spec = importlib.util.spec_from_file_location('walk_readme', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_page_goes_from_an_installation_to_onnx(walking):
    text = (ROOT / 'README.md').read_text('utf-8')
    steps = list(walking.steps_of(text, list(walking.SECTIONS)))
    commands = [s.source.split()[1] for s in steps if not s.python]
    assert all(s.source.startswith('mmpetl ') for s in steps if not s.python)
    assert commands[:3] == ['doctor', 'predict', 'data']
    last = commands[commands.index('train-own') :]
    assert {'predict', 'publish', 'fold', 'export'} <= {*last}
    assert sum(s.python for s in steps) == 2
    with pytest.raises(PETLError, match="no section 'Nothing'"):
        list(walking.steps_of(text, ['Nothing']))


PAGE = """# Page
## One
```
pip install nothing
echo a \\
  b > a.txt  # a file
```
```text
false
```
## Two
```python
from pathlib import Path

Path('b.txt').write_text(Path('a.txt').read_text())
```
```
ls b.txt
echo no; echo what is wrong >&2; exit 3
touch never
```
"""


def test_steps_run_in_a_folder_until_one_fails(walking, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', 'of this checkout')
    steps = walking.steps_of(PAGE, ['One', 'Two'])
    with pytest.raises(PETLError, match='ends with 3: what is wrong'):
        walking.walk(steps, Path(sys.executable), tmp_path)
    assert (tmp_path / 'b.txt').read_text() == 'a b\n'
    assert not (tmp_path / 'never').exists()
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(' s  ')[2] for line in said] == [
        'echo a b > a.txt',
        "Path('b.txt').write_text(Path('a.txt').read_text())",
        'ls b.txt',
        'echo no; echo what is wrong >&2; exit 3',
    ]
