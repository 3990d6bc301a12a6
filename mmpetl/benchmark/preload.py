"""Imported by the process that workers are forked from, so that they begin fast."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil

import mmpetl.apis.delta
import mmpetl.apis.run
import mmpetl.backbones
import mmpetl.benchmark.job
import mmpetl.config.compose
import mmpetl.datasets
import mmpetl.engine
import mmpetl.evaluation
import mmpetl.models  # noqa: F401
from mmpetl.benchmark.executors.base import PRELOAD

PARTS = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization')
LATE = ('matplotlib.backends.backend_agg', 'setuptools', 'safetensors.torch')
"""What a Runner imports when it is built or first logs."""

_toolboxes = list(filter(None, os.environ.get(PRELOAD, '').split(',')))
_stems = [info.name for info in pkgutil.iter_modules(mmpetl.backbones.__path__)]
_backbones = [f'mmpetl.backbones.{s}' for s in _stems if s.split('_')[0] in _toolboxes]

for _name in (*LATE, *(f'{t}.{p}' for t in _toolboxes for p in PARTS), *_backbones):
    # What is missing here is missed where it is used, with a reason.
    try:
        importlib.import_module(_name)
    except ModuleNotFoundError:
        continue

# MMEngine collects garbage with each data set that it builds. What is loaded here
# stays, so no worker needs to look through it, and to copy its pages for that.
gc.collect()
gc.freeze()
