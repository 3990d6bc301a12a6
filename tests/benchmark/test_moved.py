"""Old paths of what has moved: they work, and say where it is now."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MOVED = {
    'mmpetl.benchmark.compose': ['compose_job', 'config_hash', 'split_options'],
    'mmpetl.benchmark.facts': ['backbone_of', 'task_of', 'versions'],
    'mmpetl.benchmark.job': ['Outcome', 'work', 'lost', 'primary_of', 'curves_of'],
    'mmpetl.benchmark.search': ['PruningHook', 'FileLock', 'encode', 'FALLBACK'],
    'mmpetl.benchmark.tables': ['render', 'FORMATS', 'METRICS'],
    'mmpetl.analysis.jobs': ['run_jobs', 'Variant'],
}
HERE = {
    'mmpetl.benchmark.job': ['Task', 'collect', 'Pruned', 'LOG', 'PREDICTIONS'],
    'mmpetl.benchmark.search': ['load_study', 'space_of', 'decode', 'Task'],
    'mmpetl.benchmark.tables': ['Table', 'Row', 'Cell', 'metric_of', 'percent'],
}
"""Names that their old module uses itself, and so still has."""


@pytest.mark.parametrize(
    ('module', 'name'), [(m, name) for m, names in MOVED.items() for name in names]
)
def test_a_moved_name_is_found_with_a_warning(module: str, name: str) -> None:
    old = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf'{module}\.{name} is now ') as said:
        value = getattr(old, name)
    assert len(said) == 1
    home, _, new = str(said[0].message).rpartition(' is now ')[2].rpartition('.')
    assert value is getattr(importlib.import_module(home), new)
    assert home != module


@pytest.mark.parametrize(('module', 'names'), HERE.items())
def test_names_that_a_module_uses_are_still_there(
    module: str, names: list[str]
) -> None:
    assert set(names) <= set(vars(importlib.import_module(module)))


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    from mmpetl.benchmark import tables

    with pytest.raises(AttributeError, match='no attribute'):
        tables.rendre  # noqa: B018


def test_the_mini_sizes_by_their_old_name() -> None:
    from mmpetl.benchmark import sizes

    with pytest.warns(DeprecationWarning, match='sizes'):
        assert sizes.MINI['LoRA'] == {'rank': 4}


def test_every_old_speed_script_leads_to_a_new_one() -> None:
    scripts = [p for p in (ROOT / 'benchmarks').glob('*.py') if p.name != '_moved.py']
    assert {p.stem for p in scripts} == {'backbones', 'methods', 'report_page', 'sizes'}
    for path in scripts:
        (name,) = re.findall(r"_moved\.run\('(.*)'\)", path.read_text())
        assert (ROOT / 'speed' / name).is_file()


def test_an_old_speed_command_says_where_it_is_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    old = 'benchmarks/methods.py'
    monkeypatch.setattr(sys, 'argv', [old, '--help'])
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / old), run_name='__main__')
    out, err = capsys.readouterr()
    assert end.value.code == 0
    assert err == 'benchmarks/methods.py has moved to speed/methods.py\n'
    assert '--backbone {vit_b,swin_b}' in out
