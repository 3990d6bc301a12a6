"""AdaptFormer: a bottleneck beside the feed-forward network.

Paper: Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual
Recognition", NeurIPS 2022, https://arxiv.org/abs/2205.13535.
Differs from the paper: the branch reads the stream in front of the norm, as the
authors' code does and as they state is right, where the paper's equation has it behind.
Differs from the authors' code: the up projection starts at zero in video models too.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mmpetl.core import Context, Method, PETLError, Site, check_range
from mmpetl.core.bottleneck import Bottleneck, check_activation
from mmpetl.registry import METHODS

INPUTS = {'pre_norm_stream': 'ffn.sum', 'post_norm': 'ffn'}


class AdaptFormerDelta(Bottleneck):
    """``y + scale * update(norm(x))``, the norm being optional.

    x, y: (B, N, C), before and after what it bridges.
    """

    scale: float
    norm: nn.LayerNorm | None

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = x if self.norm is None else self.norm(x)
        return y + self.update(z) * self.scale


@METHODS.register_module()
class AdaptFormer(Method):
    """One parallel branch per block.

    Args:
        hidden_dims: Width of the bottleneck. The paper uses 64, the benchmark 8 on
            VTAB-1k.
        scale: Factor of the branch, 0.1 in the paper.
        drop_rate: Dropout in the bottleneck, 0.1 on images and 0 on video in the
            authors' code.
        input: ``'pre_norm_stream'``: it reads the stream and joins it behind
            stochastic depth. ``'post_norm'``: it reads the norm's output and joins the
            network's output in front of stochastic depth (public Video Swin code).
        activation: ``'relu'`` (paper), or ``'gelu'``, as Mona's dense code has it.
        input_norm: Whether a layer norm of its own stands in front of the bottleneck,
            as in V-PETL Bench's image code.
    """

    family = 'adapter'
    placed = ''
    sized = ('hidden_dims',)

    def __init__(
        self,
        hidden_dims: int = 64,
        scale: float = 0.1,
        drop_rate: float = 0.1,
        input: Literal['pre_norm_stream', 'post_norm'] = 'pre_norm_stream',
        activation: Literal['relu', 'gelu'] = 'relu',
        input_norm: bool = False,
    ) -> None:
        if input not in INPUTS:
            raise PETLError(
                f'AdaptFormer needs input {" or ".join(INPUTS)}, got {input!r}'
            )
        check_activation(self, activation)
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.drop_rate = drop_rate
        self.input = input
        self.activation = activation
        self.input_norm = input_norm
        self.targets = (INPUTS[input],)

    def build(self, site: Site) -> AdaptFormerDelta:
        delta = AdaptFormerDelta(
            site.out_dims, self.hidden_dims, self.activation, self.drop_rate
        )
        delta.scale = self.scale
        delta.norm = nn.LayerNorm(site.in_dims) if self.input_norm else None
        return delta
