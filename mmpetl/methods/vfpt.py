"""VFPT: some of the prompts of VPT-deep pass a Fourier transform on their way in.

Paper: Zeng et al., "Visual Fourier Prompt Tuning", NeurIPS 2024,
https://arxiv.org/abs/2411.01327, section 3.2.
Differs from the authors' code: the transform can be normalised (``norm='ortho'``, off
by default; theirs is not, so that f prompts of width D grow by about sqrt(f D)). A
random draw of the prompts that are transformed, in each step, is not offered. Pooling
and dropout are those of our VPT-deep.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmpetl.core import (
    Delta,
    Method,
    PETLError,
    PoolPrompts,
    Prompts,
    Site,
    check_pooling,
    check_range,
    pools_prompts,
)
from mmpetl.registry import METHODS

AXES = {'both': (-2, -1), 'hidden': (-1,), 'sequence': (-2,)}
NORMS = (None, 'ortho')


class FourierPrompts(Prompts):
    """``[class; Re(F(drop(E)[:f])); drop(E)[f:]; grid]`` with the transform F.

    F runs over the channels, over the f prompts, or over both.
    """

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        bound: float,
        drop_rate: float,
        num_fourier: int,
        axes: tuple[int, ...],
        norm: str | None,
    ) -> None:
        super().__init__(site.in_dims, num_tokens, bound, drop_rate)
        self.num_fourier = num_fourier
        self.axes = axes
        self.norm = norm

    def tokens(self, batch: int) -> Tensor:
        tokens = super().tokens(batch)
        if not (self.num_fourier and batch):  # no transform is of nothing
            return tokens
        first, rest = tokens.tensor_split([self.num_fourier], dim=1)
        # There is no transform of half floats.
        fine = first.to(torch.promote_types(first.dtype, torch.float32))
        first = torch.fft.fftn(fine, dim=self.axes, norm=self.norm).real.to(first.dtype)
        return torch.cat((first, rest), dim=1)


@METHODS.register_module()
class VFPT(Method):
    """Visual Fourier prompt tuning.

    Args:
        num_tokens: Prompts per block, P >= 1.
        fraction: Share of them that is transformed, 0 to 1, rounded down to whole
            prompts; 0 is VPT-deep. The paper chooses from 0, 0.3, 0.5, 0.7 and 1 per
            task.
        axes: What the transform runs over: ``'both'`` the f prompts and their channels,
            as in the paper; ``'hidden'`` the channels, ``'sequence'`` the prompts.
        norm: None as in the authors' code; ``'ortho'`` keeps the size of the prompts.
        drop_rate: Dropout on the prompts, in front of the transform.
        pool_prompts: Whether the last block's prompts take part where all tokens are
            averaged, as in VPT-deep.
    """

    targets = ('tokens',)
    optional = ('out',)
    starts_as_identity = False
    family = 'prompt'
    apart = False

    def __init__(
        self,
        num_tokens: int = 10,
        fraction: float = 0.5,
        axes: Literal['both', 'hidden', 'sequence'] = 'both',
        norm: Literal['ortho'] | None = None,
        drop_rate: float = 0.1,
        pool_prompts: bool | None = None,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 1)
        check_range(self, 'fraction', fraction, 0, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if axes not in AXES:
            raise PETLError(f'VFPT has axes {", ".join(AXES)}, got {axes!r}')
        if norm not in NORMS:
            raise PETLError(f"VFPT has norm None or 'ortho', got {norm!r}")
        self.num_tokens = num_tokens
        self.fraction = fraction
        self.axes = axes
        self.norm = norm
        self.drop_rate = drop_rate
        self.pool_prompts = pool_prompts

    @property
    def num_fourier(self) -> int:
        """How many prompts are transformed, f = floor(fraction P)."""
        return int(self.fraction * self.num_tokens + 1e-9)  # 0.29 x 100 is 28.99...

    def wants(self, site: Site) -> bool:
        return site.kind == 'tokens' or pools_prompts(site, self.pool_prompts)

    def check(self, sites: list[Site]) -> None:
        check_pooling('VFPT', self.pool_prompts, sites)

    def build(self, site: Site) -> Delta:
        if site.kind == 'out':
            return PoolPrompts()
        bound = (6 / (site.patch_dims + site.embed_dims)) ** 0.5
        return FourierPrompts(
            site,
            self.num_tokens,
            bound,
            self.drop_rate,
            self.num_fourier,
            AXES[self.axes],
            self.norm,
        )
