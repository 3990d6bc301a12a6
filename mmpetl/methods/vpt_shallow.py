"""VPT-shallow: learned tokens that join the sequence in front of the first block.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119,
eq. (4)-(5).
Differs from the authors' code: in windowed attention each image keeps its own prompts
(theirs mixes prompts of different images of a batch, so that features depend on what
else is in it); where the tokens of a plain transformer are averaged, prompts stay out
of the mean unless ``pool_prompts=True``.
"""

from __future__ import annotations

from torch import nn

from mmpetl.core import (
    Delta,
    Method,
    PoolPrompts,
    Prompts,
    Site,
    check_pooling,
    check_range,
    pools_prompts,
    projections,
)
from mmpetl.registry import METHODS


@METHODS.register_module()
class VPTShallow(Method):
    """Prompts ``E`` in front of block 0 that travel through all blocks.

    Args:
        num_tokens: Prompts, P >= 1. V-PETL Bench uses 100; the paper chooses from
            1 to 200 per task.
        drop_rate: Dropout on the prompts; the authors' demo has none.
        pool_prompts: Whether the prompts take part where all tokens are averaged.
            None does it in windowed backbones with one output, as published for Swin,
            and nowhere else. True does it wherever the tokens of the single output
            are averaged, as the authors did for MAE.
        project_dims: Width in which prompts are learned; a linear map brings them to
            the stream. None learns them there, as in the paper's runs.
    """

    targets = ('tokens',)
    optional = ('out',)
    starts_as_identity = False
    family = 'prompt'
    apart = False

    def __init__(
        self,
        num_tokens: int = 100,
        drop_rate: float = 0.0,
        pool_prompts: bool | None = None,
        project_dims: int | None = None,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if project_dims is not None:
            check_range(self, 'project_dims', project_dims, 1)
        self.num_tokens = num_tokens
        self.drop_rate = drop_rate
        self.pool_prompts = pool_prompts
        self.project_dims = project_dims

    def wants(self, site: Site) -> bool:
        first = site.kind == 'tokens' and site.block == 0
        return first or pools_prompts(site, self.pool_prompts)

    def check(self, sites: list[Site]) -> None:
        check_pooling('VPTShallow', self.pool_prompts, sites)

    def share(self, sites: list[Site]) -> nn.ModuleDict | None:
        if self.project_dims is None:
            return None
        widths = [site.in_dims for site in sites if site.kind == 'tokens']
        return projections(self.project_dims, widths)

    def build(self, site: Site) -> Delta:
        if site.kind == 'out':
            return PoolPrompts()
        dims = self.project_dims or site.embed_dims
        bound = (6 / (site.patch_dims + dims)) ** 0.5
        return Prompts(
            site.in_dims,
            self.num_tokens,
            bound,
            self.drop_rate,
            inner_dims=self.project_dims,
        )
