"""SCT: a linear map among the channels that matter most for the data.

Paper: Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via
Salient Channels", IJCV 2023, https://arxiv.org/abs/2309.08513, section 3.
Differs from the authors' code: scale and ``scale_on_x`` act (its forward pass ignores
both); at ``mlp`` channels are chosen by the tensor that is rewritten (the block's
output, which it takes, is an argument); exactly K channels are taken where scores are
equal (its threshold takes fewer); sums are streamed in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Calibrated,
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    Site,
    check_range,
    disabled,
    inputs_and_labels,
    one_epoch,
    warn_uncalibrated,
    watching,
)
from mmpetl.registry import METHODS

POSITIONS = {'attn': ('attn.sum',), 'mlp': ('ffn.fc2',), 'qkv': ('attn.q', 'attn.v')}


class SCTDelta(Delta):
    """``y_S <- y_S + s (W y_S + b)``, or ``s y_S + (W y_S + b)`` with ``scale_on_x``.

    y: (B, N, C); S: the K channels of ``index``; W: (K, K), b: (K,).
    """

    def __init__(
        self,
        dims: int,
        num_channels: int,
        scale: float,
        scale_on_x: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        count = min(num_channels, dims)
        self.linear = nn.Linear(count, count)
        nn.init.zeros_(self.linear.bias)
        if zero_init:
            nn.init.zeros_(self.linear.weight)
        else:
            nn.init.trunc_normal_(self.linear.weight, std=0.02)
        self.register_buffer('index', torch.arange(count))
        self.scale = scale
        self.scale_on_x = scale_on_x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        warn_uncalibrated(self, 'SCT rewrites the first channels')
        part = y.index_select(-1, self.index)
        update = F.linear(part, self.linear.weight, self.linear.bias).to(y.dtype)
        if self.scale_on_x:
            part = part * self.scale + update
        else:
            part = part + update * self.scale
        # A clone keeps the strides, and with them the order of later sums.
        return y.clone().index_copy_(-1, self.index, part)

    def rewrite(self, rows: Tensor) -> Tensor:
        """``(M - I) rows`` for the map M of the formula, without b; rows: (C, ...)."""
        part = rows[self.index]
        update = torch.tensordot(self.linear.weight.double(), part, dims=1)
        if self.scale_on_x:
            update = update + part * (self.scale - 1)
        else:
            update = update * self.scale
        return torch.zeros_like(rows).index_copy(0, self.index, update)


class ChannelSums:
    """Sums of squares per class and channel, and what follows from them.

    ``score``: mean over classes of the L2 norm of a channel over all patches of a
    class, so that a class with many images does not outweigh the others.
    """

    def __init__(self) -> None:
        self.squares: dict[int, Tensor] = {}
        self.labels: Tensor | None = None

    def add(self, y: Tensor, num_prefix: int) -> None:
        """Take in features (B, N, C), or (B * windows, N, C), of one batch."""
        sums = y.detach()[:, num_prefix:].double().square().sum(1)
        sums = sums.unflatten(0, (len(self.labels), -1)).sum(1)
        for label in self.labels.unique().tolist():
            total = sums[self.labels == label].sum(0)
            self.squares[label] = self.squares.get(label, 0) + total

    def score(self) -> Tensor:
        """(C,), float64."""
        return torch.stack([s.sqrt() for s in self.squares.values()]).mean(0)


@METHODS.register_module()
class SCT(Method):
    """Salient channel tuning.

    Its channels are chosen by a pass over the labelled training data before training
    (:meth:`calibrate`, which ``mmpetl.CalibrationHook`` runs) and kept in the state.

    Args:
        num_channels: K, 1 <= K <= width; 96 in the paper. In a stage that is narrower
            every channel is taken.
        position: ``'attn'``: the stream behind the attention residual; ``'mlp'``: the
            output of the feed-forward network; ``'qkv'``: queries and values.
        scale: s, 0.1 to 1 per task in the authors' settings.
        scale_on_x: Whether s multiplies the channels and not their update.
        zero_init: Start at the frozen model (with s = 1 or ``scale_on_x=False``). The
            authors draw W from a normal of deviation 0.02.
        last_blocks: It acts in this many of the last blocks; None means all.
        choose_by: For ``'mlp'``: the tensor that scores the channels, the
            ``'output'`` of the network or the ``'block'`` output, as in the released
            code.
    """

    family = 'adapter'
    calibration_pipeline = 'test'

    def __init__(
        self,
        num_channels: int = 96,
        position: Literal['attn', 'mlp', 'qkv'] = 'attn',
        scale: float = 1.0,
        scale_on_x: bool = False,
        zero_init: bool = False,
        last_blocks: int | None = None,
        choose_by: Literal['output', 'block'] = 'output',
    ) -> None:
        if position not in POSITIONS:
            raise PETLError(
                f'SCT needs position {" or ".join(POSITIONS)}, got {position!r}'
            )
        if choose_by not in ('output', 'block'):
            raise PETLError(f'SCT needs choose_by output or block, got {choose_by!r}')
        if choose_by == 'block' and position != 'mlp':
            raise PETLError(
                "SCT chooses by the block output at position 'mlp' only, got "
                f'{position!r}'
            )
        check_range(self, 'num_channels', num_channels, 1)
        check_range(self, 'scale', scale, 0)
        if last_blocks is not None:
            check_range(self, 'last_blocks', last_blocks, 1)
        self.num_channels = num_channels
        self.position = position
        self.scale = scale
        self.scale_on_x = scale_on_x
        self.zero_init = zero_init
        self.last_blocks = last_blocks
        self.choose_by = choose_by
        self.targets = POSITIONS[position]
        self.starts_as_identity = zero_init and (scale == 1 or not scale_on_x)

    @property
    def folds(self) -> bool:
        """At ``attn`` it rewrites the stream, which no weight makes."""
        return self.position != 'attn'

    def choose(self, sites: list[Site]) -> list[Site]:
        depth = max((site.num_blocks for site in sites), default=0)
        count = depth if self.last_blocks is None else self.last_blocks
        if count > depth:
            raise PETLError(
                f'SCT needs last_blocks of at most {depth}, the blocks of this '
                f'backbone, got {count}'
            )
        return [s for s in sites if self.wants(s) and s.block >= depth - count]

    def check(self, sites: list[Site]) -> None:
        wide = max(site.out_dims for site in sites)
        if self.num_channels > wide:
            raise PETLError(
                f'SCT needs num_channels of at most {wide}, the channels that there '
                f'are, got {self.num_channels}'
            )

    def share(self, sites: list[Site]) -> Calibrated:
        return Calibrated()

    def build(self, site: Site) -> SCTDelta:
        return SCTDelta(
            site.out_dims,
            self.num_channels,
            self.scale,
            self.scale_on_x,
            self.zero_init,
        )

    @torch.no_grad()
    def scores(self, backbone: nn.Module, batches: Iterable[Any]) -> dict[Site, Tensor]:
        """Class-balanced importance of every channel at each site, (C,) each.

        The frozen model runs in eval mode without SCT. Inputs without one label each
        (dense tasks) count as one class.

        Raises:
            PETLError: There are no data, or labels of one class only.
        """
        place = Place(backbone, self)
        module, training = place.module, backbone.training
        watched = {site: self._watched(place, site) for site in place.sites}
        sums = {site: ChannelSums() for site in place.sites}

        def look(site: Site):
            return lambda x, y, ctx: sums[site].add(y, ctx.num_prefix)

        labelled = False
        backbone.eval()
        try:
            with (
                disabled(module, place.slot),
                watching(module, {watched[s]: look(s) for s in place.sites}),
            ):
                for (batch,) in one_epoch(batches):
                    inputs, labels = inputs_and_labels(backbone, module, batch)
                    labelled = labels is not None
                    if not labelled:
                        labels = torch.zeros(
                            len(inputs), dtype=torch.long, device=inputs.device
                        )
                    for entry in sums.values():
                        entry.labels = labels
                    module(inputs)
        finally:
            backbone.train(training)
        classes = {label for entry in sums.values() for label in entry.squares}
        if not classes:
            raise PETLError('SCT chooses channels by data, and there are none')
        if labelled and len(classes) == 1:
            raise PETLError(
                'SCT balances its channels over classes, and the data hold one only '
                f'({classes.pop()}); give it labelled data of two classes or more'
            )
        return {site: entry.score() for site, entry in sums.items()}

    def _watched(self, place: Place, site: Site) -> Site:
        if self.choose_by == 'output':
            return site
        sites = place.record.sites
        return next(s for s in sites if s.kind == 'block' and s.block == site.block)

    @torch.no_grad()
    def calibrate(self, backbone: nn.Module, batches: Iterable[Any]) -> None:
        """Choose the channels with the largest :meth:`scores` at every site.

        Raises:
            PETLError: There are no data, or labels of one class only.
        """
        place = Place(backbone, self)
        for site, score in self.scores(backbone, batches).items():
            index = place.delta(site).index
            index.copy_(score.topk(len(index)).indices.sort().values)
        place.shared.done.fill_(True)

    def fold(self, site: Site, delta: SCTDelta, affine: Affine) -> None:
        bias = delta.linear.bias.double() * (1 if delta.scale_on_x else delta.scale)
        weight, old = affine.weight.double(), affine.full_bias().double()
        affine.add_(delta.rewrite(weight))
        shift = delta.rewrite(old)
        affine.shift_(shift.index_add(0, delta.index, bias))
