"""SNF: a small normalizing flow on the two shortcuts of every block.

Paper: Wang et al., "Adapting Shortcut With Normalizing Flow: An Efficient Tuning
Framework for Visual Recognition", CVPR 2023.
Differs from the authors' code: the default length is 6, which comes nearest to the
published size (theirs is 16); the log-determinant, which no loss of theirs uses, is not
computed; the flows are applied to all tokens at once in factored form. Windowed
backbones and video are our extension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, PETLError, Site, check_range
from mmpetl.registry import METHODS

PUBLISHED_BLOCKS = 12


class FlowDelta(Delta):
    """An affine map per channel, then planar flows, token by token.

    ``z = mu + exp(lam) * x``, then ``z <- z + u_k tanh(w_k . z + b_k)`` for each k.
    x: (B, N, C), what the shortcut carries.
    """

    def __init__(self, dims: int, length: int, zero_init: bool) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(dims))
        self.lam = nn.Parameter(torch.zeros(dims))
        self.w = nn.Parameter(torch.empty(length, dims))
        self.u = nn.Parameter(torch.empty(length, dims))
        self.b = nn.Parameter(torch.empty(length))
        for param in (self.w, self.u, self.b):
            nn.init.uniform_(param, -0.01, 0.01)
        if zero_init:
            nn.init.zeros_(self.u)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = self.mu + torch.exp(self.lam) * y
        # w_k . z after k flows is w_k . z_0 plus what the flows before have added, so
        # that z itself, which is wide, is touched twice and not once per flow.
        reach = F.linear(self.u, self.w)
        rest, steps = F.linear(z, self.w, self.b), []
        for k in range(len(self.w)):
            steps.append(torch.tanh(rest[..., :1]))
            rest = rest[..., 1:] + steps[-1] * reach[k, k + 1 :]
        return z + torch.cat(steps, dim=-1) @ self.u


@METHODS.register_module()
class SNF(Method):
    """Shortcut tuning with normalizing flows.

    Args:
        length: Planar flows per shortcut, n >= 1. 6 gives the size nearest to the
            published one; the authors' code has 16.
        zero_init: Whether the planar flows start at zero, so that the model starts as
            the frozen one.
        blocks: How many blocks, from the first on. None takes 12 of a plain
            transformer, as the authors' code does, and all of one with windows or
            several stages.
    """

    targets = ('attn.skip', 'ffn.skip')
    family = 'adapter'
    across = True

    def __init__(
        self, length: int = 6, zero_init: bool = False, blocks: int | None = None
    ) -> None:
        check_range(self, 'length', length, 1)
        if blocks is not None:
            check_range(self, 'blocks', blocks, 1)
        self.length = length
        self.zero_init = zero_init
        self.blocks = blocks
        self.starts_as_identity = zero_init

    def choose(self, sites: list[Site]) -> list[Site]:
        chosen = [site for site in sites if self.wants(site)]
        if chosen and (self.blocks or 0) > chosen[0].num_blocks:
            raise PETLError(
                f'SNF is to act in {self.blocks} blocks; this backbone has '
                f'{chosen[0].num_blocks}'
            )
        # What is plain is the trunk: some blocks of a windowed one attend to all.
        is_plain = all(site.window is None and not site.stage for site in chosen)
        end = self.blocks or (PUBLISHED_BLOCKS if is_plain else None)
        return [site for site in chosen if end is None or site.block < end]

    def build(self, site: Site) -> FlowDelta:
        return FlowDelta(site.out_dims, self.length, self.zero_init)
