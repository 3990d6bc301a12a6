"""Classes that run sites: what a swapped block and a swapped backbone inherit.

``inject`` changes the class of a foreign block to a subclass that inherits one of
these; parameters, buffers, keys and ``isinstance`` stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpetl.core.affine import Affine
from mmpetl.core.attention import attend
from mmpetl.core.context import Context
from mmpetl.core.delta import Delta
from mmpetl.core.kept import KeptThroughInit

if TYPE_CHECKING:
    from mmpetl.core.inject import Injection


class Plug(nn.ModuleDict):
    """The deltas at one site, by slot; a slot can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.off: set[str] = set()

    def active(self) -> list[Delta]:
        """The deltas that act, in the order of their injection."""
        return [d for slot, d in self._modules.items() if slot not in self.off]


class Host:
    """Mixin that finds and runs the deltas of its sites."""

    _modules: dict[str, Any]

    def plugged(self, kind: str, index: int | None = None) -> list[Delta]:
        """The active deltas at a site of this module."""
        petl = self._modules.get('petl')
        if petl is None:
            return []
        key = kind.replace('.', '_')
        plug = petl._modules.get(key if index is None else f'{key}_{index}')
        return [] if plug is None else plug.active()

    def before(
        self, kind: str, x: Tensor, ctx: Context, index: int | None = None
    ) -> Tensor:
        """Run the ``before`` ports of a site."""
        for delta in self.plugged(kind, index):
            x = delta.before(x, ctx)
        return x

    def after(
        self, kind: str, x: Tensor, y: Tensor, ctx: Context, index: int | None = None
    ) -> Tensor:
        """Run the ``after`` ports of a site, given its input and output."""
        for delta in self.plugged(kind, index):
            y = delta.after(x, y, ctx)
        return y

    def through(
        self,
        kind: str,
        module: Callable[[Tensor], Tensor],
        x: Tensor,
        ctx: Context,
        index: int | None = None,
    ) -> Tensor:
        """Both ports around ``module``."""
        x = self.before(kind, x, ctx, index)
        return self.after(kind, x, module(x), ctx, index)


def _identity(x: Tensor) -> Tensor:
    return x


class BlockHost(Host):
    """A pre-norm transformer block, written with its sites.

    A backbone's file says where the parts are: :meth:`attention_parts`,
    :meth:`ffn_parts` and :meth:`residual`; ``norm1`` and ``norm2`` are looked up by
    name. Streams are (B, num_prefix + prod(grid), C).
    """

    attn: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    with_cp = False

    def attention_parts(self) -> dict[str, Any]:
        """Keyword arguments of :func:`mmpetl.core.attend`."""
        raise NotImplementedError

    def ffn_parts(self) -> tuple[nn.Module, Callable, nn.Module, Callable]:
        """fc1, what stands between, fc2, what follows."""
        raise NotImplementedError

    def residual(self, branch: int, x: Tensor) -> Tensor:
        """Scale and stochastic depth of branch 1 (attention) or 2 (ffn)."""
        raise NotImplementedError

    def drop_projection(self, x: Tensor) -> Tensor:
        """Dropout behind the output projection."""
        return x

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the sites ``attn.before`` and ``attn.after``."""
        return self.drop_projection(attend(self, x, ctx, **self.attention_parts()))

    def ffn_network(self, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the sites ``ffn.before`` and ``ffn.after``."""
        fc1, between, fc2, behind = self.ffn_parts()
        x = between(self.through('ffn.fc1', fc1, x, ctx))
        return behind(self.through('ffn.fc2', fc2, x, ctx))

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        """Attention and feed-forward network on the residual stream."""
        for branch, name, norm, inside in (
            (1, 'attn', self.norm1, self.attention),
            (2, 'ffn', self.norm2, self.ffn_network),
        ):
            h = self.through(f'norm{branch}', norm, x, ctx)
            h = self.before(name, h, ctx)
            b = self.after(name, h, inside(h, ctx), ctx)
            scaled = partial(self.residual, branch)
            r = self.through(f'{name}.branch', scaled, b, ctx)
            y = self.through(f'{name}.skip', _identity, x, ctx) + r
            x = self.after(f'{name}.sum', x, y, ctx)
        return x

    def qkv_affine(self, name: str) -> Affine:
        """The fused projection as an affine map with rows q, k, v."""
        return Affine.of(name, self.attn.qkv.weight, self.attn.qkv.bias)

    def affine(self, name: str, kind: str) -> Affine | None:
        """The base weights behind a site of this block, None where it has none."""
        fc1, _, fc2, _ = self.ffn_parts()
        modules = {
            'norm1': self.norm1,
            'norm2': self.norm2,
            'attn.proj': self.attention_parts()['proj'],
            'ffn.fc1': fc1,
            'ffn.fc2': fc2,
        }
        if kind in modules:
            module = modules[kind]
            eps = getattr(module, 'eps', None)
            return Affine.of(name, module.weight, module.bias, eps)
        if kind not in ('attn.qkv', 'attn.q', 'attn.k', 'attn.v'):
            return None
        qkv = self.qkv_affine(name)
        if kind == 'attn.qkv':
            return qkv
        third, i = len(qkv.weight) // 3, 'qkv'.index(kind[-1])
        return qkv.rows(name, i * third, (i + 1) * third)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.again = self.sublayers
        x = self.before('tokens', x, ctx)
        x = self.before('block', x, ctx)
        if self.with_cp and torch.is_grad_enabled():
            # The reentrant kind gives no gradient to deltas over a frozen trunk.
            y = checkpoint(self.sublayers, x, ctx.fork(), use_reentrant=False)
        else:
            y = self.sublayers(x, ctx)
        y = self.after('block', x, y, ctx)
        return self.after('tokens', x, y, ctx)


class BackboneHost(KeptThroughInit, Host):
    """A backbone whose blocks run sites."""

    _petl: Injection

    def train(self, mode: bool = True) -> BackboneHost:
        """Train the deltas and what the method selects; the frozen rest evaluates."""
        super().train(mode)
        self._petl.apply_modes(self, mode)
        return self

    def embed_patches(
        self, projection: nn.Module, norm: nn.Module | None, x: Tensor
    ) -> tuple[Tensor, Context]:
        """Project patches and start the context of this forward pass.

        Args:
            projection: Convolution whose output is a grid of tokens.
            norm: Norm of the patch embedding, None without one.
            x: (B, C, H, W) or (B, C, T, H, W).

        Returns:
            (B, prod(grid), C) and a context without prefix tokens.
        """
        images = x
        x = projection(x)
        ctx = Context(tuple(x.shape[2:]))
        ctx.images = images
        x = x.flatten(2).transpose(1, 2)
        if self.plugged('embed.proj'):
            x = self.after('embed.proj', patches_of(projection, images), x, ctx)
        if norm is not None:
            x = self.through('embed.norm', norm, x, ctx)
        return x, ctx

    def emit(
        self, x: Tensor, norm: nn.Module | None, ctx: Context, index: int
    ) -> tuple[Tensor, Tensor]:
        """Norm an output and take the extra tokens out of it.

        Args:
            x: (B, num_prefix + N, C).
            norm: The norm of this output, None without one.
            ctx: Facts of this forward pass.
            index: Stage (or block, in a plain transformer) of the output.

        Returns:
            The normed sequence with every token, and what leaves: class tokens and
            grid, (B, num_prefix - num_extra + N, C).
        """
        x = self.before('out', x, ctx, index)
        if norm is not None:
            x = self.through('out.norm', norm, x, ctx, index)
        return x, self.after('out', x, without_extra(x, ctx), ctx, index)

    def hand_over(self, x: Tensor, ctx: Context, index: int) -> Tensor:
        """Run the site ``feature`` on the vectors of an output, (B, C) -> (B, C')."""
        return self.through('feature', _identity, x.unsqueeze(1), ctx, index).squeeze(1)


def without_extra(x: Tensor, ctx: Context) -> Tensor:
    """The sequence without the tokens that deltas have added."""
    if not ctx.num_extra:
        return x
    own = ctx.num_prefix - ctx.num_extra
    return torch.cat((x[:, :own], x[:, ctx.num_prefix :]), dim=1)


def patches_of(projection: nn.Module, x: Tensor) -> Tensor:
    """What a convolution sees at each of its places.

    Args:
        projection: A convolution over any number of axes, without dilation.
        x: (B, C, *extents).

    Returns:
        (B, places, C * prod(kernel)), in the order of ``projection.weight.flatten(1)``.
    """
    pads = [p for p in reversed(projection.padding) for _ in range(2)]
    x = F.pad(x, pads) if any(pads) else x
    axes = range(2, x.ndim)
    kernel, stride = projection.kernel_size, projection.stride
    for axis, size, step in zip(axes, kernel, stride, strict=True):
        x = x.unfold(axis, size, step)
    n = len(kernel)
    x = x.permute(0, *axes, 1, *range(2 + n, 2 + 2 * n))
    return x.flatten(1 + n).flatten(1, n)
