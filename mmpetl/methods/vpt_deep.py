"""VPT-deep: fresh learned tokens in front of every block.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119,
eq. (6)-(7).
Differs from the authors' code: dropout is drawn per sample in every backbone (theirs
per batch on Swin); where the tokens of a plain transformer are averaged, prompts stay
out of the mean unless ``pool_prompts=True``; a projection of the prompts, in theirs for
one width, has a map per stage width in windowed backbones.
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
class VPTDeep(Method):
    """Prompts ``E_l`` in front of block l; what block l - 1 made of its own is dropped.

    Args:
        num_tokens: Prompts per block, P >= 1. The paper chooses from 1 to 200 per
            task.
        drop_rate: Dropout on the prompts; 0.1 is the authors' on VTAB-1k, 0 on FGVC.
        pool_prompts: Whether the last block's prompts take part where all tokens are
            averaged. None does it in windowed backbones with one output, as published
            for Swin, and nowhere else. True does it wherever the tokens of the single
            output are averaged, as the authors did for MAE.
        project_dims: Width in which prompts are learned; a linear map that all blocks
            of one width share brings them to the stream. None learns them there, as in
            the paper's runs.
    """

    targets = ('tokens',)
    optional = ('out',)
    starts_as_identity = False
    family = 'prompt'
    apart = False

    def __init__(
        self,
        num_tokens: int = 10,
        drop_rate: float = 0.1,
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
        return site.kind == 'tokens' or pools_prompts(site, self.pool_prompts)

    def check(self, sites: list[Site]) -> None:
        check_pooling('VPTDeep', self.pool_prompts, sites)

    def share(self, sites: list[Site]) -> nn.ModuleDict | None:
        if self.project_dims is None:
            return None
        widths = [site.in_dims for site in sites if site.kind == 'tokens']
        return projections(self.project_dims, widths)

    def build(self, site: Site) -> Delta:
        if site.kind == 'out':
            return PoolPrompts()
        # The width of the first stage in every stage, as the authors have it.
        dims = self.project_dims or site.embed_dims
        bound = (6 / (site.patch_dims + dims)) ** 0.5
        return Prompts(
            site.in_dims,
            self.num_tokens,
            bound,
            self.drop_rate,
            inner_dims=self.project_dims,
        )
