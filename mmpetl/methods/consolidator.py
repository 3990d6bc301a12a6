"""Consolidator: grouped linear maps beside every projection, merged into it afterwards.

Paper: Hao et al., "Consolidator: Mergeable Adapter with Grouped Connections for Visual
Adaptation", ICLR 2023, https://arxiv.org/abs/2305.00603, section 3.
Differs from the authors' code: nothing in the algebra. That code trains every norm and
every bias of the blocks beside what the paper counts; here it is an argument, on by
default. In windowed attention stochastic depth is drawn for each window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    GroupedLinear,
    Method,
    PETLError,
    Role,
    Site,
    check_range,
    drop_path,
)
from mmpetl.core.lean import merged
from mmpetl.registry import METHODS


class ConsolidatorDelta(Delta):
    """``y + sum_j drop_path(G_j P_j x + c_j)``.

    x: (B, N, in_dims), y: (B, N, out_dims). G_j is block-diagonal with ``groups[j]``
    blocks; P_j leaves the channels as they are, or deals them out to the groups.
    """

    def __init__(
        self,
        site: Site,
        groups: Sequence[int],
        shuffle: bool,
        drop_path_rate: float,
        zero_init: bool,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            GroupedLinear(site.in_dims, site.out_dims, n) for n in groups
        )
        self.shuffle = shuffle
        self.drop_path_rate = drop_path_rate
        if not zero_init:
            for param in self.parameters():
                nn.init.uniform_(param, -1e-3, 1e-3)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        for branch in self.branches:
            z = branch(dealt(x, branch.groups) if self.shuffle else x)
            if self.training and self.drop_path_rate:
                z = drop_path(z, self.drop_path_rate)
            y = y + z
        return y

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        if self.shuffle or (self.training and self.drop_path_rate):
            return None
        factors = tuple(branch.weight for branch in self.branches)
        shift = sum(branch.bias for branch in self.branches)
        return merged(module, x, ctx, self._written, factors, shift, self._collected)

    def _written(self, weight: Tensor, *blocks: Tensor) -> Tensor:
        """The weight with the blocks of all branches."""
        weight = weight.clone(memory_format=torch.contiguous_format)
        for branch, own in zip(self.branches, blocks, strict=True):
            branch.add_to_(weight, own)
        return weight

    def _collected(self, grad: Tensor, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the blocks; grad: (M, out_dims), x: (M, in_dims)."""
        return tuple(branch.collect(grad, x) for branch in self.branches)

    def increment(self) -> Tensor:
        """What it adds to the weight, (out_dims, in_dims), float64."""
        dense = []
        for branch in self.branches:
            weight = branch.dense().double()
            if self.shuffle:  # column p of it reads the channel that is dealt to p
                channels = torch.arange(weight.shape[1], device=weight.device)
                back = dealt(channels, branch.groups).argsort()
                weight = weight[:, back]
            dense.append(weight)
        return sum(dense)

    def constant(self) -> Tensor:
        """What it adds to the bias, (out_dims,), float64."""
        return sum(branch.bias.double() for branch in self.branches)


def dealt(x: Tensor, groups: int) -> Tensor:
    """Channels 0, k, 2 k, ..., then 1, k + 1, 2 k + 1, ..., with C = groups * k.

    x: (..., C).
    """
    return x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


@METHODS.register_module()
class Consolidator(Method):
    """Grouped connections beside projections.

    Args:
        groups: Number of groups of each branch; it divides the widths. One branch of
            384 groups in the paper on VTAB-1k. By layer: ``{'*.mlp.*': (192,), '*':
            (384,)}``, where the first pattern that fits counts.
        shuffle: Whether channels are dealt out to the groups, so that branches with
            other groups see other channels together.
        drop_path_rate: Stochastic depth of the branches, 0 to 0.8 per task in the
            paper.
        train_norms: Whether the norms of the base train too, as in the authors' code.
        train_biases: Whether the biases of projections in blocks train too, as there.
        zero_init: Whether the branches start at zero, so that the model starts as the
            frozen one. The authors' code draws them from within 1e-3.

    Queries, keys and values that are projections of their own have branches of their
    own. In a model that no file describes every Linear has them.
    """

    leaf_kinds = ('layer.linear',)
    sized = ('groups',)
    family = 'reparameterisation'
    targets = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
    substitutes = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v')}
    targets_any = True

    def __init__(
        self,
        groups: Sequence[int] = (384,),
        shuffle: bool = False,
        drop_path_rate: float = 0.0,
        train_norms: bool = True,
        train_biases: bool = True,
        zero_init: bool = False,
    ) -> None:
        check_range(self, 'drop_path_rate', drop_path_rate, 0, 0.99)
        self.groups: Any = (
            {pattern: self.checked(part) for pattern, part in groups.items()}
            if isinstance(groups, Mapping)
            else self.checked(groups)
        )
        self.shuffle = shuffle
        self.drop_path_rate = drop_path_rate
        self.train_norms = train_norms
        self.train_biases = train_biases
        self.zero_init = zero_init
        self.starts_as_identity = zero_init

    def checked(self, groups: Sequence[int]) -> tuple[int, ...]:
        """Groups of the branches at a layer; PETLError where these are none."""
        if isinstance(groups, str) or not isinstance(groups, Sequence) or not groups:
            raise PETLError(
                'Consolidator needs groups for one branch or several, such as (384,), '
                f'got {groups!r}'
            )
        for number in groups:
            check_range('Consolidator', 'groups', number, 1)
        return tuple(groups)

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            for number in self.groups:
                if site.in_dims % number or site.out_dims % number:
                    raise PETLError(
                        f'Consolidator needs groups that divide the widths; {site} '
                        f'maps {site.in_dims} to {site.out_dims}, got {number}'
                    )

    def build(self, site: Site) -> ConsolidatorDelta:
        return ConsolidatorDelta(
            site, self.groups, self.shuffle, self.drop_path_rate, self.zero_init
        )

    def selects(self, role: Role) -> bool:
        if role.part == 'bias' and role.kind == 'projection':
            # A layer of a model that no file describes may stand in no block.
            return self.train_biases and role.place in ('block', '')
        return self.train_norms and role.is_norm

    def fold(self, site: Site, delta: ConsolidatorDelta, affine: Affine) -> None:
        affine.add_(delta.increment())
        affine.shift_(delta.constant())
