"""Parts of mmpretrain and mmaction2 that belong to mmdet wait until mmdet is loaded.

Both define classes for mmdet's registries as soon as their models are imported, and so
import mmdet's models, and with these SciPy, scikit-learn and Matplotlib: a third of
what importing the models of an image task takes (speed/footprint.py). Each copes with
a missing mmdet, and is first told that it is missing; once mmdet's models are there,
whoever imported them, it is loaded again, and before that its names can be asked for as
ever.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

MODELS = 'mmdet.models'
PARTS: dict[str, tuple[str, ...]] = {
    'mmpretrain.models.utils.res_layer_extra_norm': ('ResLayerExtraNorm',),
    'mmaction.models.roi_heads': (
        'ACRNHead',
        'AVARoIHead',
        'BBoxHeadAVA',
        'FBOHead',
        'LFBInferHead',
        'SingleRoIExtractor3D',
    ),
    'mmaction.models.task_modules': ('MaxIoUAssignerAVA',),
}
"""Modules that wait -> what they define. Packages on the way pass these names on."""

UTILS = 'mmpretrain.models.utils'  # says that it has what waits, and would have None

_waiting: set[str] = set()
_hiding = threading.local()


def is_hidden(name: str) -> bool:
    """Whether this thread is loading a part for which mmdet is to be missing."""
    return name == MODELS and getattr(_hiding, 'on', False)


def load_part(module: ModuleType, load: Callable[[ModuleType], None]) -> None:
    """Load a part, without mmdet's models unless these are already there."""
    if MODELS in sys.modules or not _is_installed():
        load(module)
        return
    with _hidden():
        load(module)
    _waiting.add(module.__name__)
    for holder in (module, *_packages(module.__name__)):
        holder.__getattr__ = _asked(holder)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec('mmdet') is not None
    except ValueError:  # a process has blocked it
        return False


@contextmanager
def _hidden() -> Iterator[None]:
    _hiding.on = True
    try:
        yield
    finally:
        _hiding.on = False


def _packages(part: str) -> Iterator[ModuleType]:
    """The packages that pass on what a part defines, but for the outermost."""
    while (part := part.rpartition('.')[0]).count('.'):
        yield sys.modules[part]


def _asked(holder: ModuleType) -> Callable[[str], Any]:
    """A module's ``__getattr__``: what waits is loaded when it is asked for."""
    waiting = {
        name
        for part, names in PARTS.items()
        if f'{part}.'.startswith(f'{holder.__name__}.')
        for name in names
    }

    def get(name: str) -> Any:
        if name in waiting and _waiting:
            importlib.import_module(MODELS)
            if name in vars(holder):
                return vars(holder)[name]
        raise AttributeError(
            f'module {holder.__name__!r} has no attribute {name!r}',
            name=name,
            obj=holder,
        )

    return get


def leave_out(utils: ModuleType) -> None:
    """Take what waits out of the names of ``mmpretrain.models.utils``."""
    for part in _waiting:
        if part.startswith(f'{utils.__name__}.'):
            for name in PARTS[part]:
                delattr(utils, name)
                utils.__all__.remove(name)


def load_waiting() -> None:
    """Load the parts that waited: mmdet's models are there now."""
    while _waiting:
        part = _waiting.pop()
        module = importlib.reload(sys.modules[part])
        found = {n: vars(module)[n] for n in PARTS[part] if n in vars(module)}
        for package in _packages(part):
            vars(package).update(found)
            if package.__name__ == UTILS:
                package.__all__.extend(found)


def come_first(name: str) -> ModuleType | None:
    """A module inside of a part that waits, loaded with that part, which is first.

    Returns:
        None where it is in no such part, or the part does not load it.
    """
    if not any(name.startswith(f'{part}.') for part in _waiting):
        return None
    importlib.import_module(MODELS)
    return sys.modules.get(name)
