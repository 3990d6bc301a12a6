"""DoRA: the direction of a weight by a low-rank sum, its row norms by a vector.

Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024,
https://arxiv.org/abs/2402.09353, section 4.3.
Differs from the authors' code: none in the algebra without dropout. With it, public
code computes the magnitude part again from the dropped input; here dropout is on the
low-rank path alone, as in LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import (
    ATTENTION,
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    in_networks,
    is_wider,
    kaiming_uniform_,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product, scale_shift
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    by_layer,
    in_pattern,
    number,
    pair_shapes,
    patterned,
)
from mmpetl.registry import METHODS


def row_norms(weight: Tensor) -> Tensor:
    """Length of each row of (out, in), over its inputs; never quite zero: (out,)."""
    norms = torch.linalg.vector_norm(weight, dim=1)
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)


class DoRADelta(Delta):
    """``(m / n) * (y - b + scale * drop(x) A^T B^T) + b``.

    ``n`` holds the row norms of ``W + scale B A``; W and b are those of the frozen
    projection.  x: (B, N, in_dims), y: (B, N, out_dims); m, n: (out_dims,).
    """

    reads_base = True

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_dims))
        self.B = nn.Parameter(torch.zeros(site.out_dims, rank))
        self.m = nn.Parameter(torch.ones(site.out_dims))
        self.site = site
        self.scale = scale
        self.drop = Dropout(drop_rate)
        kaiming_uniform_(self.A)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        affine = ctx.affine(self.site.kind)
        ratio = self.m / self.norms(self.own(affine.weight))
        z = add_product(y, self.low(x, ctx), self.B, self.scale)
        # Which leaves z bit for bit where the ratio is one.
        back = (1 - ratio) * self.own(affine.full_bias())
        return scale_shift(z, ratio, back, ctx.output_kept)

    def low(self, x: Tensor, ctx: Context) -> Tensor:
        """``drop(x) A^T``, for a convolution on its patches."""
        if self.site.kernel is not None:
            return convolve(self.drop(x), self.A, self.site)
        return product(x, self.A, ctx, self.drop)

    @torch.no_grad()
    def norms(self, weight: Tensor) -> Tensor:
        """Row norms of the adapted weight, a constant in the backward pass."""
        return row_norms(weight + self.B @ self.A * self.scale)


class DoRAInPeft(PeftFormat):
    """LoRA's tensors and ``lora_magnitude_vector``, which is m."""

    kind = 'LORA'
    convolves = True
    names = ('lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector')
    reads = (
        'r',
        'use_dora',
        'lora_alpha',
        'lora_dropout',
        'use_rslora',
        'rank_pattern',
        'alpha_pattern',
        'init_lora_weights',
    )
    idle = ('runtime_config', 'megatron_core', 'qalora_group_size')

    def fits(self, config: Mapping[str, Any]) -> bool:
        return bool(config.get('use_dora'))

    def why_not(self, config: Mapping[str, Any]) -> str:
        start = config.get('init_lora_weights', True)
        if isinstance(start, bool) or start == 'gaussian':
            return ''
        return f'init_lora_weights={start!r} of DoRA may change the base weights'

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        ranks = {x.path: len(x.need(self.names[0])) for x in layers}
        given = config.get('lora_alpha', 8)
        alphas = {}
        for x in layers:
            alpha = patterned(config, 'alpha_pattern', x.name, given)
            root = ranks[x.path] ** 0.5 if config.get('use_rslora') else 1
            alphas[x.path] = alpha * root
        return {
            'rank': by_layer(ranks),
            'alpha': by_layer(alphas),
            'drop_rate': config.get('lora_dropout') or 0.0,
        }

    def load(
        self, delta: DoRADelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        parts = delta.A, delta.B, delta.m
        shapes = self.shapes(delta, layer.kernel)
        for name, param, shape in zip(self.names, parts, shapes, strict=True):
            layer.take(name, param, shape)

    @staticmethod
    def shapes(delta: DoRADelta, kernel: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What A, B and m have for shapes in the file."""
        m = (1, len(delta.m), *(1,) * len(kernel)) if kernel else (len(delta.m),)
        return [*pair_shapes(delta.A, delta.B, kernel), m]

    def write(self, method: DoRA, linears: Sequence[TunedLinear]) -> PeftAdapter:
        layers, ranks, alphas = {}, {}, {}
        for linear in linears:
            delta = linear.whole('DoRA')
            parts = delta.A, delta.B, delta.m
            shapes = self.shapes(delta, linear.kernel)
            layers[linear.path] = {
                name: part.reshape(shape)
                for name, part, shape in zip(self.names, parts, shapes, strict=True)
            }
            ranks[linear.path] = len(delta.A)
            alphas[linear.path] = number(delta.scale * len(delta.A))
        r, rank_pattern = in_pattern(ranks)
        alpha, alpha_pattern = in_pattern(alphas)
        entries = {
            'use_dora': True,
            'r': r,
            'lora_alpha': alpha,
            'lora_dropout': method.drop_rate,
            'rank_pattern': rank_pattern,
            'alpha_pattern': alpha_pattern,
        }
        return PeftAdapter(entries, layers)


@METHODS.register_module()
class DoRA(Method):
    """Low-rank adaptation of directions, with a length for each row.

    Args:
        rank: Rank of the update, 1 <= rank < width. By layer:
            ``{'*.attn.qkv': 16, '*': 4}``, where the first pattern that fits counts.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``. By
            layer as rank.
        drop_rate: Dropout on the input of the low-rank path.
        targets: Projections that are adapted, as those of LoRA. In a model that no file
            describes they are every Linear and convolution.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank', 'alpha')
    peft = DoRAInPeft()
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        drop_rate: float = 0.0,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        self.rank = rank
        self.alpha = alpha
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def build(self, site: Site) -> DoRADelta:
        return DoRADelta(site, self.rank, self.scale, self.drop_rate)

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[..., Affine]
    ) -> None:
        for site, delta in deltas.items():
            weight = weights(site.host, site.kind, site.index).weight
            delta.m.copy_(row_norms(weight.to(delta.m)))

    def fold(self, site: Site, delta: DoRADelta, affine: Affine) -> None:
        weight, bias = affine.weight.double(), affine.full_bias().double()
        base, base_bias = affine.base.weight.double(), affine.base.full_bias().double()
        update = delta.B.double() @ delta.A.double() * delta.scale
        ratio = delta.m.double() / row_norms(base + update)
        affine.add_(ratio[:, None] * (weight + update) - weight)
        if not torch.equal(bias, base_bias):  # another method shifts it, in front
            affine.shift_((ratio - 1) * (bias - base_bias))
