"""Old paths of what has moved: they work, and say where it is now."""

from __future__ import annotations

import importlib

import pytest

MOVED = {
    'mmpetl.benchmark.compose': ['compose_job', 'config_hash', 'split_options'],
    'mmpetl.benchmark.facts': ['backbone_of', 'task_of', 'versions'],
    'mmpetl.benchmark.job': ['Outcome', 'work', 'lost', 'primary_of', 'curves_of'],
    'mmpetl.benchmark.search': ['PruningHook', 'FileLock', 'FALLBACK'],
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
