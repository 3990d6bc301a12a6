"""Parts of mmpretrain and mmaction2 that belong to mmdet wait until mmdet is loaded.

Both define classes for mmdet's registries as soon as their models are imported, and so
import mmdet's models, and with these SciPy, scikit-learn and Matplotlib: a third of
what importing the models of an image task takes (speed/footprint.py). Each copes with
a missing mmdet, and is first told that it is missing; once mmdet's models are there,
whoever imported them, it is loaded again, and before that its names can be asked for as
ever. Only ``from package import *`` leaves them out until then.
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

PACKAGES = ('mmpretrain.models', 'mmpretrain.models.utils', 'mmaction.models')
"""What passes these names on: a name is looked for there, too."""

_waiting: dict[str, dict[str, Any]] = {}
"""Parts that wait -> what upstream has in place of their names without mmdet."""

_unlisted: list[tuple[str, str]] = []
"""Packages and what of their ``__all__`` has been taken out meanwhile."""

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
    names = PARTS[module.__name__]
    if any(vars(module).get(name) is not None for name in names):
        return  # another thread has begun to import mmdet meanwhile
    _waiting[module.__name__] = {n: vars(module)[n] for n in names if n in vars(module)}
    vars(module).setdefault('__all__', [])  # nothing of it is to be taken along
    module.__getattr__ = _asked(module)


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


def _asked(holder: ModuleType) -> Callable[[str], Any]:
    """A module's ``__getattr__``: what waits is loaded when it is asked for."""

    def get(name: str) -> Any:
        missing = AttributeError(
            f'module {holder.__name__!r} has no attribute {name!r}',
            name=name,
            obj=holder,
        )
        part = next((p for p in _below(holder) if name in PARTS[p]), None)
        if part is None:
            raise missing
        instead = _waiting[part]
        try:
            importlib.import_module(MODELS)
        except ImportError as error:  # as upstream has it then
            if name in instead:
                return instead[name]
            raise missing from error
        if name in vars(holder):
            return vars(holder)[name]
        raise missing

    return get


def _below(holder: ModuleType) -> list[str]:
    """The parts that wait inside of a package, or the part itself."""
    return [p for p in _waiting if f'{p}.'.startswith(f'{holder.__name__}.')]


def pass_on(package: ModuleType) -> None:
    """Let one of :data:`PACKAGES` look for what waits, in place of its absence."""
    for part in _below(package):
        package.__getattr__ = _asked(package)
        for name in _waiting[part]:
            # Upstream has None for it, which would stand before what is looked for.
            for holder in (sys.modules[part], package):
                vars(holder).pop(name, None)
            if name in getattr(package, '__all__', ()):
                package.__all__.remove(name)
                _unlisted.append((package.__name__, name))


def load_waiting() -> None:
    """Load the parts that waited: mmdet's models are there now."""
    while _waiting:
        part, _ = _waiting.popitem()
        packages = [p for p in PACKAGES if part.startswith(f'{p}.')]
        if part not in sys.modules or not sys.modules.keys() >= {*packages}:
            # Their import was interrupted, and begins anew with the next one.
            sys.modules.pop(part, None)
            continue
        vars(sys.modules[part]).pop('__all__', None)
        module = importlib.reload(sys.modules[part])
        found = {n: vars(module)[n] for n in PARTS[part] if n in vars(module)}
        for package in map(sys.modules.__getitem__, packages):
            vars(package).update(found)
            again = [n for n in found if (package.__name__, n) in _unlisted]
            if again:
                package.__all__.extend(again)


def waits_above(name: str) -> bool:
    """Whether a module is inside of a part that waits, which has to come first."""
    return any(name.startswith(f'{part}.') for part in _waiting)
