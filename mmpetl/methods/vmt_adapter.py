"""VMT-Adapter: one adapter for all tasks, and a scale and shift of it for each.

Paper: Xin et al., "VMT-Adapter: Parameter-Efficient Transfer Learning for Multi-Task
Dense Scene Understanding", AAAI 2024, https://arxiv.org/abs/2312.08733.
A RECONSTRUCTION. There is no public code, and the form of the paper's "knowledge
extraction module" is not known to us. Known are: a shared adapter beside the
feed-forward network, a very small module per task, one backbone pass for all tasks,
projections that share their parameters in the Lite variant, and a share of trainable
parameters of about 1 % (Lite: 0.36 %).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, PETLError, Site, check_range
from mmpetl.core.bottleneck import Bottleneck
from mmpetl.core.tasks import TaskEntry, TaskSwitch, check_tasks
from mmpetl.registry import METHODS


class GenericDelta(Bottleneck):
    """``g = Wu gelu(Wd h + bd) + bu`` with ``h`` behind the norm, shared by all tasks.

    It changes nothing here: g bypasses scale and stochastic depth of the branch, so it
    joins the stream behind the sum (:class:`JoinDelta`). x: (B, N, C).
    """

    def __init__(self, dims: int, hidden_dims: int) -> None:
        super().__init__(dims, hidden_dims, 'gelu', 0.0)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        self.notes(ctx)['g'] = self.update(x)
        return y


class TiedDelta(Delta):
    """``g = a (Wd^T gelu(Wd h + bd) + bu)``, the Lite variant; ``a`` starts at zero."""

    def __init__(self, dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.up_bias = nn.Parameter(torch.zeros(dims))
        self.scale = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        up = self.down.weight.t()
        g = F.linear(F.gelu(self.down(x)), up, self.up_bias)
        self.notes(ctx)['g'] = g * self.scale
        return y


class JoinDelta(Delta):
    """``x' = x + DP(MLP(LN x)) + g``."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.notes(ctx)['g']


class TaskDelta(Delta):
    """``f_t = x' + gamma_t * g + beta_t`` for the tasks of this pass, then the norm.

    x: (B, N, C) -> (tasks * B, N, C), task-major. It acts where features leave, with
    the g of the last block in front; the stream goes on without it.
    """

    def __init__(self, dims: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        zeros = {task: torch.zeros(dims) for task in tasks}
        self.gamma = nn.ParameterDict({t: nn.Parameter(z) for t, z in zeros.items()})
        self.beta = nn.ParameterDict(
            {t: nn.Parameter(z.clone()) for t, z in zeros.items()}
        )

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        g = self.notes(ctx)['g']
        features = [
            x + (self.gamma[task] * g + self.beta[task])
            for task in self.notes(ctx)['tasks']
        ]
        return features[0] if len(features) == 1 else torch.cat(features)


@METHODS.register_module()
class VMTAdapter(Method):
    """One shared adapter per block, a scale and a shift per task and output.

    Args:
        tasks: Names of the tasks. A multi-task model fills in those of its heads.
        reduction: Width of the features over that of the bottleneck, rounded down.
        lite: Whether the up projection is the transposed down projection.
    """

    targets = ('embed', 'ffn', 'ffn.sum', 'out')
    family = 'multi_task'
    apart = False

    def __init__(
        self,
        tasks: Iterable[str] = ('task',),
        reduction: int = 16,
        lite: bool = False,
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        self.tasks = check_tasks(self, tasks)
        self.reduction = reduction
        self.lite = bool(lite)

    @property
    def features_per_input(self) -> int:
        return len(self.tasks)

    def check(self, sites: list[Site]) -> None:
        widths = {}
        for site in sites:
            if site.kind == 'ffn' and site.in_dims < self.reduction:
                raise PETLError(
                    f'VMTAdapter needs a reduction of at most the width; {site} has '
                    f'{site.in_dims} channels, got {self.reduction}'
                )
            if site.kind == 'ffn':
                widths[site.stage] = site.in_dims
            # g is as wide as its block, so features must leave before a merging.
            if site.kind == 'out' and site.in_dims not in widths.values():
                raise PETLError(
                    f'VMTAdapter needs features that leave behind a block; output '
                    f'{site.index} has {site.in_dims} channels'
                )

    def share(self, sites: list[Site]) -> TaskSwitch:
        return TaskSwitch(self.tasks, once_for_all=True)

    def build(self, site: Site) -> Delta:
        if site.kind == 'embed':
            return TaskEntry()
        if site.kind == 'ffn.sum':
            return JoinDelta()
        if site.kind == 'out':
            return TaskDelta(site.in_dims, self.tasks)
        adapter = TiedDelta if self.lite else GenericDelta
        return adapter(site.in_dims, site.in_dims // self.reduction)
