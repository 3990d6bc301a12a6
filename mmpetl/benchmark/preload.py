"""Imported by the process that workers are forked from, so that they begin fast."""

from __future__ import annotations

import importlib
import os

import mmpetl.apis.run
import mmpetl.benchmark.job
import mmpetl.datasets
import mmpetl.engine
import mmpetl.evaluation
import mmpetl.models  # noqa: F401
from mmpetl.benchmark.executors.base import PRELOAD

PARTS = ('apis', 'datasets', 'evaluation', 'models')

for _toolbox in filter(None, os.environ.get(PRELOAD, '').split(',')):
    for _part in PARTS:
        # What is missing here is missed where it is used, with a reason.
        try:
            importlib.import_module(f'{_toolbox}.{_part}')
        except ModuleNotFoundError:
            continue
