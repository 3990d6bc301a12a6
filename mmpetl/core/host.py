"""Classes that run sites: what a swapped block and a swapped backbone inherit.

``inject`` changes the class of a foreign block to a subclass that inherits one of
these; parameters, buffers, keys and ``isinstance`` stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpetl.core.affine import Affine
from mmpetl.core.attention import softmax_attention, split_heads
from mmpetl.core.context import Context, records_gradients
from mmpetl.core.delta import Delta, Features
from mmpetl.core.fingerprint import check_unmoved, converting
from mmpetl.core.init_guard import KeptThroughInit
from mmpetl.core.injection import Injection, deltas_of


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
        self, kind: str, x: Features, ctx: Context, index: int | None = None
    ) -> Features:
        """Run the ``before`` ports of a site."""
        for delta in self.plugged(kind, index):
            if type(delta).before is not Delta.before:
                x = _like(delta.before(delta.own(x), ctx), x)
        return x

    def after(
        self,
        kind: str,
        x: Features,
        y: Tensor,
        ctx: Context,
        index: int | None = None,
    ) -> Tensor:
        """Run the ``after`` ports of a site, given its input and output."""
        for delta in self.plugged(kind, index):
            if type(delta).after is not Delta.after:
                y = _like(delta.after(delta.own(x), delta.own(y), ctx), y)
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


def _like(y: Features, x: Features) -> Features:
    """``y`` in the dtype of ``x``."""
    if isinstance(y, tuple):
        return tuple(_like(a, b) for a, b in zip(y, x, strict=True))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _identity(x: Tensor) -> Tensor:
    return x


def run_in(
    dtype: torch.dtype,
    run: Callable[[Tensor, Context], Tensor],
    x: Tensor,
    ctx: Context,
) -> Tensor:
    """``run`` on a sequence of any dtype; the frozen trunk meets that of its stream."""
    return run(x.to(dtype), ctx)


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
        """Keyword arguments of :meth:`attend`."""
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

    def attend(
        self,
        x: Tensor,
        ctx: Context,
        *,
        num_heads: int,
        qkv: Callable[[Tensor], Tensor],
        proj: nn.Module,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        qk_norm: tuple[nn.Module, nn.Module] | None = None,
    ) -> Tensor:
        """From what enters the fused projection to what leaves the output projection.

        Args:
            x: (B, N, C); in windowed attention (B * windows, N, C).
            ctx: Facts of this forward pass.
            num_heads: Attention heads.
            qkv: The fused projection, (B, N, C) -> (B, N, 3 * D), rows q, k, v.
            proj: The output projection.
            bias: See :func:`~mmpetl.core.attention.softmax_attention`.
            mask: Likewise.
            dropout: Likewise.
            qk_norm: Norms of queries and keys per head.

        Returns:
            (B, N, C).
        """
        x = self.before('attn.qkv', x, ctx)
        y = qkv(x)
        rows = ('attn.q', 'attn.k', 'attn.v')
        if any(self.plugged(kind) for kind in rows):
            parts = [
                self.after(kind, x, part, ctx)
                for kind, part in zip(rows, y.chunk(3, dim=-1), strict=True)
            ]
            if self.plugged('attn.qkv'):
                y = self.after('attn.qkv', x, torch.cat(parts, dim=-1), ctx)
                parts = y.chunk(3, dim=-1)
            q, k, v = (split_heads(part, num_heads) for part in parts)
        else:
            y = self.after('attn.qkv', x, y, ctx)
            y = y.unflatten(-1, (3, num_heads, -1))
            q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        if qk_norm is not None:
            q, k = qk_norm[0](q), qk_norm[1](k)
        q, k, v = self.before('attn.core', (q, k, v), ctx)
        o = softmax_attention(q, k, v, bias, mask, dropout)
        o = self.after('attn.core', (q, k, v), o, ctx)
        return self.through('attn.proj', proj, o.transpose(1, 2).flatten(2), ctx)

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the sites ``attn.before`` and ``attn.after``."""
        return self.drop_projection(self.attend(x, ctx, **self.attention_parts()))

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
            if getattr(module, 'weight', None) is None:
                return None
            eps = getattr(module, 'eps', None)
            return Affine.of(name, module.weight, getattr(module, 'bias', None), eps)
        if kind not in ('attn.qkv', 'attn.q', 'attn.k', 'attn.v'):
            return None
        qkv = self.qkv_affine(name)
        if kind == 'attn.qkv':
            return qkv
        third, i = len(qkv.weight) // 3, 'qkv'.index(kind[-1])
        return qkv.rows(name, i * third, (i + 1) * third)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.rerun = partial(run_in, x.dtype, self.sublayers)
        x = self.before('tokens', x, ctx)
        x = self.before('block', x, ctx)
        if self.with_cp and records_gradients():
            # The reentrant kind gives no gradient to deltas over a frozen trunk.
            y = checkpoint(self.sublayers, x, ctx.fork(), use_reentrant=False)
        else:
            y = self.sublayers(x, ctx)
        y = self.after('block', x, y, ctx)
        return self.after('tokens', x, y, ctx)


class BackboneHost(KeptThroughInit, Host):
    """A backbone whose blocks run sites.

    What is written to its frozen base by other ways than initialisers stops the next
    ``train()``.
    """

    _petl: Injection

    def train(self, mode: bool = True) -> BackboneHost:
        """Train the deltas and what the method selects; the frozen rest evaluates."""
        if mode:
            check_unmoved(self, self._petl)
        # A host with frozen stages clears the flags of all that lies in them.
        flags = [(param, param.requires_grad) for param in self.parameters()]
        super().train(mode)
        for param, flag in flags:
            param.requires_grad_(flag)
        apply_modes(self, self._petl, mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        convert = partial(super()._apply, fn, recurse)
        like = next(self.parameters())
        if fn(like.new_empty(0)).dtype == like.dtype or like.is_meta:
            convert()
        else:
            self.convert_base(convert)
        for delta in deltas_of(self, self._petl):
            delta.renew_dtype()
        return self

    def convert_base(self, convert: Callable[[], object]) -> None:
        """Run what a user asks for that gives the frozen base other values."""
        converting(self, self._petl, convert)

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

    def norm_vector(
        self, norm: nn.Module, x: Tensor, ctx: Context, index: int
    ) -> Tensor:
        """Norm a pooled output, (B, C) -> (B, C), with its site ``out.norm``."""
        x = self.through('out.norm', norm, x.unsqueeze(1), ctx, index)
        return x.squeeze(1)

    def feature(self, x: Tensor, ctx: Context, index: int) -> Tensor:
        """Run the site ``feature`` on the vectors of an output, (B, C) -> (B, C')."""
        return self.through('feature', _identity, x.unsqueeze(1), ctx, index).squeeze(1)


def apply_modes(backbone: nn.Module, record: Injection, mode: bool) -> None:
    """Put frozen modules in eval mode; called after the host's own ``train``.

    A module trains if all parameters below it train; one without parameters follows
    its parent, so that dropout runs in trained blocks only. Deltas are in the mode
    that was asked for, those of a frozen slot in eval mode.
    """
    record.training = mode
    asleep = {name for name, slot in record.slots.items() if slot.frozen}

    def visit(module: nn.Module, parent: bool) -> None:
        params = [p for n, p in module.named_parameters() if 'petl' not in n.split('.')]
        trains = all(p.requires_grad for p in params) if params else parent
        module.training = mode and trains
        if record.frozen_drop_path and type(module).__name__ == 'DropPath':
            module.training = mode
        for name, child in module.named_children():
            if name == 'petl':
                child.train(mode)
                for plug in child.children():
                    for slot in asleep & set(plug._modules):
                        plug._modules[slot].eval()
            else:
                visit(child, trains)

    visit(backbone, True)


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
