"""Old objects are spared while a data set is built, and looked at again behind it."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from mmengine.dataset import BaseDataset, base_dataset

from mmpetl.compat.garbage import heap_spared


class Ring:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


def dropped() -> weakref.ref[Ring]:
    """One that nobody holds any more."""
    return weakref.ref(Ring())


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is set aside, as where a run begins, and nothing collected unasked."""
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()
    gc.freeze()


def test_only_what_is_new_is_looked_at(thawed):
    old = dropped()
    with heap_spared():
        new = dropped()
        gc.collect()
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_a_process_that_set_its_objects_aside_keeps_them_so(thawed):
    old = dropped()
    gc.freeze()
    with heap_spared():
        pass
    gc.collect()
    assert old() is not None
    gc.unfreeze()


def test_an_error_thaws_them(thawed):
    old = dropped()
    with pytest.raises(KeyError), heap_spared():
        raise KeyError
    gc.collect()
    assert old() is None


class Three(BaseDataset):
    """Three samples, which no file lists."""

    def load_data_list(self) -> list[dict[str, int]]:
        return [{'label': i} for i in range(3)]


def test_a_data_set_collects_behind_what_is_loaded(thawed, monkeypatch):
    frozen = []
    there = SimpleNamespace(collect=lambda: frozen.append(gc.get_freeze_count()))
    monkeypatch.setattr(base_dataset, 'gc', there)
    assert len(Three()) == 3
    (count,) = frozen
    assert count > 10_000
    assert gc.get_freeze_count() == 0


def test_arguments_of_a_data_set_can_still_be_asked_for():
    assert 'lazy_init' in inspect.signature(Three).parameters
