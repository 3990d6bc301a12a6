"""Training on a person's own pictures: from a folder to a delta and a page about it.

Recipes are those in ``configs/own``, and what runs is a job of the benchmark, so that
splits, resuming, records and predictions are those of every other run. What is here:
which trunk and which preprocessing (:mod:`.trunks`; of boxes and masks :mod:`.maps`),
how long to train (:mod:`.defaults`), what is trained on and what becomes of it
(:mod:`.task` and :mod:`.results`, :mod:`.boxes`, :mod:`.masks`), a run (:mod:`.train`),
which method (:mod:`.auto`), the page (:mod:`.page`, with :mod:`.page_scenes` of boxes
and masks), and what one line asks for (:mod:`.line`).
"""

from __future__ import annotations

from mmpetl.lazy import lazy_names

_HOMES = {
    'Choice': 'auto',
    'MapTrunk': 'maps',
    'OwnRun': 'train',
    'Settings': 'defaults',
    'Task': 'task',
    'Trunk': 'trunks',
    'check_line': 'line',
    'choose_method': 'auto',
    'map_trunk_of': 'maps',
    'prepare': 'train',
    'run_line': 'line',
    'settings_for': 'defaults',
    'train_own': 'train',
    'trunk_of': 'trunks',
    'write_page': 'page',
}

__all__ = sorted(_HOMES)  # noqa: PLE0605

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
