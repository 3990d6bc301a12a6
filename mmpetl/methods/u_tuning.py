"""U-Tuning: small tuners beside attention, feed-forward network and block.

Paper: Jiang et al., "Rethinking Efficient Tuning Methods from a Unified Perspective",
2023, https://arxiv.org/abs/2303.00690.
No public code names the combination of tuners behind the published figures. The default
is the pair of round sizes that comes nearest to the published one: prefixes at
attention, an adapter at the feed-forward network. Formulas and start values follow the
generic tuner backbone that the authors released later. Windowed attention is our
extension: prefixes and prompts get neither position bias nor mask.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    grow,
    kaiming_uniform_,
)
from mmpetl.registry import METHODS

TUNERS = ('none', 'prefix', 'prompt', 'adapter', 'lora')
PLACES = ('mha', 'ffn', 'block')
MODES = ('parallel', 'serial')


def start_tokens_(tokens: Tensor) -> None:
    """Xavier-uniform over (1, P, C), the shape that the authors' tokens have.

    tokens: (P, C). The bound is sqrt(6 / ((P + 1) C)), and not that of a P x C matrix.
    """
    nn.init.xavier_uniform_(tokens.detach().unsqueeze(0))


class AdapterTuner(nn.Module):
    """``U(z) = gelu(z D^T + d) U^T + u``.  z: (B, N, C)."""

    def __init__(self, dims: int, hidden_dims: int, zero_init: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.up = nn.Linear(hidden_dims, dims)
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(z)))


class LoRATuner(nn.Module):
    """``U(z) = z A^T B^T``, B zero at the start.  z: (B, N, in_dims)."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dims))
        self.B = nn.Parameter(torch.zeros(out_dims, rank))
        kaiming_uniform_(self.A)

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(F.linear(z, self.A), self.B)


class UDelta(Delta):
    """``y + U(x)`` in parallel, ``y + U(y)`` in series."""

    def __init__(self, tuner: nn.Module, mode: str) -> None:
        super().__init__()
        self.tuner = tuner
        self.mode = mode

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.tuner(x if self.mode == 'parallel' else y)


class PrefixTuner(Delta):
    """``softmax(q [Pk; k]^T / sqrt(d)) [Pv; v]``.

    In parallel form, ``(1 - m) attention(q, k, v) + m attention(q, Pk, Pv)`` with ``m``
    the share of the prefixes in the sum of exponentials of each query and head.
    """

    def __init__(self, dims: int, num_tokens: int) -> None:
        super().__init__()
        self.Pk = nn.Parameter(torch.empty(num_tokens, dims))
        self.Pv = nn.Parameter(torch.empty(num_tokens, dims))
        start_tokens_(self.Pk)
        start_tokens_(self.Pv)

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        return grow(x, self.Pk, self.Pv)


class PromptEntry(Delta):
    """Prompts in front of what enters the projection, (B, N, C) -> (B, P + N, C).

    So their keys and values come from the frozen projection: ``Pk = E Wk^T + bk``.
    """

    def __init__(self, dims: int, num_tokens: int) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(num_tokens, dims))
        start_tokens_(self.E)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        prompts = self.E.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat((prompts, x), dim=1)


class PromptExit(Delta):
    """Prompts ask nothing: their queries leave, keys and values stay."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        q, k, v = x
        return q[:, :, self.num_tokens :], k, v


@METHODS.register_module()
class UTuning(Method):
    """A tuner of choice beside every operation of a block: ``OP(x) + U``.

    Args:
        mha: Tuner of attention, ``'none'``, ``'prefix'``, ``'prompt'``, ``'adapter'``
            or ``'lora'`` (an update of the fused projection).
        ffn: Tuner of the feed-forward network, ``'none'``, ``'adapter'`` or ``'lora'``.
        block: Tuner of the whole block, likewise.
        mha_mode: ``'parallel'``: it is fed with what enters attention; ``'serial'``:
            with what leaves. Prefix, prompt and LoRA are parallel.
        ffn_mode: Likewise for the feed-forward network.
        block_mode: Likewise for the block.
        num_tokens: Prefixes or prompts per block; with 0 there are none.
        hidden_dims: Width of adapters.
        rank: Rank of LoRA.
        behind_drop_path: Whether serial tuners of attention and network stand behind
            scale and stochastic depth, as in the released code, or in front.
        zero_init: Adapters start at zero; prefixes and prompts change the output from
            the start nevertheless.
    """

    starts_as_identity = False
    family = 'adapter'

    def __init__(
        self,
        mha: Literal['none', 'prefix', 'prompt', 'adapter', 'lora'] = 'prefix',
        ffn: Literal['none', 'adapter', 'lora'] = 'adapter',
        block: Literal['none', 'adapter', 'lora'] = 'none',
        mha_mode: Literal['parallel', 'serial'] = 'parallel',
        ffn_mode: Literal['parallel', 'serial'] = 'serial',
        block_mode: Literal['parallel', 'serial'] = 'serial',
        num_tokens: int = 10,
        hidden_dims: int = 10,
        rank: int = 10,
        behind_drop_path: bool = True,
        zero_init: bool = False,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 0)
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'rank', rank, 1)
        self.mha, self.ffn, self.block = mha, ffn, block
        self.mha_mode, self.ffn_mode = mha_mode, ffn_mode
        self.block_mode = block_mode
        self.num_tokens = num_tokens
        self.hidden_dims = hidden_dims
        self.rank = rank
        self.behind_drop_path = behind_drop_path
        self.zero_init = zero_init
        for place in PLACES:
            self._check_place(
                place, getattr(self, place), getattr(self, f'{place}_mode')
            )
        self._at = {kind: place for place in PLACES for kind in self._kinds(place)}
        if not self._at:
            raise PETLError(
                'UTuning needs a tuner: mha, ffn or block other than none, and '
                'num_tokens of at least 1 where that is a prefix or a prompt'
            )
        self.targets = tuple(self._at)
        quiet = {'none', 'lora', *(['adapter'] if zero_init else [])}
        tokens = {'prefix', 'prompt'} if num_tokens == 0 else set()
        self.starts_as_identity = {mha, ffn, block} <= quiet | tokens

    def _check_place(self, place: str, tuner: str, mode: str) -> None:
        allowed = TUNERS if place == 'mha' else ('none', 'adapter', 'lora')
        if tuner not in allowed:
            why = '; prefixes and prompts need the queries of attention'
            raise PETLError(
                f'UTuning needs {place} {" or ".join(allowed)}, got {tuner!r}'
                + (why if tuner in TUNERS else '')
            )
        if mode not in MODES:
            raise PETLError(
                f'UTuning needs {place}_mode {" or ".join(MODES)}, got {mode!r}'
            )
        if place == 'mha' and mode == 'serial' and tuner in TUNERS[1:3] + ('lora',):
            raise PETLError(
                f'UTuning has mha {tuner} in parallel only; mha_mode serial is for an '
                'adapter'
            )

    def _kinds(self, place: str) -> tuple[str, ...]:
        """Kinds of the sites that the tuner of a place plugs into."""
        tuner = getattr(self, place)
        if tuner == 'none' or (tuner in ('prefix', 'prompt') and not self.num_tokens):
            return ()
        if place == 'block':
            return ('block',)
        special = {
            'prefix': ('attn.core',),
            'prompt': ('attn.qkv', 'attn.core'),
            'lora': ('attn.qkv',),
        }
        if place == 'mha' and tuner in special:
            return special[tuner]
        name = 'attn' if place == 'mha' else 'ffn'
        serial = getattr(self, f'{place}_mode') == 'serial'
        return (f'{name}.branch' if serial and self.behind_drop_path else name,)

    def check(self, sites: list[Site]) -> None:
        narrow = min(min(s.in_dims, s.out_dims) for s in sites)
        if 'lora' in (self.mha, self.ffn, self.block) and self.rank >= narrow:
            raise PETLError(
                f'UTuning needs rank below the narrowest width ({narrow}), '
                f'got {self.rank}'
            )

    def build(self, site: Site) -> Delta:
        place = self._at[site.kind]
        tuner, dims = getattr(self, place), site.in_dims
        if tuner == 'prefix':
            return PrefixTuner(dims, self.num_tokens)
        if tuner == 'prompt':
            if site.kind == 'attn.core':
                return PromptExit(self.num_tokens)
            return PromptEntry(dims, self.num_tokens)
        if tuner == 'adapter':
            net = AdapterTuner(dims, self.hidden_dims, self.zero_init)
        else:
            net = LoRATuner(dims, site.out_dims, self.rank)
        return UDelta(net, getattr(self, f'{place}_mode'))

    @property
    def folds(self) -> bool:
        """Only the update of the fused projection is a weight."""
        return set(self._at) == {'attn.qkv'}

    def fold(self, site: Site, delta: UDelta, affine: Affine) -> None:
        affine.add_(delta.tuner.B.double() @ delta.tuner.A.double())
