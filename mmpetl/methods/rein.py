"""Rein: learned tokens that correct the features of a frozen trunk behind every block.

Paper: Wei et al., "Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for
Domain Generalized Semantic Segmentation", CVPR 2024, https://arxiv.org/abs/2312.04265,
section 3.
Differs from the authors' code: nothing in the algebra. The features enter their own
update, and the first token takes attention and gives nothing, as there. The start takes
the patch size of the trunk, where theirs has 16 for a model of 14. On trunks of several
widths the link merges the tokens of all blocks once; theirs has a link per stage and
adds up the queries.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    check_rank,
    injection_of,
    kaiming_uniform_,
)
from mmpetl.registry import METHODS

SCALE = 0.001


class Maps(nn.Module):
    """``W1``, ``W2`` and the scale ``s``, which all blocks of one width share."""

    def __init__(self, dims: int, zero_init: bool) -> None:
        super().__init__()
        self.W1 = nn.Linear(dims, dims)
        self.W2 = nn.Linear(dims, dims)
        kaiming_uniform_(self.W1.weight)
        kaiming_uniform_(self.W2.weight)
        self.scale = None if zero_init else nn.Parameter(torch.tensor(SCALE))
        if zero_init:
            nn.init.zeros_(self.W2.weight)
            nn.init.zeros_(self.W2.bias)

    def forward(self, f: Tensor, tokens: Tensor) -> Tensor:
        """Features f (B, N, C) and tokens (m, C) to the update of f, (B, N, C)."""
        scores = (f @ tokens.T / f.shape[-1] ** 0.5).softmax(-1)
        d = scores[..., 1:] @ self.W1(tokens[1:])
        update = self.W2(d + f)
        return update if self.scale is None else self.scale * update


class Link(nn.Module):
    """Queries of a decoder from the tokens of all blocks.

    ``Q_i = T_i Wt^T + bt``; the largest, the mean and the last ``Q_i`` lie next to each
    other per channel, and ``merge`` maps them to the queries.
    """

    def __init__(self, widths: Iterable[int], query_dims: int) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {str(dims): nn.Linear(dims, query_dims) for dims in widths}
        )
        self.merge = nn.Linear(3 * query_dims, query_dims)

    def forward(self, tokens: Iterable[Tensor]) -> Tensor:
        """Tokens (m, C) of each block, in order, to queries (m, query_dims)."""
        q = torch.stack([self.transform[str(int(t.shape[-1]))](t) for t in tokens])
        three = torch.stack((q.amax(0), q.mean(0), q[-1]), dim=-1)
        return self.merge(three.flatten(1))


class Shared(nn.Module):
    """What the blocks share: the maps by width, and the link to a decoder if any."""

    def __init__(
        self, widths: Iterable[int], zero_init: bool, query_dims: int | None
    ) -> None:
        super().__init__()
        widths = sorted(set(widths))
        self.maps = nn.ModuleDict({str(d): Maps(d, zero_init) for d in widths})
        self.link = None if query_dims is None else Link(widths, query_dims)


class ReinDelta(Delta):
    """``f + s ((d + f) W2^T + b2)`` with ``d = S[1:] (T[1:] W1^T + b1)``.

    ``S = softmax(f T^T / sqrt(C))`` over the m tokens ``T = A B``. f: (B, N, C), the
    grid; what stands in front of it passes.
    """

    def __init__(self, site: Site, num_tokens: int, rank: int | None) -> None:
        super().__init__()
        self.dims = dims = site.out_dims
        if rank is None:
            bound = (6 / (site.patch_dims + dims)) ** 0.5
            self.T = nn.Parameter(torch.empty(num_tokens, dims).uniform_(-bound, bound))
        else:
            bound = (6 / (site.patch_dims + (dims * rank) ** 0.5)) ** 0.5
            self.A = nn.Parameter(torch.empty(num_tokens, rank).uniform_(-bound, bound))
            self.B = nn.Parameter(torch.empty(rank, dims).uniform_(-bound, bound))

    def tokens(self) -> Tensor:
        """(m, C)."""
        return self.T if hasattr(self, 'T') else self.A @ self.B

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        front, f = y[:, : ctx.num_prefix], y[:, ctx.num_prefix :]
        f = f + self.shared.maps[str(self.dims)](f, self.tokens())
        return torch.cat((front, f), dim=1) if front.shape[1] else f


@METHODS.register_module()
class Rein(Method):
    """Rein.

    Args:
        num_tokens: Tokens per block, m >= 2, as the first is a sink; 100 in the paper,
            the number of queries.
        rank: Rank of the tokens of a block, 1 <= r < width; 16 in the paper. None
            learns them in full.
        zero_init: Start at the frozen model, with ``W2`` at zero and without the scale.
            The paper's runs start near it, with a scale of 0.001.
        query_dims: Width of the queries that the tokens of all blocks are linked to,
            256 in Mask2Former, for a head that reads :func:`queries`, as
            ``mmpetl.ReinHead`` does. None has no link, and works with any head.
    """

    targets = ('block',)
    family = 'adapter'
    across = True
    placed = 'grid'

    def __init__(
        self,
        num_tokens: int = 100,
        rank: int | None = 16,
        zero_init: bool = False,
        query_dims: int | None = None,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 2)
        if rank is not None:
            check_range(self, 'rank', rank, 1)
        if query_dims is not None:
            check_range(self, 'query_dims', query_dims, 1)
        self.num_tokens = num_tokens
        self.rank = rank
        self.zero_init = zero_init
        self.query_dims = query_dims
        self.starts_as_identity = zero_init

    def check(self, sites: list[Site]) -> None:
        if self.rank is not None:
            check_rank(self, self.rank, sites)

    def share(self, sites: list[Site]) -> Shared:
        widths = [site.out_dims for site in sites]
        return Shared(widths, self.zero_init, self.query_dims)

    def build(self, site: Site) -> ReinDelta:
        return ReinDelta(site, self.num_tokens, self.rank)


def queries(backbone: nn.Module) -> Tensor:
    """What a Rein with ``query_dims`` gives the decoder behind this backbone.

    Returns:
        (num_tokens, query_dims), the same for every image.

    Raises:
        PETLError: No slot holds such a Rein.
    """
    module, state = injection_of(backbone)
    for slot, entry in state.slots.items():
        if isinstance(entry.method, Rein) and entry.method.query_dims is not None:
            deltas = [module.get_submodule(site.path)[slot] for site in entry.sites]
            return deltas[0].shared.link([delta.tokens() for delta in deltas])
    held = ', '.join(repr(entry.method) for entry in state.slots.values())
    raise PETLError(
        'queries come from a Rein with query_dims, as in '
        f"dict(type='Rein', query_dims=256); this backbone holds {held or 'none'}"
    )
