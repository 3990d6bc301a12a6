"""Upstream's own initialisation, watched: a base that did not load is an error.

Upstream loads with ``strict=False`` and goes on with whatever matched, be it nothing:
mmdet's Swin keeps only keys that begin with ``backbone.``, so that an official file
without ``convert_weights=True`` leaves it random.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import MMLogger, print_log
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.core.errors import shorten
from mmpetl.core.sitemap import is_below, is_norm
from mmpetl.models.init_entries import (
    entries_of,
    is_nameless,
    is_pretrained,
    loads_file,
)
from mmpetl.models.weights.address import base_name

BEHIND = re.compile(r'(norm|ln)\d*|fc_norm')
"""Names of norms behind the outputs of trunks, in the four libraries and timm."""

STATISTICS = ('running_mean', 'running_var')
"""Buffers without which the weights of a norm mean nothing."""


class LoadWatch:
    """Notes which tensors below a module are filled by loading.

    Args:
        module: A trunk. Whatever loads into it, into a part of it or into the model
            around it is seen, after the module's own hooks have made their changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.loaded: set[int] = set()
        self.loads = 0
        """How often a state came by, whether or not anything in it matched."""
        self._was = _sums(module)
        self._handles = [
            part.register_load_state_dict_pre_hook(self._note)
            for part in module.modules()
        ]

    def _note(
        self, part: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any
    ) -> None:
        self.loads += part is self.module
        for name, value in _own(part):
            given = state.get(prefix + name)
            if given is not None and given.shape == value.shape:
                self.loaded.add(id(value))

    def stop(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def missing(self) -> list[str]:
        """Names of the tensors that no load has filled."""
        if not self.loads and not self.loaded:
            # Some classes copy values by hand; constants may stay what they were.
            now = _sums(self.module)
            return [n for n, value in now.items() if value == self._was[n]]
        return [
            n for n, value in tensors_of(self.module) if id(value) not in self.loaded
        ]


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and running statistics of a module, by name."""
    for path, part in module.named_modules():
        for name, value in _own(part):
            yield f'{path}.{name}'.lstrip('.'), value


def _own(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in part._parameters.items():
        if value is not None:
            yield name, value
    for name, value in part._buffers.items():
        if value is not None and name in STATISTICS:
            yield name, value


def _sums(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Two sums of every matrix, which tell whether something was written to it."""
    with torch.no_grad():
        return {
            name: (float(value.double().sum()), float(value.double().square().sum()))
            for name, value in module.named_parameters()
            if value.ndim > 1 and not value.is_meta
        }


def outer_norms(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those names that are of a norm behind the outputs of a trunk: tasks add them.

    A norm in front of the blocks (``bn1``, ``pre_norm``) is called otherwise.
    """
    children = {
        name
        for name, part in module.named_children()
        if is_norm(part) and BEHIND.fullmatch(name)
    }
    return [name for name in names if name.partition('.')[0] in children]


@dataclass(frozen=True)
class Filled:
    """Where the values of a trunk came from.

    Attributes:
        file: Name of the file, None where there was none.
        fresh: Norms right below the trunk that the file does not hold. Tasks add them
            behind its outputs, so that they train like a head.
    """

    file: str | None
    fresh: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str | None, names: Iterable[str]) -> Filled:
        """From the names of tensors that keep their initial values."""
        return cls(file, tuple(dict.fromkeys(n.partition('.')[0] for n in names)))


def _refuse_to_inflate_nothing(model: nn.Module, asked: Iterable[str]) -> None:
    """Raise PETLError where a trunk would inflate an image model, and none is named.

    Some classes have ``pretrained2d=True`` by default, and inflate nothing then.
    """
    for path in asked:
        if getattr(model.get_submodule(path), 'pretrained2d', False):
            raise PETLError(
                f'{path} has pretrained2d=True and wants to inflate the weights of an '
                'image model; name them as pretrained of the backbone or as base= of '
                'mmpetl.PETLModel, or set pretrained2d=False'
            )


def _refuse_nameless(model: nn.Module, paths: Iterable[str]) -> None:
    """Raise PETLError where a model has ``checkpoint=''`` in the way of its trunks."""
    where = 'the model' if is_nameless(model) else None
    for path in paths:
        for at, part in model.get_submodule(path).named_modules():
            if where is None and is_nameless(part):
                where = f'{path}.{at}'.rstrip('.')
    if where is not None:
        raise PETLError(
            f"init_cfg of {where} has checkpoint='': the config leaves the file of the "
            'base to be named; name it as model.base (--base FILE), or set init_cfg '
            'there to None for a random base'
        )


def initialise(
    model: nn.Module, paths: Iterable[str], config: Mapping[str, Any]
) -> dict[str, Filled]:
    """Initialise a model as upstream does, and see that every base was loaded.

    Args:
        model: As its constructor left it.
        paths: Its trunks.
        config: Its config, which may name a file that the class forgets.

    Returns:
        Where the values of each trunk come from; where no file is named, it is said
        loudly.

    Raises:
        PETLError: A file is named and cannot be read, or does not fill its trunk; or
            one is to be named, and is not.
    """
    asked = {path: file_asked_for(model, path, config) for path in paths}
    _refuse_nameless(model, asked)
    filled = {p: getattr(model.get_submodule(p), '_is_init', False) for p in paths}
    watches = {path: LoadWatch(model.get_submodule(path)) for path in paths}
    try:
        run_init(model)
    except PETLError:
        raise
    except Exception as error:
        # Readers of upstream raise all kinds where nothing is, or nothing fits.
        files = [file for file in asked.values() if file]
        if not files:
            _refuse_to_inflate_nothing(model, asked)
            raise
        raise PETLError(
            f'{files[0]} does not load as init_cfg or pretrained of the config asks '
            f'({type(error).__name__}: {_first_line(error)}); correct it; '
            f'{_way(watches.values())}'
        ) from error
    finally:
        for watch in watches.values():
            watch.stop()
    return {p: _judge(p, w, asked[p], filled[p]) for p, w in watches.items()}


def run_init(model: nn.Module) -> None:
    """Run the initialisation of upstream, without its line for each parameter.

    A Runner writes these lines to its file; where there is none they would fill the
    screen.
    """
    if not hasattr(model, 'init_weights'):
        return
    logger = MMLogger.get_current_instance()
    level = logger.level
    if not any(isinstance(h, logging.FileHandler) for h in logger.handlers):
        logger.setLevel(max(level, logging.WARNING))
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def _judge(path: str, watch: LoadWatch, file: str | None, filled: bool) -> Filled:
    name = f'{path} ({type(watch.module).__name__})'
    if file is None:
        if filled:
            print_log(f'{name} keeps the weights it came with', logger='current')
        elif not watch.loaded:
            print_log(
                f'THE BASE IS RANDOM: {name} got no weights. Name a file with '
                'model.base=FILE, unless load_from brings them or this is a trial run: '
                'its deltas fit this draw alone, which the same randomness.seed draws '
                'again.',
                logger='current',
                level=logging.WARNING,
            )
        return Filled(None)
    total = sum(1 for _ in tensors_of(watch.module))
    missing = watch.missing()
    spared = outer_norms(watch.module, missing)
    lost = [n for n in missing if n not in spared and not _is_frozen_head(n)]
    if lost:
        raise PETLError(
            f'{file}, as upstream loads it, fills {total - len(missing)} of {total} '
            f'tensors of {name}: {shorten(lost)} got nothing; '
            f'{_way([watch])}'
        )
    rest = f'; fresh, so they train: {shorten(spared, 4)}' if spared else ''
    print_log(
        f'{total - len(missing)} of {total} tensors of {name} from {file}, loaded by '
        f'its own settings{rest}',
        logger='current',
    )
    return Filled.of(base_name(file), spared)


def _way(watches: Iterable[LoadWatch]) -> str:
    """What to do about a file that upstream does not read."""
    switches = [getattr(w.module, 'convert_weights', None) for w in watches]
    own = "convert_weights=True reads the authors' files, and " * (False in switches)
    return f'{own}base=FILE of mmpetl.PETLModel reads more formats'


def _is_frozen_head(name: str) -> bool:
    """Whether a name is of a classifier, or a mask token, that no trunk uses."""
    first = name.partition('.')[0]
    return first in ('head', 'fc', 'mask_token')


def file_asked_for(
    model: nn.Module, path: str, config: Mapping[str, Any]
) -> str | None:
    """The file that the settings of a model name for one of its trunks."""
    around = [module for name, module in model.named_modules() if is_below(path, name)]
    around = [model, *around] if model not in around else around
    inside = list(model.get_submodule(path).modules())
    for module in [*reversed(around), *inside]:
        for entry in entries_of(module):
            if is_pretrained(entry):
                return str(entry['checkpoint'])
    trunk = model.get_submodule(path)
    node: Any = config
    for part in path.split('.'):
        node = node.get(part) if isinstance(node, Mapping) else None
    given = [getattr(trunk, 'pretrained', None), config.get('pretrained')]
    given += [node.get('pretrained')] if isinstance(node, Mapping) else []
    return next((file for file in given if isinstance(file, str) and file), None)


def drop_files(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Let no setting of a model load into its trunks; returns the files left out."""
    dropped = []
    for path in paths:
        trunk = model.get_submodule(path)
        if getattr(trunk, 'pretrained2d', False):
            trunk.pretrained2d = False  # it would inflate a file that is not named
        if isinstance(getattr(trunk, 'pretrained', None), str):
            dropped.append(trunk.pretrained)
            trunk.pretrained = None
        for module in [model, *trunk.modules()]:
            entries = entries_of(module)
            rest = [e for e in entries if not loads_file(e)]
            if len(rest) < len(entries):
                module.init_cfg = rest or None
                dropped += [str(e['checkpoint']) for e in entries if is_pretrained(e)]
    return [file for file in dict.fromkeys(dropped) if file]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [''])[0]
