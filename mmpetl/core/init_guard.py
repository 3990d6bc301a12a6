"""An injected backbone keeps its values while the model around it is initialised.

Upstream's initialisers belong to the model, not to its parts: an ``init_cfg`` of an
``ImageClassifier`` redraws every Linear below it when ``Runner.train`` starts, long
after the base was loaded. Here what they write is undone, in every config and without
a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Injection
from mmpetl.core.packed import PackedWeight, drop_writes


class KeptThroughInit:
    """Mixin of a swapped backbone, in front of the foreign class.

    MMEngine hangs ``_params_init_info`` on every module when it begins to initialise a
    model, and takes it off at the end; between the two, in whatever way it is done, a
    write to this backbone does not last.
    """

    _petl: Injection

    @property
    def _params_init_info(self) -> Any:
        info = self.__dict__.get('_params_init_info')
        if info is None:
            raise AttributeError('_params_init_info')
        return info

    @_params_init_info.setter
    def _params_init_info(self, info: Any) -> None:
        if '_params_init_info' not in self.__dict__:
            drop_writes(self.parameters(), 1)
        self.__dict__['_params_init_info'] = info
        self.__dict__.setdefault('_kept', self._values(clone=True))

    @_params_init_info.deleter
    def _params_init_info(self) -> None:
        del self.__dict__['_params_init_info']
        drop_writes(self.parameters(), -1)
        # None where the backbone was injected while its model was initialised.
        self._put_back(self.__dict__.pop('_kept', {}))

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: weights were initialised or loaded before the injection."""

    def apply(self, fn: Callable[[nn.Module], None]) -> Any:
        """Call ``fn`` on every module; values that it writes are put back."""
        kept = {} if '_kept' in self.__dict__ else self._values(clone=True)
        drop_writes(self.parameters(), 1)
        try:
            super().apply(fn)
        finally:
            drop_writes(self.parameters(), -1)
        self._put_back(kept)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Keep what an ``init_cfg`` loads into this backbone, unless it is a base."""
        kept = self.__dict__.get('_kept', {})
        loaded = {
            name: state_dict[prefix + name].to(value)
            for name, value in kept.items()
            if prefix + name in state_dict
            and state_dict[prefix + name].shape == value.shape
        }
        frozen = self._petl.base - self._petl.selected()
        other = [n for n in loaded if n in frozen and not loaded[n].equal(kept[n])]
        if other:
            raise PETLError(
                'an init_cfg of type Pretrained loads another base over the injected '
                f'{type(self).__name__} ({len(other)} tensors differ, {other[0]} is '
                'one); name that file as `checkpoint` of mmpetl.PETLBackbone, or leave '
                'the init_cfg out'
            )
        kept.update(loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _values(self, clone: bool) -> dict[str, Tensor]:
        found = chain(self.named_parameters(), self.named_buffers())
        return {
            name: value.detach().clone() if clone else value.detach()
            for name, value in found
            if not (value.is_meta or isinstance(value, PackedWeight))
        }

    def _put_back(self, kept: Mapping[str, Tensor]) -> None:
        now = self._values(clone=False)
        for name, value in kept.items():
            if name in now and not torch.equal(now[name], value.to(now[name])):
                now[name].copy_(value)
