"""DyT: patches that skip the feed-forward network, with an adapter beside it.

Paper: Zhao et al., "Dynamic Tuning Towards Parameter and Inference Efficiency for ViT
Adaptation", NeurIPS 2024, https://arxiv.org/abs/2403.11808: the first version, and with
``distill`` the complete model as a teacher, of the second.
Differs from the authors' code: no mixture of adapters; on other backbones the rate of
kept patches is the mean over blocks of the mean over their patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Method, Place, Site, check_range
from mmpetl.core.bottleneck import Bottleneck
from mmpetl.registry import METHODS

F32 = torch.float32


class DyTDelta(Bottleneck):
    """``x + keep (y - x) + s update(x)``.  x, y: (B, N, C) around the network.

    keep: (B, N, 1) of zeros and ones, by the sign of ``x w + b``, with the gradient of
    a sigmoid; always one for tokens in front of the grid.
    """

    scale: float
    temperature: float
    complete = False
    """Whether all tokens pass, as in the teacher."""

    def __init__(self, dims: int, hidden_dims: int, drop_rate: float) -> None:
        super().__init__(dims, hidden_dims, 'relu', drop_rate)
        self.select = nn.Linear(dims, 1)
        nn.init.trunc_normal_(self.select.weight, std=0.02)
        nn.init.zeros_(self.select.bias)

    def keep(self, x: Tensor) -> Tensor:
        """Which patches pass the network, (B, N, C) -> (B, N, 1).

        In training with noise: ``sigmoid((l + g1 - g2) / t) > 0.5``, g of Gumbel.
        """
        logits = self.select(x)
        if self.training:
            # The difference of two Gumbel variables is logistic.
            u = torch.rand_like(logits, dtype=torch.float32)
            tiny = torch.finfo(u.dtype).eps
            noise = torch.logit(u, eps=tiny).to(logits.dtype)
            logits = (logits + noise) / self.temperature
        soft = torch.sigmoid(logits)
        hard = (soft > 0.5).to(soft.dtype)
        return hard + soft - soft.detach()

    def is_complete(self, ctx: Context) -> bool:
        """Whether all tokens pass in this pass, also where a part of it runs again."""
        return self.notes(ctx).setdefault('complete', self.complete)

    def passing(self, x: Tensor, ctx: Context) -> Tensor | None:
        # In training keep is drawn, and the draw is made behind the network.
        if self.training or self.is_complete(ctx):
            return None
        keep = self.keep(x[:, ctx.num_prefix :])[..., 0] > 0.5
        return F.pad(keep, (ctx.num_prefix, 0), value=True)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if self.is_complete(ctx):
            return y + self.scale * self.update(x)
        keep = self.keep(x[:, ctx.num_prefix :])
        self.add_term('keep', keep.mean(dtype=torch.promote_types(keep.dtype, F32)))
        if ctx.num_prefix:
            keep = F.pad(keep, (0, 0, ctx.num_prefix, 0), value=1.0)
        return x + keep * (y - x) + self.scale * self.update(x)


@METHODS.register_module()
class DyT(Method):
    """Dynamic tuning.

    A loss of its own, ``dyt_keep``, draws the rate of patches that pass to
    ``keep_rate``: a Runner of MMEngine adds and logs it; a loop of one's own adds
    :func:`mmpetl.core.collect_losses`.

    Args:
        hidden_dims: Width of the adapter: 8 and 64 in the paper, 16 in the authors'
            script for VTAB-1k.
        scale: s, the factor of the adapter.
        drop_rate: Dropout in the adapter.
        keep_rate: Share of the patches that are to pass the feed-forward networks; 0.5,
            0.7 and 0.9 in the paper.
        keep_weight: Factor of ``(mean keep - keep_rate)^2``, 2 in the authors' code.
        temperature: t, above 0.
        distill: Whether a second pass over each batch, in which every patch passes,
            trains too and teaches the first: ``dyt_teacher``, its loss of the task, and
            ``dyt_distill``, the divergence of class scores from its own. A step then
            costs two.
    """

    family = 'adapter'
    targets = ('ffn.sum',)
    starts_as_identity = False
    losses = ('keep',)
    sized = ('hidden_dims',)

    def __init__(
        self,
        hidden_dims: int = 16,
        scale: float = 1.0,
        drop_rate: float = 0.1,
        keep_rate: float = 0.5,
        keep_weight: float = 2.0,
        temperature: float = 5.0,
        distill: bool = False,
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        check_range(self, 'keep_rate', keep_rate, 0, 1)
        check_range(self, 'keep_weight', keep_weight, 0)
        check_range(self, 'temperature', temperature, 1e-3)
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.drop_rate = drop_rate
        self.keep_rate = keep_rate
        self.keep_weight = keep_weight
        self.temperature = temperature
        self.distill = self.teaches = distill

    def build(self, site: Site) -> DyTDelta:
        delta = DyTDelta(site.out_dims, self.hidden_dims, self.drop_rate)
        delta.scale, delta.temperature = self.scale, self.temperature
        return delta

    @contextmanager
    def as_teacher(self, place: Place) -> Iterator[None]:
        for delta in place.deltas:
            delta.complete = True
        try:
            yield
        finally:
            for delta in place.deltas:
                delta.complete = False

    def loss(self, name: str, terms: Sequence[Tensor]) -> Tensor:
        kept = torch.stack(tuple(terms)).mean()
        return self.keep_weight * (kept - self.keep_rate) ** 2
