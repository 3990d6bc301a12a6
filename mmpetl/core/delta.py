"""Deltas: the small modules that are plugged into sites."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.context import Context, Share, autocasts
from mmpetl.core.errors import PETLError

Features = Tensor | tuple[Tensor, ...]

_terms: weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]] = (
    weakref.WeakKeyDictionary()
)
"""What deltas have noted for losses since it was last collected. It is kept beside
them, since what hangs on a graph can be neither copied nor pickled."""


class Delta(nn.Module):
    """What a method adds at one site. Override one port or both.

    At ``attn.core`` ``x`` is the tuple (q, k, v), each (B, heads, N, head_dims);
    elsewhere features are (B, N, C), in windowed attention (B * windows, N, C).
    Features arrive in the delta's own dtype, except under autocast, and what a port
    returns leaves in the dtype of the base. What comes by another way, from the notes
    or as ``ctx.images``, goes through :meth:`own`.

    Attributes:
        slot: Name of the slot that it belongs to, once it is plugged in.
        losses: :attr:`Method.losses` of its method, once it is plugged in.
        dtype: Floating dtype of its own or shared parameters, None without any.
        taps: Whether it runs behind all others at its site, in any order of injection,
            since it only reads what leaves, or makes several streams of it.
        reads_base: Whether it reads the base weights of its site in each pass
            (:meth:`Context.affine`). What it folds then counts from
            :attr:`Affine.base`, as other methods may be folded there before.
        lr_mults: Factors of the learning rate for some of its parameters, by their own
            names; :class:`~mmpetl.engine.OwnerOptimWrapperConstructor` reads them.
    """

    slot: str = ''
    losses: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    taps: bool = False
    reads_base: bool = False
    lr_mults: Mapping[str, float] = MappingProxyType({})

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        """What enters the site instead of ``x``."""
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """What leaves the site instead of ``y``, its output for the input ``x``."""
        return y

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        """``after(x, module(x))`` in one step, where there is a shorter way.

        Asked where gradients are recorded, the site is one module and no other delta
        acts in front of this one. A projection comes as
        :class:`~mmpetl.core.stack.Rows`. None: there is none, and the module and
        :meth:`after` run.
        """
        return None

    def passing(self, x: Tensor, ctx: Context) -> Tensor | None:
        """Which tokens the network around whose sum this stands must compute.

        Asked at ``ffn.sum`` where no gradients are recorded, in front of everything;
        a host may compute all the same. The other tokens reach :meth:`after` as they
        entered.

        Args:
            x: (B, N, C), the stream.
            ctx: Facts of this forward pass.

        Returns:
            (B, N) of bool, or None for all.
        """
        return None

    def own(self, x: Features) -> Features:
        """Features in this delta's dtype, which may be finer than that of the base."""
        if isinstance(x, tuple):
            return tuple(self.own(part) for part in x)
        if self.dtype in (None, x.dtype) or autocasts(x):
            return x
        return x.to(self.dtype)

    def add_term(self, name: str, value: Tensor) -> None:
        """Note a number of this pass for a loss, in place of what the last pass noted.

        :meth:`mmpetl.core.Method.loss` makes the loss of what all deltas have noted. In
        evaluation, without gradients, and where activation checkpointing runs a block
        once more, nothing is noted.

        Args:
            name: One of :attr:`mmpetl.core.Method.losses`.
            value: A scalar.

        Raises:
            PETLError: The method has no such loss, so that nobody would ask for it.
        """
        if self.losses is not None and name not in self.losses:
            raise PETLError(
                f'{type(self).__name__} notes a term {name!r}, and its method has '
                f'losses = {self.losses}; write losses = ({name!r},) there'
            )
        if not (self.training and torch.is_grad_enabled()):
            return
        # As torch's own checkpointing asks; -1 is no backward pass. No compiler runs a
        # block once more by calling it.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            _terms.setdefault(self, {})[name] = value

    def take_terms(self) -> dict[str, Tensor]:
        """What has been noted; it is noted no longer."""
        return _terms.pop(self, {})

    @property
    def has_terms(self) -> bool:
        """Whether there is something to take."""
        return self in _terms

    def notes(self, ctx: Context) -> dict[Any, Any]:
        """What the deltas of this slot have written down in this forward pass."""
        return ctx.notes.setdefault(self.slot, {})

    def attach(self, slot: str, shared: nn.Module | None) -> None:
        """Remember the slot, and the module that all deltas of the method share.

        The module is registered once, at the backbone, so it is not made a child here.
        """
        self.slot = slot
        if shared is not None:
            self.__dict__['shared'] = shared
        self.renew_dtype()

    def renew_dtype(self) -> None:
        """Look the dtype of the parameters up again, after a conversion."""
        shared = self.__dict__.get('shared')
        owners = (self, *(() if shared is None else (shared,)))
        self.dtype = next(
            (p.dtype for m in owners for p in m.parameters() if p.is_floating_point()),
            None,
        )


class Plug(nn.ModuleDict):
    """The deltas at one site, by slot; a slot can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.off: set[str] = set()

    def active(self, shares: Sequence[Share] | None = None) -> list[Delta]:
        """The deltas that act, in the order of their injection, taps behind.

        Args:
            shares: The slots that act, on or off, see :attr:`Context.shares`; watchers
                do too.
        """
        acting = [d for slot, d in self._modules.items() if slot not in self.off]
        if shares is not None:
            named = {'', *(share.slot for share in shares)}
            acting = [d for d in self._modules.values() if d.slot in named]
        return sorted(acting, key=lambda delta: delta.taps)
