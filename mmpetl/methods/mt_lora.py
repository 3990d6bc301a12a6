"""MTLoRA: low-rank updates that tasks share, and small ones of each task.

Paper: Agiza, Neseem and Reda, "MTLoRA: A Low-Rank Adaptation Approach for Efficient
Multi-Task Learning", CVPR 2024, https://arxiv.org/abs/2403.20320.
Differs from the authors' code: the shared pair of the last ``ffn.fc2`` is left out
where nobody reads what it does; features leave where the backbone hands them over, in
the code behind the patch merging; the code's mode ``addition`` is left out. Plain
transformers, pyramids and video are our extension: blocks in front of an output take
the place of the last blocks of stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Role,
    Site,
    check_range,
    check_rank,
    convolve,
    fold_sites,
    in_stages,
    injections,
    kaiming_uniform_,
    suggest,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product
from mmpetl.core.tasks import TaskEntry, TaskSwitch, check_tasks
from mmpetl.registry import METHODS

QKV = ('attn.q', 'attn.k', 'attn.v')
ADAPTED = ('attn.qkv', *QKV, 'attn.proj', 'ffn.fc1', 'ffn.fc2')
MERGING = 'downsample.reduction'
MODES = ('matrix', 'matrixv2')


class Pair(nn.Module):
    """``y + s drop(x) (B A)^T``, zero at the start.

    A: (rank, in_dims), B: (out_dims, rank).
    """

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_dims))
        self.B = nn.Parameter(torch.zeros(site.out_dims, rank))
        self.site = site
        self.scale = scale
        kaiming_uniform_(self.A)

    def forward(
        self, y: Tensor, x: Tensor, ctx: Context, drop: nn.Dropout | None = None
    ) -> Tensor:
        if self.site.kernel is not None:
            low = convolve(x if drop is None else drop(x), self.A, self.site)
        else:
            low = product(x, self.A, ctx, drop)
        return add_product(y, low, self.B, self.scale)


def streams_of(x: Tensor, tasks: Sized) -> Tensor:
    """The generic stream and that of each task: (1 + T, B, N, C), a view."""
    return x.unflatten(0, (1 + len(tasks), -1))


class SharedDelta(Delta):
    """``y + s drop(x) (B A)^T``, for all tasks at once.  x: (B, N, in_dims)."""

    def __init__(self, method: MTLoRA, site: Site) -> None:
        super().__init__()
        self.pair = Pair(site, method.rank, method.scale)
        self.drop = Dropout(method.drop_rate)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.pair(y, x, ctx, self.drop)


class SplitDelta(Delta):
    """Where one stream becomes 1 + T: ``W x + b + s_t B_t A_t x`` for each task.

    x: (B, N, in_dims), y = W x + b: (B, N, out_dims) -> ((1 + T) * B, N, out_dims), the
    generic stream in front, then the tasks of the pass in their order.

    Args:
        method: The method.
        site: The projection.
        dead: Whether nobody reads what the shared pair would do, so that there is none.
    """

    # What other methods do to the projection is there for every stream.
    taps = True

    def __init__(self, method: MTLoRA, site: Site, dead: bool = False) -> None:
        super().__init__()
        self.pair = None if dead else Pair(site, method.rank, method.scale)
        self.tasks = nn.ModuleDict(
            {t: Pair(site, method.task_rank, method.task_scale) for t in method.tasks}
        )
        self.drop = Dropout(method.drop_rate)
        self.adds_shared = method.mode == 'matrixv2'

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        tasks = self.notes(ctx)['tasks']
        x = self.drop(x)
        return self.joined(y, x, dict.fromkeys(tasks, x), ctx)

    def joined(
        self,
        y: Tensor,
        x: Tensor,
        streams: dict[str, Tensor],
        ctx: Context,
        drop: nn.Dropout | None = None,
    ) -> Tensor:
        """Every stream behind the projection, of what enters its pairs.

        Args:
            y: ``W x + b`` of the generic stream, of which all are made.
            x: The generic stream in front.
            streams: Those of the tasks.
            ctx: Facts of this forward pass.
            drop: Dropout on the generic stream; those of the tasks have none, as in the
                authors' code.
        """
        generic = y if self.pair is None else self.pair(y, x, ctx, drop)
        start = generic if self.adds_shared else y
        own = [self.tasks[t](start, x_t, ctx) for t, x_t in streams.items()]
        return torch.cat((generic, *own))


class StreamDelta(SplitDelta):
    """``W x + b + s_t B_t A_t x_t``, each task with a stream of its own.

    The frozen projection sees the generic rows only, in front of which the others wait.
    x: ((1 + T) * B, N, in_dims) -> ((1 + T) * B, N, out_dims).
    """

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        x, *notes['rows'] = streams_of(x, notes['tasks']).unbind()
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        rows = zip(notes['tasks'], notes.pop('rows'), strict=True)
        return self.joined(y, x, dict(rows), ctx, self.drop)


class ShortcutDelta(Delta):
    """The shortcut around attention, from which every stream starts."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        count = 1 + len(self.notes(ctx)['tasks'])
        # In the layout that the stream has in memory, so that what follows sums in the
        # order of the frozen model, and starts as it bit for bit.
        if y.stride(1) < y.stride(2):
            return torch.cat([y.transpose(1, 2)] * count).transpose(1, 2)
        return torch.cat([y] * count)


class ExitDelta(Delta):
    """The generic stream goes on; those of the tasks are kept for their output.

    y: ((1 + T) * B, N, C) -> (B, N, C).
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        streams = streams_of(y, notes['tasks'])
        notes[self.block] = streams[1:].flatten(0, 1)
        return streams[0]


class MergeDelta(Delta):
    """Streams of the tasks pass a patch merging that stands in front of their output.

    Args:
        block: The block that they come from.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        notes[self.block] = ctx.rerun(notes[self.block], ctx.fork())
        return x


class OutDelta(Delta):
    """The streams of the tasks leave in place of the generic one, in front of the norm.

    x: (B, N, C) -> (T * B, N, C), task-major.

    Args:
        block: The block that they come from.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return self.notes(ctx).pop(self.block)


@METHODS.register_module()
class MTLoRA(Method):
    """Low-rank pairs for all tasks, and pairs per task in front of every output.

    Args:
        tasks: Names of the tasks. A multi-task model fills in those of its heads.
        rank: Rank of the shared pairs, below every width.
        task_rank: Rank of the pairs of a task, likewise.
        scale: Factor of the shared pairs, not divided by their rank.
        task_scale: Factor of the pairs of a task, likewise.
        drop_rate: Dropout on what enters the pairs; not on streams of tasks behind the
            projection where they part.
        mode: ``'matrix'``: what a task reads at a projection is without the shared
            pair there. ``'matrixv2'``: with it.
        plus: MTLoRA+, a shared pair at the reduction of every patch merging too.
        train_rest: Whether patch embedding, norms, patch mergings and tables of
            relative positions train too.
    """

    targets = ('embed', 'attn.qkv', 'attn.proj', 'attn.skip', 'ffn.fc1', 'ffn.fc2')
    targets += ('block', 'out')
    optional = ('downsample', MERGING)
    substitutes = {'attn.qkv': QKV}
    family = 'multi_task'
    replaces = ('out',)
    normed = True
    splits = 'attn.skip'
    apart = False

    def __init__(
        self,
        tasks: Iterable[str] = ('task',),
        rank: int = 64,
        task_rank: int = 4,
        scale: float = 4.0,
        task_scale: float = 4.0,
        drop_rate: float = 0.05,
        mode: Literal['matrix', 'matrixv2'] = 'matrix',
        plus: bool = False,
        train_rest: bool = True,
    ) -> None:
        self.tasks = check_tasks(self, tasks)
        check_range(self, 'rank', rank, 1)
        check_range(self, 'task_rank', task_rank, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'task_scale', task_scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if mode not in MODES:
            raise PETLError(
                f'MTLoRA needs mode {" or ".join(MODES)}, got {mode!r}.'
                f'{suggest(str(mode), MODES)}'
            )
        self.rank = rank
        self.task_rank = task_rank
        self.scale = scale
        self.task_scale = task_scale
        self.drop_rate = drop_rate
        self.mode = mode
        self.plus = bool(plus)
        self.train_rest = bool(train_rest)
        self._ends: dict[int | None, int] = {}
        self._splits: frozenset[str] = frozenset()

    @property
    def features_per_input(self) -> int:
        return len(self.tasks)

    def choose(self, sites: list[Site]) -> list[Site]:
        """The sites up to the last output; it also finds the block of each output."""
        outs = {site.index: i for i, site in enumerate(sites) if site.kind == 'out'}
        staged = in_stages(sites)
        self._ends = {
            site.stage if staged else site.block: site.block
            for site in sites
            if site.block is not None and (site.stage if staged else site.block) in outs
        }
        ends, end = set(self._ends.values()), max(outs.values(), default=0)
        last = max(ends, default=0)
        # Where space and time have an attention each, streams part at the second.
        own = {(s.kind, s.block): s.path for s in sites if s.block in ends}
        self._splits = frozenset(
            own[kind, block]
            for block in ends
            for kind in ('attn.proj', 'attn.skip')
            if (kind, block) in own
        )
        chosen = []
        for i, site in enumerate(sites):
            if site.kind in ('attn.skip', 'block'):
                wanted = site.block in ends
                if site.kind == 'attn.skip':
                    wanted = site.path in self._splits
            elif site.kind == 'downsample':
                wanted = i < outs.get(site.index, -1)
            elif site.kind == MERGING:
                wanted = self.plus and i < end
            else:
                wanted = site.block is None or site.block <= last
            if wanted:
                chosen.append(site)
        instead = self.instead_of({site.kind for site in sites})
        return [s for s in chosen if self.wants(s) or s.kind in instead]

    def check(self, sites: list[Site]) -> None:
        adapted = [s for s in sites if s.kind in (*ADAPTED, MERGING)]
        check_rank(self, max(self.rank, self.task_rank), adapted)
        if self.plus and not any(site.kind == MERGING for site in sites):
            raise PETLError(
                'MTLoRA with plus=True adapts patch mergings, and there is none in '
                'front of the last output; leave plus out'
            )

    def share(self, sites: list[Site]) -> TaskSwitch:
        return TaskSwitch(self.tasks, once_for_all=True)

    def build(self, site: Site) -> Delta:
        if site.kind == 'embed':
            return TaskEntry()
        if site.kind == 'attn.skip':
            return ShortcutDelta()
        if site.kind == 'block':
            return ExitDelta(site.block)
        if site.kind == 'downsample':
            return MergeDelta(self._ends[site.index])
        if site.kind == 'out':
            return OutDelta(self._ends[site.index])
        if site.kind == 'attn.proj' and site.path in self._splits:
            return SplitDelta(self, site)
        ends = self._ends.values()
        if site.kind in ('ffn.fc1', 'ffn.fc2') and site.block in ends:
            # In front of the last output only the streams of the tasks are read.
            last = site.kind == 'ffn.fc2' and site.block == max(ends)
            return StreamDelta(self, site, dead=last and self.mode == 'matrix')
        return SharedDelta(self, site)

    def selects(self, role: Role) -> bool:
        if not self.train_rest:
            return False
        projection = role.kind == 'projection' and role.place in ('embed', 'merging')
        return projection or role.is_norm or role.kind == 'position_bias'


def fold_shared(backbone: nn.Module) -> nn.Module:
    """Write shared pairs into the base where no task has a pair of its own, in place.

    For inference: outputs are those of before, and only the blocks in front of outputs
    hold more than the base does. What stays can no longer be saved or ejected.

    Raises:
        PETLError: The backbone does not hold MTLoRA, or its weights are quantised.
    """
    found = [
        (name, slot)
        for _, _, record in injections(backbone)
        for name, slot in record.slots.items()
        if isinstance(slot.method, MTLoRA)
    ]
    if not found:
        raise PETLError(f'{type(backbone).__name__} holds no MTLoRA')
    for name, _ in found:
        fold_sites(backbone, name, SharedDelta, write_shared)
    return backbone


def write_shared(site: Site, delta: Delta, affine: Affine) -> None:
    """``W <- W + s B A``.

    Raises:
        PETLError: Tasks have pairs there, and read the base weight without this one.
    """
    if not isinstance(delta, SharedDelta):
        raise PETLError(
            f'MTLoRA at {site} cannot be folded: its tasks have pairs there, and read '
            'the base weight without the shared one'
        )
    pair = delta.pair
    affine.add_(pair.B.double() @ pair.A.double() * pair.scale)
