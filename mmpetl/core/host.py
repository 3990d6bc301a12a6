"""Classes that run sites: what a swapped block and a swapped backbone inherit.

``inject`` changes the class of a foreign block to a subclass that inherits one of
these; parameters, buffers, keys and ``isinstance`` stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpetl.core.affine import Affine
from mmpetl.core.attention import softmax_attention, spread_bias
from mmpetl.core.context import Context, Share, has_values, records_gradients
from mmpetl.core.delta import Delta, Features
from mmpetl.core.errors import PETLError
from mmpetl.core.fingerprint import check_unmoved, converting
from mmpetl.core.init_guard import KeptThroughInit
from mmpetl.core.injection import Injection, deltas_of, find_submodule, wholly
from mmpetl.core.lean import norm_again
from mmpetl.core.shares import is_shared, side_by_side
from mmpetl.core.stack import Rows, Stack, affine_of
from mmpetl.core.steps import follow_steps

Projection = nn.Module | Rows
"""What a block calls between two widths."""


class Host:
    """Mixin that finds and runs the deltas of its sites."""

    _modules: dict[str, Any]

    def plugged(
        self, kind: str, index: int | None = None, ctx: Context | None = None
    ) -> list[Delta]:
        """The active deltas at a site of this module.

        Args:
            kind: The site.
            index: Which of several.
            ctx: Facts of the forward pass, where there is one.
        """
        petl = self._modules.get('petl')
        if petl is None:
            return []
        key = kind.replace('.', '_')
        plug = petl._modules.get(key if index is None else f'{key}_{index}')
        if plug is None:
            return []
        return plug.active(self.sharing() if ctx is None else ctx.shares)

    def sharing(self) -> tuple[Share, ...] | None:
        """The :attr:`Context.shares` of a pass that begins here."""
        return None

    def before(
        self, kind: str, x: Features, ctx: Context, index: int | None = None
    ) -> Features:
        """Run the ``before`` ports of a site."""
        deltas = self.plugged(kind, index, ctx)
        return self._run('before', kind, deltas, (x,), ctx) if deltas else x

    def after(
        self,
        kind: str,
        x: Features,
        y: Tensor,
        ctx: Context,
        index: int | None = None,
    ) -> Tensor:
        """Run the ``after`` ports of a site, given its input and output."""
        deltas = self.plugged(kind, index, ctx)
        return self._run('after', kind, deltas, (x, y), ctx) if deltas else y

    def affine(self, name: str, kind: str) -> Affine | None:
        """The base weights behind a site of this module, None where it has none."""
        return None

    def base_of(self, kind: str, name: str = '') -> Affine:
        """The base weights behind a site of this module, for the delta that runs.

        Args:
            kind: The site.
            name: What messages call it.

        Raises:
            PETLError: There are none.
        """
        # By the class: norms have an attribute of this name.
        found = type(self).affine(self, name or kind, kind)
        if found is None:
            raise PETLError(
                f'{name or kind} is no affine map of {type(self).__name__}, so a delta '
                'can read no base weights there'
            )
        return found

    def through(
        self,
        kind: str,
        module: Callable[[Tensor], Tensor],
        x: Tensor,
        ctx: Context,
        index: int | None = None,
    ) -> Tensor:
        """Both ports around ``module``."""
        if not self.plugged(kind, index, ctx):
            return module(x)  # most sites: a small batch on a GPU waits for Python
        x = self.before(kind, x, ctx, index)
        y = self.within(kind, module, x, ctx, index)
        return self.after(kind, x, module(x), ctx, index) if y is None else y

    def within(
        self,
        kind: str,
        module: Callable[[Tensor], Tensor] | None,
        x: Tensor,
        ctx: Context,
        index: int | None = None,
    ) -> Tensor | None:
        """``module`` and the ``after`` ports of a site, where there is a shorter way.

        See :meth:`Delta.within`. None: there is none, as where there is no module.
        """
        deltas = _heard(self.plugged(kind, index, ctx), ctx)
        if module is None or not deltas or not records_gradients():
            return None
        if type(deltas[0]).within is Delta.within:
            return None
        if is_shared(ctx):
            return None
        if isinstance(module, nn.Linear):
            module = Rows.of(module)
        ctx.affine = self.base_of if deltas[0].reads_base else _unsaid
        y = deltas[0].within(module, x, ctx)
        if y is None:
            return None
        return self._run('after', kind, deltas[1:], (x, y), ctx)

    def _run(
        self,
        port: str,
        kind: str,
        deltas: list[Delta],
        features: tuple[Features, ...],
        ctx: Context,
    ) -> Features:
        """Run a port of these deltas, one after the other or side by side.

        Args:
            port: ``before`` or ``after``.
            kind: Of the site.
            deltas: What is plugged.
            features: What the port takes; each delta changes the last of them.
            ctx: Facts of this forward pass.
        """
        none = getattr(Delta, port)
        acting = [d for d in _heard(deltas, ctx) if getattr(type(d), port) is not none]
        run = partial(self._run_one, port, kind)
        if acting and is_shared(ctx):
            return side_by_side(run, acting, features, ctx)
        for delta in acting:
            features = (*features[:-1], run(delta, features, ctx))
        return features[-1]

    def _run_one(
        self,
        port: str,
        kind: str,
        delta: Delta,
        features: tuple[Features, ...],
        ctx: Context,
    ) -> Features:
        ctx.affine = self.base_of if delta.reads_base else _unsaid
        own = tuple(delta.own(part) for part in features)
        seen, prefix = _versions(own[0]), ctx.num_prefix
        given = getattr(delta, port)(*own, ctx)
        _check_unwritten(delta, port, kind, own[0], seen)
        if port == 'before' and kind in COUNTED:
            _check_counted(delta, kind, given, own[0], ctx.num_prefix - prefix)
        last = features[-1]
        return _like(_fitting(delta, port, kind, given, last), last)


def _unsaid(kind: str) -> Affine:
    raise PETLError(
        f'a delta asks for the base weights of {kind}; its class says so with '
        'reads_base = True, which folding and quantised bases go by'
    )


def _heard(deltas: list[Delta], ctx: Context) -> list[Delta]:
    """Those that act in a pass, where some slots are silent; watchers have no slot."""
    if not ctx.silent:
        return deltas
    silent = {'', *ctx.silent}
    return [d for d in deltas if not d.taps and d.slot not in silent]


OPEN_WIDTH = ('out', 'feature')
"""Sites that a feature of another width may leave."""


def _fitting(delta: Delta, port: str, kind: str, y: Any, x: Features) -> Any:
    """``y``, which a port has given, if it can stand for ``x``.

    Else something behind it fails, or broadcasts, and says nothing of the delta. Tokens
    may come and go; channels may not.
    """
    if isinstance(x, tuple):
        fits = isinstance(y, tuple) and len(y) == len(x)
        fits = fits and all(isinstance(part, Tensor) for part in y)
    else:
        fits = isinstance(y, Tensor)
        if fits and kind not in OPEN_WIDTH and not torch.jit.is_tracing():
            fits = y.ndim == x.ndim and y.shape[-1] == x.shape[-1]
    if not fits:
        raise PETLError(
            f'{type(delta).__name__}.{port} gave {_shape(y)} at {kind}, in place of '
            f'{_shape(x)}; a port returns features of the width that it was given'
        )
    return y


def _versions(x: Features) -> list[int]:
    """How often each tensor was written to, where torch counts it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return []
    parts = x if isinstance(x, tuple) else (x,)
    return [part._version for part in parts if not part.is_inference()]


def _check_unwritten(
    delta: Delta, port: str, kind: str, x: Features, before: list[int]
) -> None:
    """Refuse a delta that has written into its input, which others read too."""
    if before and _versions(x) != before:
        raise PETLError(
            f'{type(delta).__name__}.{port} writes into x at {kind}, which other parts '
            'of the block read; make a new tensor (x * s in place of x.mul_(s))'
        )


COUNTED = ('tokens', 'block')
"""Sites in front of which tokens may join the stream."""


def _check_counted(delta: Delta, kind: str, y: Any, x: Tensor, joined: int) -> None:
    """Refuse tokens that came or left uncounted: the grid would be taken for them."""
    if not isinstance(y, Tensor) or y.ndim != 3 or torch.jit.is_tracing():
        return
    if y.shape[1] - x.shape[1] != joined:
        raise PETLError(
            f'{type(delta).__name__}.before changes the number of tokens at {kind} '
            f'from {x.shape[1]} to {y.shape[1]}, which ctx does not know; '
            'mmpetl.core.join_tokens puts them where they belong, and counts them'
        )


def _shape(y: Any) -> str:
    if isinstance(y, tuple):
        return f'({", ".join(map(_shape, y))})'
    return f'a {tuple(y.shape)}' if isinstance(y, Tensor) else f'{y!r:.40}'


def _like(y: Features, x: Features) -> Features:
    """``y`` in the dtype of ``x``."""
    if isinstance(y, tuple):
        return tuple(_like(a, b) for a, b in zip(y, x, strict=True))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _onto(of_branch: Callable[..., Tensor], x: Tensor, *sources: Tensor) -> Tensor:
    """What a branch, computed again, is added to, and the sum."""
    return x + of_branch(*sources)


def _identity(x: Tensor) -> Tensor:
    return x


def _split(y: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Rows of a logical projection, (B, N, sum(sizes)) -> (B, N, size) each."""
    even = len(set(sizes)) == 1
    return y.chunk(len(sizes), dim=-1) if even else y.split(sizes, dim=-1)


def run_in(
    dtype: torch.dtype,
    run: Callable[..., Tensor],
    x: Tensor,
    ctx: Context,
    *more: Any,
) -> Tensor:
    """``run`` on a sequence of any dtype; the frozen trunk meets that of its stream."""
    return run(x.to(dtype), ctx, *more)


@dataclass(slots=True)  # frozen would take longer to make, in every block
class FFN:
    """A feed-forward network, by its parts.

    Attributes:
        fc1: First projection; a :class:`~mmpetl.core.stack.Stack` of gate and value
            where the network is gated, so that ``ffn.fc1`` leaves twice the width.
        between: ``between(x, ctx)``: activation, gate, convolution, dropout.
        fc2: Second projection.
        behind: ``behind(x)``: dropout.
        act: The activation that ``between`` comes to, where it is no more than one of
            :func:`only_activation`, else None.
        by_token: Whether each token is computed by itself, so that some may be left
            out; not where a convolution stands between.
    """

    fc1: Projection
    between: Callable[[Tensor, Context], Tensor]
    fc2: Projection
    behind: Callable[[Tensor], Tensor] = _identity
    act: Callable[[Tensor], Tensor] | None = None
    by_token: bool = False

    @classmethod
    def of(
        cls,
        fc1: Projection,
        between: Sequence[nn.Module],
        fc2: Projection,
        behind: Callable[[Tensor], Tensor] = _identity,
    ) -> FFN:
        """With an activation and what stands behind it, one after the other."""

        def run(x: Tensor, ctx: Context) -> Tensor:
            for part in between:
                x = part(x)
            return x

        act = only_activation(*between)
        return cls(fc1, run, fc2, behind, act, by_token=True)


def only_activation(
    act: Callable[[Tensor], Tensor], *others: nn.Module
) -> nn.Module | None:
    """``act``, if it keeps its input for the backward pass and the others do nothing.

    Such an activation is cheap to compute again, and does not write to its input.

    Args:
        act: An activation.
        others: Dropouts and the like behind it.
    """
    if type(act) not in (nn.GELU, nn.SiLU) or getattr(act, 'inplace', False):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in (act, *others)):
        return None
    passive = all(
        isinstance(other, nn.Identity)
        or (isinstance(other, nn.Dropout) and not (other.training and other.p))
        for other in others
    )
    return act if passive else None


class BlockHost(Host):
    """A transformer block, written with its sites.

    A backbone's file says where the parts are: :meth:`attention_parts`,
    :meth:`ffn_parts` and :meth:`residual`; where norms have other names, stand behind
    their sub-layer, or the shortcut is more than the stream, also :meth:`norms`,
    :attr:`post_norm` and :meth:`shortcut`. Streams are
    (B, num_prefix + prod(grid), C).

    Attributes:
        post_norm: Whether ``norm1`` and ``norm2`` stand behind attention and
            feed-forward network, in front of scale and stochastic depth.
        with_cp: Whether activations are computed again in the backward pass.
        pools: Whether queries or keys stand for several cells of the grid each.
    """

    attn: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    post_norm = False
    with_cp = False
    pools = False

    def attention_parts(self) -> dict[str, Any]:
        """Keyword arguments of :meth:`attend`."""
        raise NotImplementedError

    def ffn_parts(
        self,
    ) -> FFN | tuple[nn.Module, Callable | Sequence[Callable], nn.Module, Callable]:
        """The feed-forward network; a tuple is fc1, between, fc2, behind.

        In a tuple ``between(x)`` is a function, or several, one after the other.
        """
        raise NotImplementedError

    def residual(self, branch: int, x: Tensor) -> Tensor:
        """Scale and stochastic depth of branch 1 (attention) or 2 (ffn)."""
        raise NotImplementedError

    def norms(self) -> tuple[nn.Module, nn.Module]:
        """The norms of attention and of the feed-forward network."""
        return self.norm1, self.norm2

    def attention_norm(self) -> nn.Module:
        """The first of :meth:`norms`."""
        return self.norms()[0]

    def grid_behind(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Grid of what leaves, where a block pools another than that of its input."""
        return grid

    def shortcut(self, branch: int, normed: Tensor, x: Tensor) -> Tensor:
        """What the residual of a branch is added to.

        Args:
            branch: 1 (attention) or 2 (ffn).
            normed: The stream behind the norm of this branch.
            x: The stream.
        """
        return x

    def drop_projection(self, x: Tensor) -> Tensor:
        """Dropout behind the output projection."""
        return x

    def attend(
        self,
        x: Tensor,
        ctx: Context,
        *,
        num_heads: int,
        qkv: Stack | Projection,
        proj: Projection | None,
        bias: Tensor | Callable[[Tensor, Context], Tensor | None] | None = None,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        bias_prefix: int = 0,
        kv_source: Callable[[Tensor, Context], Tensor] | None = None,
        prepare: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
        behind: Callable[[Tensor, Tensor, Tensor, Context], Tensor] | None = None,
    ) -> Tensor:
        """From what enters the fused projection to what leaves the output projection.

        Args:
            x: (B, N, C); in windowed attention (B * windows, N, C).
            ctx: Facts of this forward pass.
            num_heads: Attention heads of the queries; keys and values may have fewer.
            qkv: The projection to queries, keys and values, however it is stored.
            proj: The output projection; None where it stands elsewhere, and the caller
                runs its site.
            bias: See :func:`~mmpetl.core.attention.softmax_attention`. A function
                ``bias(q, ctx)`` gets the queries (B, heads, N, d) without the tokens
                that deltas have added, behind ``prepare`` and not yet scaled, and may
                return None.
            mask: Likewise.
            dropout: Likewise.
            scale: Likewise.
            bias_prefix: How many tokens of the backbone in front of the grid the bias
                covers.
            kv_source: ``kv_source(x, ctx)``: what keys and values are made from, where
                that is not ``x``; then there is no site ``attn.qkv``.
            prepare: ``prepare(q, k, v, ctx)`` between the projections and the scores:
                norms per head, rotary positions, pooling, repeated key heads.
            behind: ``behind(o, q, x, ctx)`` in front of the output projection, on heads
                that are joined, (B, N, heads * d).

        Returns:
            (B, N, C).
        """
        qkv = Stack.of(qkv)
        x = self.before('attn.qkv', x, ctx)
        rows = ('attn.q', 'attn.k', 'attn.v')
        source = None if kv_source is None else kv_source(x, ctx)
        apart = any(self.plugged(kind, ctx=ctx) for kind in rows)
        ctx.output_kept = prepare is None
        if qkv.fused and source is None and not apart:
            y = self.within('attn.qkv', qkv.rows[0], x, ctx)
            if y is None:
                y = self.after('attn.qkv', x, qkv(x), ctx)
            parts = _split(y, qkv.sizes)
        else:
            if apart:
                ctx.products = []
                parts = self._parts_apart(qkv, rows, x, source, ctx)
                ctx.products = None
            else:
                parts = qkv.parts(x, source)
            if self.plugged('attn.qkv', ctx=ctx):
                y = self.after('attn.qkv', x, torch.cat(tuple(parts), dim=-1), ctx)
                parts = _split(y, qkv.sizes)
        ctx.output_kept = False
        dims = qkv.sizes[0] // num_heads
        # Heads by their number, which no reshaping finds out where a batch is empty.
        q, k, v = (
            p.reshape(*p.shape[:-1], p.shape[-1] // dims, dims).transpose(1, 2)
            for p in parts
        )
        if prepare is not None:
            q, k, v = prepare(q, k, v, ctx)
        q, k, v = self.before('attn.core', (q, k, v), ctx)
        terms = self.position_terms(q, ctx, bias, bias_prefix)
        o = softmax_attention(q, k, v, terms, mask, dropout, scale)
        o = self.after('attn.core', (q, k, v), o, ctx).transpose(1, 2).flatten(2)
        if behind is not None:
            o = behind(o, q, x, ctx)
        if proj is None:
            return o
        y = self.through('attn.proj', proj, o, ctx)
        if ctx.recomputes and not self.plugged('attn.proj', ctx=ctx):
            rows = Rows.of(proj)
            if rows.is_plain:
                weight = rows.weight.flatten(1)
                ctx.tell(y, (o, weight, rows.full_bias()), F.linear)
        return y

    def _parts_apart(
        self,
        qkv: Stack,
        kinds: tuple[str, ...],
        x: Tensor,
        source: Tensor | None,
        ctx: Context,
    ) -> list[Tensor]:
        """The parts of a projection with a site each, their deltas run."""
        seen = [x, *[x if source is None else source] * (len(kinds) - 1)]
        maps = [qkv.part(i) for i in range(len(kinds))]
        found = [
            self.within(kind, maps[i], seen[i], ctx) for i, kind in enumerate(kinds)
        ]
        if all(part is None for part in found) or None in maps:
            whole = qkv.parts(x, source)
            bare = [whole[i] if part is None else part for i, part in enumerate(found)]
        else:
            # None of the others is worth the product of all.
            bare = [
                maps[i](seen[i]) if part is None else part
                for i, part in enumerate(found)
            ]
        parts = [
            self.after(kind, seen[i], bare[i], ctx) if found[i] is None else found[i]
            for i, kind in enumerate(kinds)
        ]
        alone = [part is own for part, own in zip(parts, bare, strict=True)]
        if ctx.output_kept and records_gradients() and not all(alone):
            # What is left as it is would keep the whole fused product for the backward
            # pass, beside what has taken the place of its other parts.
            parts = [
                part.contiguous() if left else part
                for part, left in zip(parts, alone, strict=True)
            ]
        return parts

    def position_terms(
        self,
        q: Tensor,
        ctx: Context,
        bias: Tensor | Callable[[Tensor, Context], Tensor | None] | None,
        own: int,
    ) -> Tensor | None:
        """The position bias over the last tokens; that of extra tokens is zero.

        Tokens that pass a block apart from the grid (:meth:`Context.apart`) have none.

        Args:
            q: (B, heads, N, d).
            ctx: Facts of this forward pass.
            bias: See :meth:`attend`.
            own: Tokens of the backbone in front of the grid that the bias covers.

        Returns:
            (heads, N', N') or (B, heads, N', N'), or None.
        """
        if bias is None or not all(ctx.grid):
            return None
        if callable(bias):
            inside = q
            if ctx.num_prefix > own:
                grid = q[:, :, ctx.num_prefix :]
                inside = torch.cat((q[:, :, :own], grid), dim=2) if own else grid
            bias = bias(inside, ctx)
        if bias is None or not own:
            return bias
        return spread_bias(bias, own, ctx.num_extra)

    def score_terms(
        self, q: Tensor, ctx: Context
    ) -> tuple[Tensor | None, Tensor | None, float]:
        """Bias, mask and scale of the scores of this block, for whoever watches it.

        Args:
            q: (B, heads, N, d), what entered ``softmax``.
            ctx: Facts of the forward pass.

        Returns:
            See :func:`~mmpetl.core.attention.softmax_attention`.
        """
        parts = self.attention_parts()
        bias = self.position_terms(
            q, ctx, parts.get('bias'), parts.get('bias_prefix', 0)
        )
        scale = parts.get('scale')
        return bias, parts.get('mask'), q.shape[-1] ** -0.5 if scale is None else scale

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the sites ``attn.before`` and ``attn.after``."""
        return self.drop_projection(self.attend(x, ctx, **self.attention_parts()))

    def feed_forward(self) -> FFN:
        """The parts of the feed-forward network."""
        parts = self.ffn_parts()
        if isinstance(parts, FFN):
            return parts
        fc1, between, fc2, behind = parts
        if isinstance(between, Sequence):
            return FFN.of(fc1, between, fc2, behind)
        return FFN(fc1, lambda x, _: between(x), fc2, behind, by_token=True)

    def ffn_network(self, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the sites ``ffn.before`` and ``ffn.after``."""
        ffn = self.feed_forward()
        ctx.output_kept = ffn.act is not None
        u = self.through('ffn.fc1', ffn.fc1, x, ctx)
        ctx.output_kept = False
        h = ffn.between(u, ctx)
        if ffn.act is not None:
            ctx.tell(h, (u,), ffn.act)
        return ffn.behind(self.through('ffn.fc2', ffn.fc2, h, ctx))

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        """Attention and feed-forward network on the residual stream."""
        norm1, norm2 = self.norms()
        x = self.sublayer(1, 'attn', norm1, self.attention, x, ctx)
        return self.sublayer(2, 'ffn', norm2, self.ffn_network, x, ctx)

    def sublayer(
        self,
        branch: int,
        name: str,
        norm: Callable[[Tensor], Tensor],
        inside: Callable[[Tensor, Context], Tensor],
        x: Tensor,
        ctx: Context,
    ) -> Tensor:
        """One sub-layer on the residual stream, with its norm and shortcut.

        Where a delta at the sum says which tokens pass, the others are left as they
        are and not computed.
        """
        passing = self.passing(name, x, ctx)
        if passing is None:
            y = self.onto_stream(branch, name, norm, inside, x, ctx)
        else:
            some = x[passing].unsqueeze(0)
            some = self.onto_stream(branch, name, norm, inside, some, ctx)
            y = x.clone()
            y[passing] = some.squeeze(0)
        return self.after(f'{name}.sum', x, y, ctx)

    def passing(self, name: str, x: Tensor, ctx: Context) -> Tensor | None:
        """Tokens that a sub-layer is computed for, (B, N) of bool; None for all.

        Only of a feed-forward network that nothing else is plugged into, and where
        values may be looked at: in evaluation, not in a trace.
        """
        if name != 'ffn' or records_gradients() or not has_values(x):
            return None
        deltas = _heard(self.plugged('ffn.sum', ctx=ctx), ctx)
        if not deltas or type(deltas[0]).passing is Delta.passing or is_shared(ctx):
            return None
        inside = ('norm2', 'ffn', 'ffn.fc1', 'ffn.fc2', 'ffn.branch', 'ffn.skip')
        if any(self.plugged(kind, ctx=ctx) for kind in inside):
            return None
        if not self.feed_forward().by_token:
            return None
        return deltas[0].passing(deltas[0].own(x), ctx)

    def onto_stream(
        self,
        branch: int,
        name: str,
        norm: Callable[[Tensor], Tensor],
        inside: Callable[[Tensor, Context], Tensor],
        x: Tensor,
        ctx: Context,
    ) -> Tensor:
        """What a sub-layer makes of the stream, and the stream."""
        normed = x if self.post_norm else self.normed(branch, norm, x, ctx)
        h = self.before(name, normed, ctx)
        b = self.after(name, h, inside(h, ctx), ctx)
        if self.post_norm:
            b = self.through(f'norm{branch}', norm, b, ctx)
        r = self.through(f'{name}.branch', partial(self.residual, branch), b, ctx)
        skip = partial(self.shortcut, branch, normed)
        skipped = self.through(f'{name}.skip', skip, x, ctx)
        y = skipped + r
        made = ctx.made_of(r)
        if made is not None:
            ctx.tell(y, (skipped, *made.sources), partial(_onto, made.compute))
        return y

    def normed(
        self, branch: int, norm: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor:
        """The norm in front of a sub-layer, and its site."""
        kind = f'norm{branch}'
        if ctx.recomputes and not self.plugged(kind, ctx=ctx):
            y = norm_again(norm, x, ctx)
            if y is not None:
                return y
        return self.through(kind, norm, x, ctx)

    def attended(self, x: Tensor, ctx: Context) -> Tensor:
        """:meth:`attention`, also where a part of the block has that name."""
        return self.attention(x, ctx)

    def attention_again(
        self,
        x: Tensor,
        ctx: Context,
        entering: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Norm and attention by themselves, without what stands at the site ``attn``.

        Args:
            x: (B, N, C).
            ctx: Facts of this forward pass.
            entering: What is made of the normed sequence in front of the projections.
        """
        norm = self.attention_norm()
        h = x if self.post_norm else self.through('norm1', norm, x, ctx)
        y = self.attended(h if entering is None else entering(h), ctx)
        return self.through('norm1', norm, y, ctx) if self.post_norm else y

    def afresh(self, x: Tensor, ctx: Context) -> Tensor:
        """:meth:`sublayers` with facts that stay what they are, to be run again."""
        ctx = ctx.fork()
        ctx.recomputes = False  # all of it is made again
        return self.sublayers(x, ctx)

    def affine(self, name: str, kind: str) -> Affine | None:
        if kind in ('norm1', 'norm2'):
            return affine_of(name, self.norms()[int(kind[-1]) - 1])
        if kind in ('ffn.fc1', 'ffn.fc2'):
            return affine_of(name, getattr(self.feed_forward(), kind[-3:]))
        if kind == 'attn.proj':
            return affine_of(name, self.attention_parts()['proj'])
        if kind in ('attn.qkv', 'attn.q', 'attn.k', 'attn.v'):
            qkv = Stack.of(self.attention_parts()['qkv'])
            part = None if kind == 'attn.qkv' else 'qkv'.index(kind[-1])
            return qkv.affine(name, part)
        return None

    def context_of(self, args: tuple[Any, ...]) -> Context:
        """The facts of a pass, of what :meth:`forward` was called with."""
        return args[1]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.rerun = partial(run_in, x.dtype, self.sublayers)
        ctx.attend = partial(run_in, x.dtype, self.attention_again)
        x = self.before('tokens', x, ctx)
        x = self.before('block', x, ctx)
        if self.with_cp and records_gradients():
            # The reentrant kind gives no gradient to deltas over a frozen trunk.
            y = checkpoint(self.afresh, x, ctx.fork(), use_reentrant=False)
            ctx.grid = self.grid_behind(ctx.grid)
        else:
            y = self.sublayers(x, ctx)
        y = self.after('block', x, y, ctx)
        return self.after('tokens', x, y, ctx)


class KeepsBase(KeptThroughInit):
    """A model with a frozen base. It adds no name that a model could have for a part.

    What is written to its frozen base by other ways than initialisers stops the next
    ``train()``.
    """

    _petl: Injection

    def train(self, mode: bool = True) -> KeepsBase:
        """Train the deltas and what the method selects; the frozen rest evaluates."""
        check_hosts(self, self._petl)
        if mode:
            check_unmoved(self, self._petl)
            follow_steps(self, self._petl)
        # A host with frozen stages clears the flags of all that lies in them.
        flags = [(param, param.requires_grad) for param in self.parameters()]
        for step in (super().train, partial(apply_modes, self, self._petl)):
            step(mode)
            for param, flag in flags:
                param.requires_grad_(flag)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what was pickled, sees the steps that the original would see."""
        super().__setstate__(state)
        if self._petl.training:
            follow_steps(self, self._petl)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        convert = partial(super()._apply, fn, recurse)
        like = next(self.parameters())
        if fn(like.new_empty(0)).dtype == like.dtype or like.is_meta:
            convert()
        else:
            converting(self, self._petl, convert)
        for delta in deltas_of(self, self._petl):
            delta.renew_dtype()
        return self


class BackboneHost(KeepsBase, Host):
    """A backbone whose blocks run sites.

    Attributes:
        clip_frames: Frames of a clip that are images of its batch, one behind the
            other; whatever hands it frames says so.
    """

    clip_frames: int = 1

    def convert_base(self, convert: Callable[[], object]) -> None:
        """Run what a user asks for that gives the frozen base other values."""
        converting(self, self._petl, convert)

    def sharing(self) -> tuple[Share, ...] | None:
        return self._petl.shares

    def new_context(self, grid: tuple[int, ...], num_prefix: int = 0) -> Context:
        """The facts of a forward pass that begins here.

        Args:
            grid: Extents of the token grid.
            num_prefix: Tokens in front of it.
        """
        ctx = Context(grid, num_prefix, self.clip_frames)
        ctx.shares = self.sharing()
        return ctx

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
        x = project(projection, x)
        ctx = self.new_context(tuple(x.shape[2:]))
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


def check_hosts(backbone: nn.Module, record: Injection) -> None:
    """Stop where something has put another module in the place of one with deltas.

    Raises:
        PETLError: A delta hangs on a module that runs no sites, so it does nothing.
    """
    for name, slot in record.slots.items():
        for site in slot.sites:
            host = find_submodule(backbone, site.host) if site.host else backbone
            if not isinstance(host, Host):
                raise PETLError(
                    f'{site.host} is now a {type(host).__name__} without sites, so '
                    f'{type(slot.method).__name__} in slot {name!r} no longer acts '
                    'there: something replaced modules after the injection '
                    '(convert_sync_batchnorm, revert_sync_batchnorm, torch.fx); do '
                    'that first and inject then'
                )


def apply_modes(backbone: nn.Module, record: Injection, mode: bool) -> None:
    """Put frozen modules in eval mode; called after the host's own ``train``.

    A module trains if all parameters below it train and the host lets it; one without
    parameters follows its parent, so that dropout runs in trained blocks only, and that
    in front of a head inside of the backbone follows the head. What the host itself has
    put in eval mode (``norm_eval``, frozen stages) stays there.
    Deltas are in the mode that was asked for, those of a frozen slot in eval mode. A
    model that runs its own forward pass is too: some give more outputs in training.
    """
    record.training = mode
    asked = backbone.training
    # By number: the function below would keep modules that are taken out alive.
    by_host = {id(module): module.training for module in backbone.modules()}
    asleep = {name for name, slot in record.slots.items() if slot.frozen}
    whole = wholly(backbone, lambda param: param.requires_grad)
    for dropout in record.site_map.head_dropouts(backbone):
        whole[dropout] = True

    def visit(module: nn.Module, parent: bool) -> None:
        trains, asks = whole.get(module, parent), by_host[id(module)]
        kind = type(module).__name__
        keeps = record.frozen_drop_path and kind.endswith(STOCHASTIC_DEPTH)
        _set_mode(module, asks and (trains or keeps or kind in MORE_BRANCHES))
        for name, child in module.named_children():
            if name == 'petl':
                child.train(mode)
                for plug in child.children():
                    for slot in asleep & set(plug._modules):
                        plug._modules[slot].eval()
            else:
                visit(child, trains)

    visit(backbone, True)
    if record.site_map.own_forward:
        backbone.training = asked


STOCHASTIC_DEPTH = ('DropPath', 'StochasticDepth')
"""How the names of classes of stochastic depth end: DropPath of timm and mmcv,
SwinDropPath and the like of transformers, StochasticDepth of torchvision."""

MORE_BRANCHES = ('TridentBottleneck', 'TridentConv')
"""Classes that run more branches in training, which what follows them counts on."""


def _set_mode(module: nn.Module, mode: bool) -> None:
    """Set the mode of a module alone, with what its class does when it changes.

    Attention of LeViT, for one, gathers its bias when it leaves training. What that
    does to modules below is set anew when they are visited.
    """
    changes = module.training != mode and type(module).train is not nn.Module.train
    if changes and not isinstance(module, KeepsBase):
        module.train(mode)
    module.training = mode


def without_extra(x: Tensor, ctx: Context) -> Tensor:
    """The sequence without the tokens that deltas have added."""
    if not ctx.num_extra:
        return x
    own = ctx.num_prefix - ctx.num_extra
    return torch.cat((x[:, :own], x[:, ctx.num_prefix :]), dim=1)


def project(projection: nn.Module, x: Tensor) -> Tensor:
    """``projection(x)`` of a convolution.

    Where all that trains of it is its bias, the gradient is a sum of what leaves; a
    convolution would compute that of its weight as well.
    """
    weight, bias = projection.weight, projection.bias
    alone = bias is not None and bias.requires_grad and not weight.requires_grad
    if not alone or x.requires_grad or not records_gradients():
        return projection(x)
    with torch.no_grad():
        y = projection(x)
    return BiasInside.apply(y, bias)


class BiasInside(torch.autograd.Function):
    """y as it is, with the gradient of the bias that has been added, (B, C, ...)."""

    @staticmethod
    def forward(y: Tensor, bias: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        axes = [axis for axis in range(grad.ndim) if axis != 1]
        return None, grad.sum(axes, dtype=ctx.dtype)


def patches_of(projection: nn.Module, x: Tensor) -> Tensor:
    """What a convolution sees at each of its places.

    Args:
        projection: A convolution over any number of axes, without dilation.
        x: (B, C, *extents).

    Returns:
        (B, places, C * prod(kernel)), in the order of ``projection.weight.flatten(1)``.
    """
    padding = () if projection.padding == 'valid' else projection.padding
    pads = [p for p in reversed(padding) for _ in range(2)]
    x = F.pad(x, pads) if any(pads) else x
    axes = range(2, x.ndim)
    kernel, stride = projection.kernel_size, projection.stride
    for axis, size, step in zip(axes, kernel, stride, strict=True):
        x = x.unfold(axis, size, step)
    n = len(kernel)
    x = x.permute(0, *axes, 1, *range(2 + n, 2 + 2 * n))
    return x.flatten(1 + n).flatten(1, n)
