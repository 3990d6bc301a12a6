"""Prefix tuning: learned keys and values in front of those of every attention.

Paper: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
ACL 2021, https://arxiv.org/abs/2101.00190, eq. (3) and section 4.3 (the MLP).
Differs from the authors' code: it is for language models; here the MLP is one per
block, as in bruceyo/V-PETL, because widths differ between stages. In windows all P + N
entries share one softmax, and prefixes get neither position bias nor mask.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    grow,
    injection_of,
)
from mmpetl.core.dropout import Dropout
from mmpetl.registry import METHODS

PARAMETRISATIONS = ('direct', 'mlp')


class PrefixDelta(Delta):
    """``softmax(q [Pk; k]^T / sqrt(d)) [Pv; v]`` with free ``Pk``, ``Pv`` (P, D)."""

    def __init__(self, dims: int, num_tokens: int, drop_rate: float) -> None:
        super().__init__()
        self.Pk = nn.Parameter(torch.empty(num_tokens, dims).normal_(std=0.02))
        self.Pv = nn.Parameter(torch.empty(num_tokens, dims).normal_(std=0.02))
        self.drop = Dropout(drop_rate)

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        return grow(x, self.drop(self.Pk), self.drop(self.Pv))


class MLPPrefixDelta(Delta):
    """As :class:`PrefixDelta` with ``[Pk; Pv] = W_b tanh(W_a E + b_a) + b_b``."""

    def __init__(
        self, dims: int, num_tokens: int, hidden_dims: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(num_tokens, dims).normal_())
        self.a = nn.Linear(dims, hidden_dims)
        self.b = nn.Linear(hidden_dims, 2 * dims)
        self.drop = Dropout(drop_rate)

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Pk and Pv, each (P, D)."""
        return self.b(torch.tanh(self.a(self.E))).chunk(2, dim=-1)

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        pk, pv = self.keys_and_values()
        return grow(x, self.drop(pk), self.drop(pv))


@METHODS.register_module()
class Prefix(Method):
    """Prefix tuning.

    Args:
        num_tokens: Prefixes per block, P >= 1. 10 gives the published size on FGVC.
        parametrisation: ``'direct'`` trains keys and values themselves; ``'mlp'``
            makes them with a small network, which :func:`bake` replaces by its
            result after training.
        hidden_dims: Width of that network, m >= 1; ``'direct'`` has none.
        drop_rate: Dropout on keys and values.
    """

    targets = ('attn.core',)
    starts_as_identity = False
    family = 'prefix'

    def __init__(
        self,
        num_tokens: int = 10,
        parametrisation: Literal['direct', 'mlp'] = 'direct',
        hidden_dims: int = 128,
        drop_rate: float = 0.0,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 1)
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if parametrisation not in PARAMETRISATIONS:
            raise PETLError(
                f'Prefix has parametrisation {" and ".join(PARAMETRISATIONS)}, '
                f'got {parametrisation!r}'
            )
        self.num_tokens = num_tokens
        self.parametrisation = parametrisation
        self.hidden_dims = hidden_dims
        self.drop_rate = drop_rate

    def build(self, site: Site) -> PrefixDelta | MLPPrefixDelta:
        if self.parametrisation == 'direct':
            return PrefixDelta(site.in_dims, self.num_tokens, self.drop_rate)
        return MLPPrefixDelta(
            site.in_dims, self.num_tokens, self.hidden_dims, self.drop_rate
        )


@torch.no_grad()
def bake(backbone: nn.Module, slot: str = '0') -> nn.Module:
    """Replace the networks of an ``'mlp'`` prefix by the keys and values they make.

    In place: afterwards the slot holds a ``'direct'`` prefix that computes the same.

    Raises:
        PETLError: The slot holds no prefix with ``parametrisation='mlp'``.
    """
    module, state = injection_of(backbone)
    entry = state.slots.get(slot)
    method = None if entry is None else entry.method
    if not isinstance(method, Prefix) or method.parametrisation != 'mlp':
        raise PETLError(
            f'slot {slot!r} holds {method!r}; only a Prefix with '
            "parametrisation='mlp' can be baked"
        )
    for site in entry.sites:
        plug = module.get_submodule(site.path)
        made = plug[slot]
        direct = PrefixDelta(site.in_dims, method.num_tokens, method.drop_rate)
        direct.to(made.E.device, made.E.dtype).train(made.training)
        for param, value in zip(
            (direct.Pk, direct.Pv), made.keys_and_values(), strict=True
        ):
            param.copy_(value)
            param.requires_grad_(made.E.requires_grad)
        plug[slot] = direct
    entry.method = Prefix(
        method.num_tokens, 'direct', method.hidden_dims, method.drop_rate
    )
    return backbone
