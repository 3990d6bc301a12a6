"""Import hooks that stand in for what the OpenMMLab wheels lack.

Two finders join ``sys.meta_path``. The one at the end is asked only for modules that
nothing else provides, so a compiled ``mmcv._ext`` or a complete mmaction2 is used
untouched. The one at the front knows only the modules in which mmpretrain and mmaction2
switch their multimodal models on or extend mmdet, the one in which mmcv decodes
pictures, and those in which MMEngine lays out configs, counts the steps of an
optimizer, keeps the figures that its checkpoints hold, makes data sets, and registers
classes.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from . import detection

EXT = 'mmcv._ext'
LOCALIZER = 'mmaction.models.localizers.drn'
# Modules that say whether multimodal models are to be imported -> the folders below
# <package>/models whose files then import from transformers.
SWITCHES = {
    'mmpretrain.utils.dependency': ('multimodal', 'utils'),
    'mmaction.utils.dependency': ('multimodal',),
}
PICTURES = 'mmcv.image.io'
CONFIGS = 'mmengine.config.config'
WRAPPER = 'mmengine.optim.optimizer.optimizer_wrapper'
FIGURES = 'mmengine.logging.history_buffer'
DATASETS = 'mmengine.dataset.base_dataset'
REGISTRIES = 'mmengine.registry'
ORIGIN = 'mmpetl.compat'  # tells a stand-in from the real module


def _fill_ext(module: ModuleType) -> None:
    """Give ``mmcv._ext`` our kernels, and a telling error for every other op."""
    from . import kernels

    vars(module).update({name: getattr(kernels, name) for name in kernels.__all__})

    def missing(name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)
        return kernels.missing_op(name)

    module.__getattr__ = missing


def _fill_drn(module: ModuleType) -> None:
    """The one name that mmaction2's localizers import from here."""

    class DRN:
        """Placeholder: the wheel of mmaction2 does not ship this localizer."""

        def __init__(self, *args, **kwargs) -> None:
            raise ImportError(
                'DRN was asked for, but this installation of mmaction2 lacks '
                f'{LOCALIZER}; install mmaction2 from source to use it'
            )

    module.DRN = DRN


_FILL: dict[str, Callable[[ModuleType], None]] = {
    EXT: _fill_ext,
    LOCALIZER: lambda module: None,
    f'{LOCALIZER}.drn': _fill_drn,
}


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        _FILL[module.__name__](module)


class StandInFinder(MetaPathFinder):
    """Last in line: provides the modules of `_FILL` where no other finder does."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """The stand-in for ``fullname``, or None."""
        if fullname not in _FILL:
            return None
        return ModuleSpec(
            fullname, _StandInLoader(), origin=ORIGIN, is_package=fullname == LOCALIZER
        )


def _unguarded_imports(folder: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each plain top-level import from transformers in a folder.

    Imports inside ``try`` are left out: those files cope by themselves.
    """
    for file in sorted(folder.rglob('*.py')):
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            if (
                isinstance(node, ast.ImportFrom)
                and node.level == 0
                and (node.module or '').split('.')[0] == 'transformers'
            ):
                yield from ((node.module, alias.name) for alias in node.names)


def transformers_serves(folders: Iterable[Path]) -> bool:
    """Whether all that the files below ``folders`` take from transformers exists."""
    for folder in folders:
        for module, name in _unguarded_imports(folder):
            # A lazy module may raise anything at all when one of its names is asked
            # for; whatever it is, the multimodal models would meet it too.
            try:
                getattr(importlib.import_module(module), name)
            except Exception:
                return False
    return True


def _set_switch(module: ModuleType) -> None:
    if module.WITH_MULTIMODAL:
        models = Path(module.__file__).parents[1] / 'models'
        folders = [models / name for name in SWITCHES[module.__name__]]
        module.WITH_MULTIMODAL = transformers_serves(folders)


def _scale_pictures(module: ModuleType) -> None:
    from . import pictures

    pictures.correct_mmcv(module)


def _correct_configs(module: ModuleType) -> None:
    from . import bases, texts

    texts.format_once(module)
    bases.find_own(module.Config)


def _tell_begins(module: ModuleType) -> None:
    from . import counting

    counting.tell_begins(module)


def _allow_types(module: ModuleType) -> None:
    from . import loading

    loading.allow_mmengine_types()


def _spare_heap(module: ModuleType) -> None:
    from . import garbage

    garbage.spare_heap(module)


def _add_registries(module: ModuleType) -> None:
    # `custom_imports` of a config may find mmpetl imported; then its classes are due.
    importlib.import_module('mmpetl.registry')


def _load_waiting(module: ModuleType) -> None:
    detection.load_waiting()


_CORRECT: dict[str, Callable[[ModuleType], None]] = {
    **dict.fromkeys(SWITCHES, _set_switch),
    PICTURES: _scale_pictures,
    CONFIGS: _correct_configs,
    WRAPPER: _tell_begins,
    FIGURES: _allow_types,
    DATASETS: _spare_heap,
    REGISTRIES: _add_registries,
    detection.MODELS: _load_waiting,
    **dict.fromkeys(detection.PACKAGES, detection.pass_on),
}


class _CorrectingLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _CORRECT[module.__name__](module)


class _PartLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        detection.load_part(module, super().exec_module)


class _BelowLoader(Loader):
    """Loads a module inside of a part that waits, which is loaded first.

    Args:
        spec: What the module is found by else.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec, self.given = spec, None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        importlib.import_module(detection.MODELS)
        self.given = sys.modules.get(spec.name)
        if self.given is None:
            return self.spec.loader.create_module(self.spec)
        self.spec = self.given.__spec__
        return self.given

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self.spec, self.spec.loader
        if self.given is None:
            self.spec.loader.exec_module(module)


class SwitchFinder(MetaPathFinder):
    """First in line, for the modules of `_CORRECT`: loads one, then corrects it.

    Those of :data:`detection.PARTS` it loads when it is their turn.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """The module itself, with a loader that corrects it, or None."""
        if detection.is_hidden(fullname):
            raise ModuleNotFoundError(f'{fullname} is not loaded yet', name=fullname)
        if detection.waits_above(fullname):
            return self._below(fullname, path, target)
        loader = _PartLoader if fullname in detection.PARTS else _CorrectingLoader
        if loader is _CorrectingLoader and fullname not in _CORRECT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        return spec_from_file_location(
            fullname, spec.origin, loader=loader(fullname, spec.origin)
        )

    @staticmethod
    def _below(
        name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target)
        if found is None:
            return None
        spec = ModuleSpec(name, _BelowLoader(found), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        spec.has_location, spec.cached = found.has_location, found.cached
        return spec


def install_hooks() -> None:
    """Put both finders in place; calling it again changes nothing."""
    if not any(isinstance(finder, SwitchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, SwitchFinder())
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())
    # Imported before us, its models not yet: the switch can still be set.
    for name in SWITCHES:
        models = f'{name.partition(".")[0]}.models'
        if name in sys.modules and models not in sys.modules:
            _set_switch(sys.modules[name])
    for name in (PICTURES, CONFIGS, WRAPPER, FIGURES, DATASETS, REGISTRIES):
        if name in sys.modules:
            _CORRECT[name](sys.modules[name])
