"""Polyhistor-Lite: adapters that one small network generates for every task and layer.

Paper: Liu et al., "Polyhistor: Parameter-Efficient Multi-Task Adaptation for Dense
Vision Tasks", NeurIPS 2022, https://arxiv.org/abs/2210.03265: decomposed hypernetworks
and layer-wise scaling kernels.
Differs from the authors' public fragment (its variant ``hyperlowrank_kron``): parallel
placement beside the feed-forward network only, no generated norm, no output scale.
Sizes of the published model are not known; plain transformers are our extension.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    injections,
)
from mmpetl.core.tasks import TaskEntry, TaskSwitch, check_tasks
from mmpetl.registry import METHODS

ACTIVATIONS = {'gelu': F.gelu, 'swish': F.silu}

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""``Wd`` (C / reduction, C), ``bd``, ``Wu`` (C, C / reduction) and ``bu``."""


def linear(in_dims: int, out_dims: int) -> nn.Linear:
    """A Linear of the generator: weights N(0, 0.01 ** 2), bias zero."""
    made = nn.Linear(in_dims, out_dims)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)
    return made


class Generator(TaskSwitch):
    """Task embeddings, and the network that makes templates of adapters from them.

    ``e = Wb relu(Wa [v_t; lambda])``; from e come the factors of both template
    projections, of ``rank``, and their biases. One generator serves all layers, for
    templates of width ``dims``, that of the first stage.
    """

    def __init__(self, method: PolyhistorLite, dims: int) -> None:
        super().__init__(method.tasks, once_for_all=False)
        k, p, rank = method.embed_dims, method.code_dims, method.rank
        narrow = dims // method.reduction
        self.sizes = (dims, narrow, rank)
        self.embeddings = nn.ParameterDict(
            {task: nn.Parameter(torch.randn(k)) for task in method.tasks}
        )
        self.encode = nn.Sequential(
            linear(2 * k, method.hidden_dims), nn.ReLU(), linear(method.hidden_dims, p)
        )
        self.down = linear(p, rank * (narrow + dims))
        self.down_bias = linear(p, narrow)
        self.up = linear(p, rank * (dims + narrow))
        self.up_bias = linear(p, dims)

    def templates(self, task: str, places: Tensor) -> Weights:
        """Templates of one layer, stacked.

        Args:
            task: Its name.
            places: (s, k), the embeddings of the layer.

        Returns:
            Wd (s, narrow, dims), bd (s, narrow), Wu (s, dims, narrow), bu (s, dims).
        """
        dims, narrow, rank = self.sizes
        v = self.embeddings[task].expand(len(places), -1)
        e = self.encode(torch.cat((v, places), dim=1))
        down = low_rank(self.down(e), narrow, rank, dims)
        up = low_rank(self.up(e), dims, rank, narrow)
        return down, self.down_bias(e), up, self.up_bias(e)


def low_rank(flat: Tensor, rows: int, rank: int, columns: int) -> Tensor:
    """``U V`` from the entries of U and then V, (s, rows, columns)."""
    u, v = flat.split((rows * rank, rank * columns), dim=1)
    return u.reshape(-1, rows, rank) @ v.reshape(-1, rank, columns)


def kron_sum(kernels: Tensor, templates: Tensor) -> Tensor:
    """``sum_j K_j (x) T_j``, the kernel in front.

    Args:
        kernels: (s, a, b).
        templates: (s, m, n).

    Returns:
        (a * m, b * n).
    """
    s, a, b = kernels.shape
    _, m, n = templates.shape
    product = torch.einsum('sab,smn->ambn', kernels, templates)
    return product.reshape(a * m, b * n)


class PolyhistorDelta(Delta):
    """``x + Wu act(Wd x + bd) + bu`` in place of the shortcut x around the network.

    x: (B, N, C) with C = ``factor`` * dims of the templates.

    Args:
        factor: s, the width of this stage over that of the first.
        embed_dims: Width k of a layer embedding; the layer has s of them.
        activation: A key of :data:`ACTIVATIONS`.
    """

    def __init__(self, factor: int, embed_dims: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.places = nn.Parameter(torch.randn(factor, embed_dims))
        if factor > 1:
            self.kernels = nn.Parameter(torch.randn(factor, factor, factor))
            self.bias_kernels = nn.Parameter(torch.randn(factor, factor, 1))

    def weights(self, task: str) -> Weights:
        """The adapter of this layer for one task."""
        down, down_bias, up, up_bias = self.shared.templates(task, self.places)
        if len(self.places) == 1:
            return down[0], down_bias[0], up[0], up_bias[0]
        column, k = self.bias_kernels, self.kernels
        return (
            kron_sum(k, down),
            kron_sum(column, down_bias[:, :, None])[:, 0],
            kron_sum(k, up),
            kron_sum(column, up_bias[:, :, None])[:, 0],
        )

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        (task,) = self.notes(ctx)['tasks']
        return y + adapt(x, self.weights(task), self.activation)


def adapt(x: Tensor, weights: Weights, activation: str) -> Tensor:
    """``Wu act(Wd x + bd) + bu``."""
    down, down_bias, up, up_bias = weights
    h = ACTIVATIONS[activation](F.linear(x, down, down_bias))
    return F.linear(h, up, up_bias)


class StaticDelta(Delta):
    """The adapters of one layer, generated once for every task."""

    def __init__(self, delta: PolyhistorDelta) -> None:
        super().__init__()
        self.activation = delta.activation
        names = ('down', 'down_bias', 'up', 'up_bias')
        for task in delta.shared.tasks:
            for name, weight in zip(names, delta.weights(task), strict=True):
                self.register_buffer(f'{task}_{name}', weight.detach().clone())
        self.names = names

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        (task,) = self.notes(ctx)['tasks']
        weights = tuple(getattr(self, f'{task}_{name}') for name in self.names)
        return y + adapt(x, weights, self.activation)


@torch.no_grad()
def make_static(backbone: nn.Module) -> nn.Module:
    """Generate every adapter once and drop the generator, in place.

    For inference: outputs are those of before, nothing of the method trains any more,
    and its delta can no longer be saved or ejected.

    Raises:
        PETLError: The backbone does not hold PolyhistorLite.
    """
    found = [
        (module, name, slot)
        for _, module, record in injections(backbone)
        for name, slot in record.slots.items()
        if isinstance(slot.method, PolyhistorLite)
    ]
    if not found:
        raise PETLError(f'{type(backbone).__name__} holds no PolyhistorLite')
    for module, name, slot in found:
        switch = TaskSwitch(slot.method.tasks, once_for_all=False)
        switch.train(module.training)
        for site in slot.sites:
            plug = module.get_submodule(site.path)
            if isinstance(plug[name], PolyhistorDelta):
                plug[name] = StaticDelta(plug[name]).train(module.training)
            plug[name].attach(name, switch)
        module.petl.shared[name] = switch
    return backbone


@METHODS.register_module()
class PolyhistorLite(Method):
    """Generated adapters, one pass of the backbone per task.

    Args:
        tasks: Names of the tasks. A multi-task model fills in those of its heads.
        rank: Rank of the template projections, at most the width of the bottleneck.
        reduction: Width of the features over that of the bottleneck.
        embed_dims: Width of the task and layer embeddings.
        hidden_dims: Hidden width of the network that encodes them.
        code_dims: Width of the code from which weights are generated.
        activation: ``'gelu'`` or ``'swish'``.
    """

    targets = ('embed', 'ffn.skip')
    starts_as_identity = False
    family = 'multi_task'
    apart = False

    def __init__(
        self,
        tasks: Iterable[str] = ('task',),
        rank: int = 24,
        reduction: int = 4,
        embed_dims: int = 64,
        hidden_dims: int = 128,
        code_dims: int = 64,
        activation: Literal['gelu', 'swish'] = 'gelu',
    ) -> None:
        self.tasks = check_tasks(self, tasks)
        for name, value in (
            ('rank', rank),
            ('reduction', reduction),
            ('embed_dims', embed_dims),
            ('hidden_dims', hidden_dims),
            ('code_dims', code_dims),
        ):
            check_range(self, name, value, 1)
        if activation not in ACTIVATIONS:
            raise PETLError(
                f'PolyhistorLite needs activation {" or ".join(ACTIVATIONS)}, '
                f'got {activation!r}'
            )
        self.rank = rank
        self.reduction = reduction
        self.embed_dims = embed_dims
        self.hidden_dims = hidden_dims
        self.code_dims = code_dims
        self.activation = activation

    def check(self, sites: list[Site]) -> None:
        dims = sites[0].embed_dims
        if dims % self.reduction:
            raise PETLError(
                f'PolyhistorLite needs a reduction that divides the width of the first '
                f'stage ({dims}), got {self.reduction}'
            )
        if self.rank > dims // self.reduction:
            raise PETLError(
                f'PolyhistorLite needs rank of at most the bottleneck of the first '
                f'stage ({dims} / {self.reduction} = {dims // self.reduction}), got '
                f'{self.rank}'
            )
        for site in sites:
            if site.in_dims % dims:
                raise PETLError(
                    f'PolyhistorLite needs widths that are multiples of the first '
                    f"stage's {dims}; {site} has {site.in_dims} channels"
                )

    def share(self, sites: list[Site]) -> Generator:
        return Generator(self, sites[0].embed_dims)

    def build(self, site: Site) -> Delta:
        if site.kind == 'embed':
            return TaskEntry()
        factor = site.in_dims // site.embed_dims
        return PolyhistorDelta(factor, self.embed_dims, self.activation)
