"""A model that weights are meant for, seen through its own names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmpetl.core.sitemap import class_name

STATISTICS = ('running_mean', 'running_var', 'weight', 'bias')
"""Last names of the buffers that are learnt or counted, as BatchNorm's are."""


@dataclass
class Target:
    """A plain model and the tensors that a file has to bring.

    Attributes:
        model: The model as it was given.
        prefix: The dotted path that all of its names share, as ``'timm_model.'`` of a
            wrapper; removed from the names below.
        tensors: Parameters, and buffers that are saved, by name.
        built: Names of buffers that the model builds for its own size: indices, masks,
            tables of sines. A file may bring them and need not.
    """

    model: nn.Module
    prefix: str = ''
    tensors: dict[str, Tensor] = field(default_factory=dict)
    built: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module) -> Target:
        """Read a model's names."""
        params: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        # Not from `state_dict`, whose hooks may rename (mmpretrain's TimmClassifier).
        for path, module in model.named_modules(remove_duplicate=False):
            start = f'{path}.' if path else ''
            for name, param in module._parameters.items():
                if param is not None:
                    params[start + name] = param
            for name, buffer in module._buffers.items():
                saved = name not in module._non_persistent_buffers_set
                if buffer is not None and saved:
                    buffers[start + name] = buffer
        both = params | buffers
        prefix = _wrapped(model, _common_path(set(params)))
        if any(not name.startswith(prefix) for name in both):
            prefix = ''
        built = {
            name.removeprefix(prefix)
            for name in buffers
            if name.rpartition('.')[2] not in STATISTICS
        }
        tensors = {name.removeprefix(prefix): t for name, t in both.items()}
        return cls(model, prefix, tensors, built)

    @property
    def title(self) -> str:
        """Package and class, ``mmseg MixVisionTransformer``."""
        return class_name(type(self.model)).replace('.', ' ', 1)

    @property
    def core(self) -> nn.Module:
        """The module that the names start from: the model, or what it wraps."""
        return self.model.get_submodule(self.prefix.rstrip('.'))

    def classes(self) -> Iterator[str]:
        """``mmseg.PCPVT`` and so on: classes of the model, and of what it wraps.

        From the outside in, and of each from the class to its bases.
        """
        module, path = self.model, [part for part in self.prefix.split('.') if part]
        while True:
            for cls in type(module).__mro__:
                if issubclass(cls, nn.Module) and cls is not nn.Module:
                    yield class_name(cls)
            if not path:
                return
            module = getattr(module, path.pop(0))

    def owner(self, name: str) -> nn.Module:
        """The module that holds a tensor."""
        return self.core.get_submodule(name.rpartition('.')[0])


LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg', 'mmaction', 'timm', 'transformers')


def library_of(module: nn.Module) -> str | None:
    """The library that a module's class, or the nearest of its bases, comes from."""
    roots = (cls.__module__.partition('.')[0] for cls in type(module).__mro__)
    return next((root for root in roots if root in LIBRARIES), None)


WHOLE = ('timm', 'transformers')
"""Packages whose models wrap nothing."""
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _wrapped(model: nn.Module, path: str) -> str:
    """The part of a path, with its dot, that leads to a wrapped model.

    A SegFormer has nothing but ``stages``: that is a part of it, and no model.
    """
    found = ''
    for part in path.split('.')[:-1]:
        child = getattr(model, part)
        # But for timm's own wrappers, FeatureGetterNet and its like.
        is_whole = not type(model).__name__.startswith('Feature')
        is_whole &= library_of(model) in WHOLE
        if is_whole or type(child) in LISTS:
            break
        found, model = f'{found}{part}.', child
    return found


def _common_path(names: set[str]) -> str:
    """The dotted path, with its dot, that all names share."""
    start = os.path.commonprefix(sorted(names))
    return start[: start.rfind('.') + 1]
